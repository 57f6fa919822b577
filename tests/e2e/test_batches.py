"""A pipeline whose models have batches, as a user runs it: killed, stopped and finished; nothing is paid twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until


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


def test_killed_and_stopped_runs_leave_their_batches_to_the_next_run(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 12.0})
    project = with_batches(project_of(teacher.url))
    process = project.start()
    wait_until(lambda: teacher.stats()["batches"]["created"] == 2)
    kill_tree(process.pid)
    process.wait()
    without = project.pipeline.read_text().replace("batch: {window: 24h}, ", "")
    (project.root / "pipelines" / "without.yaml").write_text(without)
    said = project.run("run", str(project.root / "pipelines" / "without.yaml"), expect=1)
    assert "of its requests are in batch" in said
    assert "Put `batch:` back" in said
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
