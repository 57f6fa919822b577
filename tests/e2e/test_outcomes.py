"""Every run that ends says how: `show` tells the reason and what was spent, `show --list` tells it of all runs."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until
from tracefactory.core.errors import BudgetReached, Interrupted, RunError, RunStopped
from tracefactory.engine.runs import End

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]


def shown(project: Project) -> dict[str, Any]:
    return json.loads(project.run("show", "--json"))


def listed(project: Project) -> list[dict[str, Any]]:
    return json.loads(project.run("show", "--list", "--json"))


def test_show_tells_how_every_run_has_ended(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.4)
    project = project_of(teacher.url)
    # A few requests at once, so that a run can be stopped in the middle on a slow machine too.
    project.pipeline.write_text(project.pipeline.read_text().replace("retries: 8", "retries: 8, concurrency: 4"))
    assert project.run("show", "--list", "--json").strip() == "[\n]".replace("\n", "")
    process = project.start()
    wait_until(lambda: teacher.stats()["received"] > 8)
    assert [one["state"] for one in listed(project)] == ["running"]
    running = shown(project)
    assert (running["state"], [one["id"] for one in running["stages"] if one["done"]]) == ("running", ["problems"])
    assert "the run goes on" in project.run("show", running["run"])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    outcome, paid = shown(project), len(project.paid_lines())
    assert (outcome["state"], outcome["reason"]) == ("interrupted", "")
    assert sum(one["requests"] for one in outcome["spend"]) == paid > 0
    done = {one["id"]: one["done"] for one in outcome["stages"]}
    assert (done["problems"], done["mixed"], done["dataset"]) == (True, False, False)
    text = project.run("show")
    assert "the run was interrupted" in text
    assert f"{paid} requests paid in this run" in text
    assert "has not finished (interrupted)" in project.run("explain", "0", "--run", outcome["run"], expect=2)

    process = project.start()
    wait_until(lambda: teacher.stats()["received"] > paid + 16)
    kill_tree(process.pid)
    process.wait()
    wait_until(lambda: teacher.stats()["in_flight"] == 0)
    killed = shown(project)
    assert (killed["state"], killed["run"] > outcome["run"]) == ("killed", True)
    # What was in flight counts too: the provider may have billed it.
    assert sum(one["requests"] for one in killed["spend"]) >= len(project.paid_lines()) - paid > 0
    text = " ".join(project.run("show", killed["run"]).split())
    assert "the run was killed" in text
    assert "problems 40 40" in text
    project.run("run", str(project.pipeline), "--budget", "requests=150", expect=3)
    at_cap = shown(project)
    assert at_cap["state"] == "cap"
    assert "150 requests: 150 requests are spent" in at_cap["reason"]
    assert "the run was stopped by a cap: " in " ".join(project.run("show").split())
    project.make()
    assert shown(project)["state"] == "finished"

    found = listed(project)
    assert [one["state"] for one in found] == ["interrupted", "killed", "cap", "finished"]
    assert [one["requests"] is None for one in found] == [False, True, False, False]
    table = project.run("show", "--list").splitlines()
    assert max(map(len, table)) <= 80
    assert all(any(one["run"] in line and one["state"] in line for line in table) for one in found)


def test_show_tells_why_a_run_was_stopped_or_has_failed(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(outage={"after": 30, "requests": 1, "status": 402})
    project = project_of(teacher.url)
    output = project.run("run", str(project.pipeline), expect=1)
    assert re.search(r"^ problems +40 +40 +0 +0 +done", output, re.MULTILINE)
    assert re.search(r"^ (long|short) .* failed", output, re.MULTILINE)
    assert output.splitlines()[-1].startswith("failed: ")
    outcome = shown(project)
    assert outcome["state"] == "stopped"
    assert "add credit" in outcome["reason"]
    assert sum(one["requests"] for one in outcome["spend"]) == len(project.paid_lines()) >= 30
    assert "add credit" in " ".join(project.run("show").split())
    part = next((project.root / ".tracefactory" / "stages").glob("problems-*/problems-*.parquet"))
    part.write_bytes(part.read_bytes()[:-50])
    project.run("run", str(project.pipeline), expect=1)
    failed = shown(project)
    assert failed["state"] == "failed"
    assert part.name in failed["reason"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (BudgetReached("x"), "cap"),
        (RunStopped("x"), "stopped"),
        (RunError("x"), "failed"),
        (AssertionError("x"), "failed"),
        (Interrupted(), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_the_end_of_a_run_goes_by_what_it_raised(error: BaseException | None, state: str) -> None:
    assert End.of(error) == state
