"""Caps hold at a server that counts: over faults, kill -9, two runs at once and several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until
from tests.e2e.test_damage import fsck
from tracefactory.store.spend import Ledger

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]
ALL = 160  # requests of the pipeline: 40 problems, 2 teachers, 2 samples


def ledger(project: Project, **options: Any) -> dict[tuple[str, str], Any]:
    found = Ledger(project.root / ".tracefactory", "sums@1", **options)
    totals = found.totals()
    found.close()
    return totals


def stored(project: Project) -> list[dict[str, Any]]:
    """Return the records of all stored completions."""
    folder = project.root / ".tracefactory" / "requests"
    lines = [line for path in folder.glob("journal-*.jsonl") for line in path.read_text().splitlines()]
    return [record for line in lines if (record := _record(json.loads(line[line.index("{") :])))]


def _record(output: Any) -> Any:
    if isinstance(output, dict) and "completion" in output:
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list) else ()
    return next((found for value in values if (found := _record(value))), None)


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_cap_on_requests_is_never_exceeded_and_the_result_can_be_published(
    teacher_of: Teachers, project_of: Projects, executor: str
) -> None:
    teacher = teacher_of(latency_s=0.02)
    project = project_of(teacher.url, executor=executor)
    output = project.run("run", str(project.pipeline), "--budget", "requests=50", expect=3)
    assert "stopped by a cap: " in output
    assert "50 requests: 50 requests are spent" in output
    assert f"{ALL - 50} requests are missing" in output
    assert "--budget requests=100" in output
    assert output.count("budget: ") == 1  # the warning at 80%
    assert "Traceback" not in output
    assert teacher.stats()["received"] == teacher.stats()["completed_total"] == 50 == len(project.paid_lines())
    assert not (project.root / "out").exists()

    project.run("run", str(project.pipeline), "--budget", "requests=50", expect=3)  # all runs count together
    assert teacher.stats()["received"] == 50
    plan = project.run("plan", str(project.pipeline), "--budget", "requests=100")
    assert "50 requests are spent" in " ".join(plan.split())
    assert "over the cap by at most 60 requests" in " ".join(plan.split())

    # Without the mix, which may need problems that both teachers were asked about.
    partial = ["--no-requests", "--set", "stages.dataset.with.allow_missing=100%", "--set", "stages.dataset.from=clean"]
    project.run("run", str(project.pipeline), *partial)
    (card,) = (project.root / "out").rglob("README.md")
    assert "**Partial:**" in card.read_text()
    whole = project.make("--set", "version=2", "--budget", "requests=110")  # another version has a budget of its own
    assert whole["spend"]
    assert teacher.stats()["completed_total"] == ALL


def test_a_cap_in_dollars_is_kept_and_nearly_used(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.02)
    project = project_of(teacher.url)
    cap = 0.0125
    output = project.run("run", str(project.pipeline), "--budget", f"usd={cap}", expect=3)
    assert "US dollars are spent, and the next request can take" in output
    records = stored(project)
    spent = sum(record["cost"] for record in records)
    worst = 4096 * 2.0 / 1e6  # max_tokens of the dearer model, whose prompts are free
    assert cap - worst <= spent <= cap
    assert len(records) == teacher.stats()["completed_total"] < ALL
    assert sum(one.usd for one in ledger(project).values()) == pytest.approx(spent)
    assert {record["price"]["source"] for record in records} == {"declared"}
    plan = " ".join(project.run("plan", str(project.pipeline), "--budget", f"usd={cap}").split())
    assert "cap 0.0125 US dollars:" in plan
    assert "over the cap by at most" in plan


def test_a_cap_of_one_model_holds_for_it_alone(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.02)
    project = project_of(teacher.url)
    output = project.run("run", str(project.pipeline), "--budget", "short_teacher.requests=7", expect=3)
    assert "short_teacher: 7 requests" in output
    spent = {model: amount.requests for (model, _), amount in ledger(project).items()}
    assert spent["short_teacher"] == 7


def test_kill_9_does_not_forget_what_was_in_flight(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.2)
    project = project_of(teacher.url)
    budget = ("--budget", "requests=60")
    for minimum in (10, 30):
        process = project.start(*budget)
        wait_until(lambda minimum=minimum: teacher.stats()["received"] >= minimum)
        kill_tree(process.pid)
        process.wait()
    before = teacher.stats()["received"]
    project.run("run", str(project.pipeline), *budget, expect=3)
    assert teacher.stats()["received"] <= 60
    spent = sum(one.requests for one in ledger(project).values())
    assert before <= teacher.stats()["completed_total"] <= spent == 60


def test_two_runs_at_once_share_one_budget(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.5)
    project = project_of(teacher.url)
    seeds = ("--set", "stages.long.with.seed=5", "--set", "stages.short.with.seed=5")
    slow = [part for name in ("long", "short") for part in ("--set", f"models.{name}_teacher.concurrency=4")]
    cap = ("--budget", "requests=70", *slow)  # slow, so that one does not spend all before the other has started
    runs = [project.start(*cap), project.start(*cap, *seeds)]
    assert [one.wait(120) for one in runs] == [3, 3]
    assert teacher.stats()["received"] == teacher.stats()["completed_total"] == 70
    by_run: dict[str, int] = {}
    for (_, run), amount in ledger(project).items():
        by_run[run] = by_run.get(run, 0) + amount.requests
    assert sum(by_run.values()) == 70
    assert len(by_run) == 2, by_run  # each of them has sent some


def test_answers_that_are_lost_count(teacher_of: Teachers, project_of: Projects) -> None:
    """A server bills what its client gave up on: a cap counts attempts and not rows."""
    teacher = teacher_of(rate_hang=0.3, hang_s=3.0, max_faults=1, rate_drop=0.2)
    project = project_of(teacher.url)
    short = [option for name in ("long", "short") for option in ("--set", f"models.{name}_teacher.timeout_s=1")]
    output = project.run("run", str(project.pipeline), *short, "--budget", "requests=40", expect=3)
    assert "40 requests are spent" in output
    wait_until(lambda: teacher.stats()["in_flight"] == 0)
    assert len(project.paid_lines()) < teacher.stats()["completed_total"] <= teacher.stats()["received"] <= 40


def test_a_cap_with_a_model_without_a_price_refuses_to_start(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url)
    text = project.pipeline.read_text()
    project.pipeline.write_text(text.replace(", price: {input: 0, output: 1.0}", ""))
    output = project.run("run", str(project.pipeline), "--budget", "usd=5", expect=2)
    assert "model 'short_teacher' has no price, so the cap in US dollars cannot be kept" in output
    assert "long_teacher" not in output
    assert teacher.stats()["received"] == 0
    plan = " ".join(project.run("plan", str(project.pipeline), "--budget", "usd=5").split())
    assert "no run begins: " in plan
    assert "what is still to pay is unknown" in plan

    outcome = project.make()  # without a cap it runs, and says what it does not know
    spend = {one["model"]: one for one in outcome["spend"]}
    assert (spend["short_teacher"]["cost"], spend["short_teacher"]["unpriced"]) == (0.0, 80)
    assert spend["short_teacher"]["price"] == "unknown"
    assert spend["long_teacher"]["cost"] > 0
    shown = " ".join(project.run("show").split())
    assert "at least" in shown
    assert "80 completions of short_teacher have no price" in shown
    (card,) = (project.root / "out").rglob("README.md")
    assert "The price of 80 completions of fake-short is unknown" in card.read_text()
    assert "| declared: input 0, output 2 |" in card.read_text()


@pytest.mark.slow
def test_the_time_of_a_run_is_a_cap(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=2.0)
    project = project_of(teacher.url, size=200)
    output = project.run("run", str(project.pipeline), "--budget", "wall=20s", expect=3)
    assert "wall 20s: the time of this run is over" in output
    assert 0 < teacher.stats()["completed_total"] == len(project.paid_lines()) < 800
    project.run("run", str(project.pipeline), "--budget", "wall=6 s", expect=2)


def test_a_damaged_ledger_refuses_a_run_with_caps_until_it_is_repaired(
    teacher_of: Teachers, project_of: Projects
) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url)
    project.run("run", str(project.pipeline), "--budget", "requests=20", expect=3)
    file = Path(project.root / ".tracefactory" / "spend" / "sums@1.ledger")
    damaged = file.read_bytes().replace(b'"r":[1', b'"r":[0', 1)
    file.write_bytes(damaged)
    output = project.run("run", str(project.pipeline), "--budget", "requests=30", expect=1)
    assert f"{file} is damaged at byte 0, so that it is not known what was spent" in output
    assert "`tracefactory fsck --repair`" in output
    assert "Traceback" not in output
    assert teacher.stats()["received"] == 20
    assert "not a line of a ledger" in project.run("plan", str(project.pipeline), "--budget", "requests=30", "--json")

    code, report = fsck(project)
    (found,) = report["damage"]
    assert (code, found["path"], found["place"]) == (1, str(file), "byte 0")
    assert found["consequence"].startswith("what was spent counts as at least 20 requests and 0.0")
    code, report = fsck(project, "--repair")
    assert (code, report["repaired"]) == (0, True)
    assert (Path(report["set_aside"]) / "spend" / file.name).read_bytes() == damaged
    project.run("run", str(project.pipeline), "--budget", "requests=30", expect=3)
    assert teacher.stats()["received"] == 30


def test_without_caps_a_damaged_ledger_is_a_warning(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url)
    project.run("run", str(project.pipeline), "--budget", "requests=20", expect=3)
    file = Path(project.root / ".tracefactory" / "spend" / "sums@1.ledger")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:7], b"\xff\r\x00 is no line\n", *lines[7:]]))
    place = sum(map(len, lines[:7]))
    project.running.append(project.start())
    assert project.running[-1].wait(120) == 0
    log = (project.root / "stderr.log").read_text()
    assert f"{file}, byte {place}: not a line of a ledger" in log
    assert "tracefactory fsck --repair" in log
    assert "Traceback" not in log
    assert teacher.stats()["received"] == ALL
    assert sum(one.requests for one in ledger(project, met=[].append).values()) == ALL
