"""The main job with a fake teacher: nothing is paid twice, nothing is lost, both executors make the same dataset."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import load_dataset

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until

FAULTS = {"accuracy": 0.8, "rate_429": 0.1, "rate_500": 0.1, "rate_drop": 0.05, "latency_s": 0.02, "latency_sigma": 0.5}


def digests(outcome: dict[str, Any]) -> dict[str, str]:
    return {stage["id"]: stage["digest"] for stage in outcome["stages"]}


def paid(outcome: dict[str, Any]) -> int:
    return int(sum(stage["paid"].get("requests", 0) for stage in outcome["stages"]))


def test_second_run_new_mix_and_more_samples(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS, rate_truncate=0.1, rate_empty=0.05, rate_refuse=0.05)
    project = project_of(teacher.url, size=40, samples=2)
    project.forks = False  # keys and digests must not depend on the hash seed
    first = project.make()
    assert paid(first) == 160
    assert teacher.stats()["completed_total"] == 160
    for stage in first["stages"]:
        tally = stage["tally"]
        assert tally["rows_in"] == tally["kept"] + tally["dropped"] + tally["errors"]
    by_id = {stage["id"]: stage["tally"] for stage in first["stages"]}
    assert by_id["checked"]["rows_in"] == by_id["clean"]["rows_in"] == 160
    assert by_id["mixed"]["kept"] == by_id["dataset"]["kept"] > 10

    second = project.make()
    assert all(stage["cached"] for stage in second["stages"])
    assert digests(second) == digests(first)
    project.forks = True

    half = ["--set", "stages.mixed.with.long=0.5", "--set", "stages.mixed.with.short=0.5"]
    refused = project.run("run", str(project.pipeline), *half, expect=2)
    assert "never changed" in refused
    remixed = project.make(*half, "--set", "version=1b")
    assert paid(remixed) == 0
    assert teacher.stats()["completed_total"] == 160

    more = ["--set", "version=1c", "--set", "stages.long.with.samples=4", "--set", "stages.short.with.samples=4"]
    plan = project.run("plan", str(project.pipeline), *more)
    assert "samples: 2 -> 4" in plan
    assert "160 requests to pay" in plan
    assert paid(project.make(*more)) == 160
    assert teacher.stats()["completed_total"] == 320
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == 320


@pytest.mark.slow  # on a cluster, and without processes of verifiers, test_cluster.py tests it
def test_ray_and_inline_make_the_same_dataset(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**FAULTS)
    inline = project_of(teacher.url, name="inline", gym=True)
    ray = project_of(teacher.url, executor="ray", name="ray", gym=True)
    inline.forks = ray.forks = False  # the digests must not depend on the hash seed
    assert digests(inline.make()) == digests(ray.make())
    assert teacher.stats()["completed_total"] == 320  # two projects, two stores


@pytest.mark.parametrize(
    ("executor", "kills", "longest_s"), [("inline", 2, 5.0), pytest.param("ray", 10, 14.0, marks=pytest.mark.slow)]
)
def test_kill_9_of_the_whole_tree_at_random_moments(
    executor: str, kills: int, longest_s: float, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**{**FAULTS, "latency_s": 0.3})
    reference = project_of(teacher.url, size=60, name="reference", gym=True).make()
    before = teacher.stats()["completed"]
    project = project_of(teacher.url, size=60, executor=executor, name="killed", gym=True)
    random.seed(11)
    for _ in range(kills):
        process = project.start()
        time.sleep(random.uniform(2.0, longest_s))
        kill_tree(process.pid)
        process.wait()
    outcome = project.make()
    assert digests(outcome) == digests(reference)
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == 240  # no completed request was paid again
    after = teacher.stats()["completed"]
    again = sum(after[key] - count for key, count in before.items()) - 240
    assert 0 <= again <= kills * 32  # only what was in flight when a kill came


@pytest.mark.parametrize("victim", ["driver", "actor"])
@pytest.mark.slow
def test_kill_9_of_only_the_driver_or_only_an_actor(
    victim: str, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(**{**FAULTS, "latency_s": 0.5})
    reference = project_of(teacher.url, name="reference", gym=True).make()
    project = project_of(teacher.url, executor="ray", name="killed", gym=True)
    process = project.start()
    wait_until(lambda: len(project.paid_lines()) > 20)
    if victim == "driver":
        process.kill()
        process.wait()
        outcome = project.make()
    else:
        writers = {int(path.name.split("-")[-2]) for path in _journals(project.root)}
        actors = [pid for pid in writers if psutil.pid_exists(pid) and pid != process.pid]
        assert actors, "no actor was writing completions"
        for pid in actors:
            psutil.Process(pid).kill()
        assert process.wait(120) == 0
        outcome = project.make()
        assert all(stage["cached"] for stage in outcome["stages"])
    assert digests(outcome) == digests(reference)
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == 160


def test_ctrl_c_keeps_what_is_in_flight_and_says_how_to_go_on(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(latency_s=0.6)
    project = project_of(teacher.url, size=60)
    process = project.start()
    wait_until(lambda: teacher.stats()["in_flight"] > 4 and len(project.paid_lines()) > 10)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    output = (project.root / "stderr.log").read_text()
    assert "run the same command to continue" in output
    assert "Traceback" not in output
    assert len(project.paid_lines()) == teacher.stats()["completed_total"] < 240  # nothing in flight was thrown away
    before = len(project.paid_lines())
    assert paid(project.make()) == 240 - before
    assert teacher.stats()["completed_total"] == 240


def test_two_runs_at_once_pay_once(teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]) -> None:
    teacher = teacher_of(latency_s=0.2)
    project = project_of(teacher.url)
    processes = [project.start(), project.start()]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert teacher.stats()["completed_total"] == len(project.paid_lines()) == 160


def test_the_dataset_loads(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project], tmp_path: Path
) -> None:
    project = project_of(teacher_of(accuracy=0.9).url)
    outcome = project.make()
    release = project.root / "out" / "sums" / "1"
    rows = load_dataset(str(release), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == outcome["stages"][-1]["tally"]["kept"]
    assert {message["role"] for row in rows for message in row["completion"]} == {"assistant"}
    styles = rows["style"]
    assert list(styles).count("long") == round(0.2 * rows.num_rows)


def _journals(root: Path) -> list[Path]:
    return sorted((root / ".tracefactory" / "requests").glob("journal-*.jsonl"))
