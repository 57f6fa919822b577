"""A cluster that was started by the command line: joining it, and what it loses when parts of it are taken away."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until
from tests.e2e.ray_cluster import Cluster
from tests.e2e.test_pay_once import FAULTS, digests

REQUESTS = 160
JOINED = ["--set", "run.executor=ray", "--set"]


@pytest.fixture
def cluster_of() -> Iterator[Callable[..., Cluster]]:
    """Start clusters; they end with the test."""
    started: list[Cluster] = []

    def start(workers: int = 0) -> Cluster:
        started.append(Cluster())
        for _ in range(workers):
            started[-1].join()
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of who runs the command, which is not that of any node."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = tmp_path / "home"
    (found / ".ray").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(found))
    return found


def stderr_of(project: Project) -> str:
    return (project.root / "stderr.log").read_text()


def test_sigterm_drains_a_run_on_a_cluster_the_token_is_found_and_the_dataset_is_the_inline_one(
    home: Path,
    cluster_of: Callable[..., Cluster],
    teacher_of: Callable[..., Teacher],
    project_of: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inline = project_of(teacher_of(**FAULTS).url, name="inline")
    inline.forks = False  # the digests must not depend on the hash seed
    reference = digests(inline.make())
    cluster, teacher = cluster_of(), teacher_of(**{**FAULTS, "latency_s": 0.4})
    project = project_of(teacher.url)
    joined = [*JOINED, f"run.ray_address={cluster.address}"]
    command = ["run", str(project.pipeline), *joined]

    refused = project.run(*command, expect=2)
    assert "asks for a token, and there is none here" in refused
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    refused = project.run(*command, expect=2)
    assert "refuses the token of RAY_AUTH_TOKEN" in refused
    assert "Unauthenticated" not in refused  # which Ray says twenty times meanwhile
    assert "Traceback" not in refused
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert teacher.stats()["received"] == 0

    (home / ".ray" / "auth_token").write_text(str(cluster.token))
    process = project.start(*joined)
    wait_until(lambda: teacher.stats()["in_flight"] > 4 and len(project.paid_lines()) > 10)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "run the same command to continue" in stderr_of(project)
    assert "Traceback" not in stderr_of(project)
    assert "SIGTERM received" not in stderr_of(project)  # Ray's handler, which aborts
    assert len(project.paid_lines()) == teacher.stats()["completed_total"] < REQUESTS  # nothing was thrown away

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # as inside a Ray job
    project.forks = False
    outcome = project.make(*JOINED, "run.ray_address=auto")
    assert teacher.stats()["completed_total"] == len(project.paid_lines()) == REQUESTS
    assert outcome["stages"][-1]["tally"]["errors"] == 0
    assert digests(outcome) == reference


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "actor", "node", "head", "all"])
def test_whatever_is_taken_away_no_row_is_lost_and_nothing_is_paid_twice(
    victim: str,
    home: Path,
    cluster_of: Callable[..., Cluster],
    teacher_of: Callable[..., Teacher],
    project_of: Callable[..., Project],
) -> None:
    reference = project_of(teacher_of(accuracy=0.8).url, name="reference").make()
    # The workers of a lost head go on for a while, which must not be enough to finish.
    teacher = teacher_of(latency_s=15.0 if victim == "head" else 0.5, accuracy=0.8)
    cluster = cluster_of(2)
    (home / ".ray" / "auth_token").write_text(str(cluster.token))
    project = project_of(teacher.url, name="preempted")
    process = project.start(*JOINED, f"run.ray_address={cluster.address}")
    wait_until(lambda: len(project.paid_lines()) > 15)
    if victim in ("driver", "all"):
        kill_tree(process.pid)
    if victim == "actor":
        journals = (project.root / ".tracefactory" / "requests").glob("journal-*")
        for pid in {int(path.name.split("-")[-2]) for path in journals}:
            psutil.Process(pid).kill()
    if victim == "node":
        cluster.nodes[1].kill()
    if victim in ("head", "all"):
        for node in cluster.nodes if victim == "all" else cluster.nodes[:1]:
            node.kill()
    status = process.wait(300)
    assert status == {"actor": 0, "node": 0, "head": 1}.get(victim, -signal.SIGKILL)
    assert "Traceback" not in stderr_of(project)
    assert ("the head of the Ray cluster has not answered" in stderr_of(project)) == (victim == "head")
    if victim in ("head", "all"):
        cluster = cluster_of(1)
        (home / ".ray" / "auth_token").write_text(str(cluster.token))
    outcome = project.make(*JOINED, f"run.ray_address={cluster.address}")
    assert digests(outcome) == digests(reference)
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == REQUESTS
    again = teacher.stats()["completed_total"] - REQUESTS
    assert 0 <= again <= 32  # what was in flight: 16 of each of two models


@pytest.mark.slow
def test_a_node_that_does_not_fit_is_refused_with_the_remedy(
    home: Path,
    tmp_path: Path,
    cluster_of: Callable[..., Cluster],
    teacher_of: Callable[..., Teacher],
    project_of: Callable[..., Project],
) -> None:
    cluster, teacher = cluster_of(), teacher_of()
    project = project_of(teacher.url)
    (home / ".ray" / "auth_token").write_text(str(cluster.token))
    command = [*JOINED, f"run.ray_address={cluster.address}"]
    other = tmp_path / "other" / "tracefactory"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('No module named aiohttp')\n")
    node = cluster.join(PYTHONPATH=str(other.parent))
    refused = project.run("run", str(project.pipeline), *command, expect=2)
    assert "cannot import tracefactory: No module named aiohttp (pip install tracefactory==" in refused
    assert teacher.stats()["received"] == 0
    project.make(*command, "--set", "run.send_package=true")
    node.kill()

    around = ("bwrap", "--dev-bind", "/", "/", "--tmpfs", str(project.root))
    if shutil.which("bwrap") is None or subprocess.run([*around, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a node without the project's folder needs bubblewrap")
    cluster.join(around=around)
    refused = project.run("run", str(project.pipeline), *command, "--set", "version=2", expect=2)
    assert f"does not see the state folder {project.root / '.tracefactory'}: " in refused
    assert "move the project to a shared file system" in refused
    assert not list((project.root / ".tracefactory").glob("probe-*"))


def test_after_the_grace_period_the_process_ends_at_once(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(latency_s=600)
    project = project_of(teacher.url)
    process = project.start("--set", "run.grace_s=0.5")
    wait_until(lambda: teacher.stats()["in_flight"] > 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130  # and not when the requests are answered
    assert "at the latest in 0.5 s" in stderr_of(project)
    assert "stopped at once" in stderr_of(project)


@pytest.mark.slow
def test_sigterm_drains_a_run_with_a_ray_of_its_own_and_several_clients(
    home: Path, teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(latency_s=0.6)
    project = project_of(teacher.url, executor="ray")
    several = [f"--set=models.{name}.clients=3" for name in ("long_teacher", "short_teacher")]
    process = project.start(*several)
    wait_until(lambda: teacher.stats()["in_flight"] > 4 and len(project.paid_lines()) > 10)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "SIGTERM received" not in stderr_of(project)
    assert len(project.paid_lines()) == teacher.stats()["completed_total"] < REQUESTS
    assert project.make(*several)["stages"][-1]["tally"]["errors"] == 0
    assert teacher.stats()["completed_total"] == REQUESTS
    assert teacher.stats()["peak_in_flight"] <= 32  # 16 of each model, by three processes as by one
