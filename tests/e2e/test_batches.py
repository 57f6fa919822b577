"""A pipeline whose models have batches, as a user runs it: killed, stopped and finished; nothing is paid twice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]


def paid(outcome: dict[str, Any], what: str = "requests") -> float:
    return sum(stage["paid"].get(what, 0) for stage in outcome["stages"])


def kept(outcome: dict[str, Any]) -> list[int]:
    return [stage["tally"]["kept"] for stage in outcome["stages"]]


def with_batches(project: Project) -> Project:
    """Give both teachers batches."""
    text = project.pipeline.read_text()
    assert text.count("{use: openai, ") == 2
    project.pipeline.write_text(text.replace("{use: openai, ", "{use: openai, batch: {window: 24h}, "))
    return project


def once(teacher: Teacher) -> dict[str, Any]:
    """Return the server's counts, after a look that no completion was billed twice."""
    stats = teacher.stats()
    assert set(stats["completed"].values()) == {1}
    return stats


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits for batches in the processes of runs."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "quick"))


@pytest.mark.slow
def test_a_run_with_batches_makes_what_a_run_without_makes_for_less(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    online = project_of(teacher_of(accuracy=0.8).url, name="online").make()
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 1.0, "refuse_creates": 1})
    project = with_batches(project_of(teacher.url, name="batches"))
    outcome = project.make()
    assert kept(outcome) == kept(online)
    assert paid(outcome) == 160
    assert 0.4 < paid(outcome, "cost") / paid(online, "cost") < 0.7, "batches are at half the price, the canary is not"
    stats = once(teacher)
    assert stats["completed_total"] == 160
    assert len(stats["batches"]["sizes"]) == 2, "all requests of a stage are in one batch, but for those of the canary"
    assert all(size > 60 for size in stats["batches"]["sizes"])
    assert all(stage["cached"] for stage in project.make()["stages"])
    assert teacher.stats()["completed_total"] == 160


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_killed_and_stopped_runs_leave_their_batches_to_the_next_run(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 22.0})
    project = with_batches(project_of(teacher.url))
    process = project.start()
    wait_until(lambda: teacher.stats()["batches"]["created"] == 2)
    kill_tree(process.pid)
    process.wait()
    written = project.pipeline.read_text()
    project.pipeline.write_text(written.replace("batch: {window: 24h}, ", ""))
    output = project.run("run", str(project.pipeline), expect=1)
    assert "of its requests are in batch" in output
    assert "Put `batch:` back" in output
    project.pipeline.write_text(written)
    process = project.start()
    log = project.root / "stderr.log"
    wait_until(lambda: "wait at 127.0.0.1" in log.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in log.read_text()
    outcome = project.make()
    assert outcome["stages"][-1]["tally"]["kept"] > 10
    stats = once(teacher)
    assert len(stats["batches"]["sizes"]) == 2
    assert stats["completed_total"] == 160
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == 160


def kill_with_batches(project: Project, teacher: Teacher, *arguments: str) -> None:
    """Start a run, and kill it when both teachers have a batch."""
    process = project.start(*arguments)
    wait_until(lambda: teacher.stats()["batches"]["created"] == 2)
    kill_tree(process.pid)
    process.wait()


@pytest.mark.usefixtures("quick")
def test_a_killed_run_at_its_cap_gets_what_is_in_its_batches(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 5.0})
    project = with_batches(project_of(teacher.url, size=10))
    cap = ("--budget", "requests=40")  # all of the run, not one more
    kill_with_batches(project, teacher, *cap)
    outcome = project.make(*cap)
    assert once(teacher)["completed_total"] == 40 == len(set(project.paid_lines()))
    assert teacher.stats()["batches"]["created"] == 2
    assert sum(line["requests"] for line in outcome["spend"]) <= 40


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_on_ray_a_killed_run_at_its_cap_stores_all_and_tells_a_bill_that_differs(
    teacher_of: Teachers, project_of: Projects
) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 5.0, "misbilled": 7})
    project = with_batches(project_of(teacher.url, size=10, executor="ray"))
    kill_with_batches(project, teacher, "--budget", "requests=40")
    output = project.run("run", str(project.pipeline), "--budget", "requests=40", expect=1)
    assert "it bills" in output
    assert "Traceback" not in output
    assert once(teacher)["completed_total"] == 40 == len(set(project.paid_lines()))
    assert teacher.stats()["batches"]["created"] == 2
    assert teacher.stats()["batches"]["files"], "nothing is deleted at the provider"


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_at_a_cap_batches_that_were_submitted_are_waited_for(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 4.0})
    project = with_batches(project_of(teacher.url, size=10))
    kill_with_batches(project, teacher, "--budget", "requests=30")
    output = project.run("run", str(project.pipeline), "--budget", "requests=30", expect=3)
    assert "10 requests are missing" in output
    assert once(teacher)["completed_total"] == 30 == len(project.paid_lines())


@pytest.mark.usefixtures("quick")
def test_a_bill_that_differs_ends_the_run_when_everything_is_stored(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"misbilled": 7})
    project = with_batches(project_of(teacher.url, size=10))
    output = project.run("run", str(project.pipeline), expect=1)
    assert "it bills" in output
    assert "Traceback" not in output
    assert len(project.paid_lines()) == once(teacher)["completed_total"]
    assert teacher.stats()["batches"]["files"], "nothing is deleted at the provider"


@pytest.mark.slow
def test_sixty_thousand_requests_are_two_files(teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(style="short", batch={"delay_s": 1.0})
    project = project_of(teacher.url, size=17_000, samples=4)  # some of the problems are the same
    text = with_batches(project).pipeline.read_text()
    stages = [line for line in text.splitlines() if not line.startswith("  - {id:")]
    sampled = "  - {id: long, sample: chat, from: problems, with: {model: long_teacher, prompt: short, samples: 4}}"
    project.pipeline.write_text("\n".join([*stages[:-1], sampled, stages[-1], ""]))
    process = subprocess.Popen([*project.command("run", str(project.pipeline)), "--json"], cwd=project.root)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    stats = once(teacher)
    small, large = sorted(stats["batches"]["sizes"])
    assert large == 50_000
    assert stats["completed_total"] == small + large + 4 > 60_000, "all but the canary are in two files"
    print(f"peak RSS: {used.ru_maxrss >> 10} MB")
    assert used.ru_maxrss < 1_500 << 10
    assert all(stage["cached"] for stage in project.make()["stages"])
    assert teacher.stats()["completed_total"] == small + large + 4
