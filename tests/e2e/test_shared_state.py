"""Machines with state folders of their own that share an object store: what one paid for, no other pays for again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until
from tests.s3_server import BUCKET, S3Server, environment, running

FAULTS = {"accuracy": 0.8, "latency_s": 0.3, "latency_sigma": 0.3}
SIZE, SAMPLES = 24, 2
REQUESTS = 2 * SIZE * SAMPLES

QUICK = '''
"""Puts what is new after a second, and looks often at what others hold: this test does not wait for minutes."""

from tracefactory.engine import sharing
from tracefactory.store.shared import completions, leases

completions.SEGMENT_S = sharing.SYNC_S = 1.0
completions.RETRY_S = 0.2
leases.POLL_S = 0.5
'''


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    quick = tmp_path / "quick"
    quick.mkdir()
    (quick / "sitecustomize.py").write_text(QUICK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(quick), str(Path(__file__).parents[2])]))
    with running(S3Server()) as one:
        for name, value in environment(one).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TRACEFACTORY_SHARED", f"s3://{BUCKET}/state")
        yield one


def digests(outcome: dict[str, Any]) -> dict[str, str]:
    return {stage["id"]: stage["digest"] for stage in outcome["stages"]}


def paid(outcome: dict[str, Any]) -> int:
    return int(sum(stage["paid"].get("requests", 0) for stage in outcome["stages"]))


def put_keys(server: S3Server) -> set[int]:
    """Return the first 64 bits of the key of every completion in the shared state."""
    indexes = [stored.content for name, stored in list(server.objects.items()) if name.startswith("state/indexes/")]
    return {
        key
        for one in indexes
        for key in np.frombuffer(one, np.uint64, int.from_bytes(one[8:16], "little"), 24).tolist()
    }


def kill(process: subprocess.Popen[str], server: S3Server) -> None:
    """End a machine for good: what it had sent to the store has arrived, and its leases have expired."""
    kill_tree(process.pid)
    process.wait()
    wait_until(lambda: not server.working, 20)
    for name, stored in server.objects.items():
        if name.startswith("state/leases/"):
            server.objects[name] = stored._replace(modified=0.0)


def slowed(project: Project) -> Project:
    """Let a run have 4 requests in flight, so that it takes seconds and can be stopped between them."""
    text = project.pipeline.read_text()
    assert text.count("{use: openai, ") == 2
    project.pipeline.write_text(text.replace("{use: openai, ", "{use: openai, concurrency: 2, "))
    return project


def test_a_machine_goes_on_where_another_was_killed_and_a_third_pays_nothing(
    server: S3Server,
    teacher_of: Callable[..., Teacher],
    project_of: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = teacher_of(**FAULTS)
    one, two, three, alone = (project_of(teacher.url, size=SIZE, samples=SAMPLES, name=name) for name in "abcd")
    process = slowed(one).start()  # it has seconds to go when the first completions are put
    wait_until(lambda: len(put_keys(server)) > 10, 120)
    kill(process, server)
    known = len(put_keys(server))
    assert known < REQUESTS
    second = two.make()
    # Only what was in flight, or arrived since the last segment was put, is paid for again.
    assert paid(second) == REQUESTS - known
    asked = teacher.stats()["completed_total"]
    third = three.make()
    assert (paid(third), teacher.stats()["completed_total"]) == (0, asked)
    assert digests(third) == digests(second)
    assert len(put_keys(server)) == REQUESTS
    monkeypatch.delenv("TRACEFACTORY_SHARED")
    assert digests(alone.make()) == digests(second)


def test_after_sigterm_everything_that_was_answered_is_in_the_shared_state(
    server: S3Server, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS)
    project = slowed(project_of(teacher.url, size=SIZE, samples=SAMPLES))
    process = project.start()
    wait_until(lambda: teacher.stats()["completed_total"] > 10, 120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130, (project.root / "stderr.log").read_text()
    answered = teacher.stats()["completed_total"]
    assert 10 < answered < REQUESTS
    assert len(put_keys(server)) == answered
    # Those of shards are free with that of the run.
    held = {name: one.content for name, one in server.objects.items() if name.startswith("state/leases/")}
    assert {content for name, content in held.items() if "-of-" not in name} == {b"{}"}
    assert any(name.startswith("state/leases/runs/") for name in held)


def test_batches_of_a_killed_machine_are_fetched_by_another(
    server: S3Server,
    teacher_of: Callable[..., Teacher],
    project_of: Callable[..., Project],
    tmp_path: Path,
) -> None:
    waits = (Path(__file__).parent / "quick" / "sitecustomize.py").read_text()
    with (tmp_path / "quick" / "sitecustomize.py").open("a") as file:
        file.write(waits)
    teacher = teacher_of(accuracy=0.8, batch={"delay_s": 8.0})
    one, two = (project_of(teacher.url, size=SIZE, samples=SAMPLES, name=name) for name in "ab")
    for project in (one, two):
        text = project.pipeline.read_text().replace("{use: openai, ", "{use: openai, batch: {window: 24h}, ")
        project.pipeline.write_text(text)
    process = one.start()
    submitted = b'"state": "submitted"'
    wait_until(
        lambda: (
            sum(
                name.startswith("state/batches/") and submitted in stored.content
                for name, stored in list(server.objects.items())
            )
            == 2
        ),
        120,
    )
    kill(process, server)
    known = len(put_keys(server))  # the canaries
    second = two.make()
    assert paid(second) == REQUESTS - known
    stats = teacher.stats()
    assert stats["batches"]["created"] == 2
    assert stats["completed_total"] <= REQUESTS + 2
    assert len(put_keys(server)) == REQUESTS
    assert not [name for name in server.objects if name.startswith("state/batches/")]


@pytest.mark.slow
def test_on_ray_what_the_workers_are_answered_is_put_and_another_machine_pays_nothing(
    server: S3Server, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS)
    one = project_of(teacher.url, size=SIZE, samples=SAMPLES, executor="ray", name="a")
    two = project_of(teacher.url, size=SIZE, samples=SAMPLES, executor="ray", name="b")
    first = one.make()
    assert len(put_keys(server)) == paid(first) == REQUESTS
    second = two.make()
    assert paid(second) == 0
    assert teacher.stats()["completed_total"] == REQUESTS
    assert digests(second) == digests(first)


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_two_machines_at_once_pay_once_and_make_the_same(
    executor: str, server: S3Server, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS)
    one, two = (project_of(teacher.url, size=SIZE, samples=SAMPLES, name=name, executor=executor) for name in "ab")
    first = one.start()
    second = two.make()
    assert first.wait(120) == 0
    assert teacher.stats()["completed_total"] == REQUESTS
    assert len(put_keys(server)) == REQUESTS
    (outcome,) = (one.root / ".tracefactory" / "runs").glob("*/outcome.json")
    assert digests(json.loads(outcome.read_text())) == digests(second)


def test_caps_hold_for_two_machines_together(
    server: S3Server, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS)
    one, two = (project_of(teacher.url, size=SIZE, samples=SAMPLES, name=name) for name in "ab")
    cap = ("--budget", "requests=60")
    assert "60" in one.run("run", str(one.pipeline), *cap, expect=3)
    asked = teacher.stats()["completed_total"]
    assert asked == 60
    assert "60" in two.run("run", str(two.pipeline), *cap, expect=3)
    assert teacher.stats()["completed_total"] == asked
