"""A full disk under the command line: it waits or ends with a sentence, and no paid answer is paid for again."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Project, Teacher, wait_until

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]
ALL = 160  # requests of the pipeline
FAILED = re.compile(r"^failed: .*could not be written \(.*; free space", re.MULTILINE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where the project `demo` keeps its state."""
    folder = tmp_path / "demo" / ".tracefactory"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system of 8 MB can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk cannot be filled")


def start_and_fill(project: Project, teacher: Teacher, folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a run, fill the disk while requests are in flight, and wait until it sends nothing more."""
    process = project.start()
    wait_until(lambda: teacher.stats()["completed_total"] > 40)
    ballast = fill(folder)
    wait_until(lambda: "no request is sent" in (project.root / "stderr.log").read_text())
    wait_until(lambda: teacher.stats()["in_flight"] == 0)
    received = teacher.stats()["received"]
    time.sleep(2)
    assert teacher.stats()["received"] == received < ALL
    return process, ballast


def test_a_full_disk_costs_no_paid_answer(small_disk: Path, teacher_of: Teachers, project_of: Projects) -> None:
    teacher = teacher_of(latency_s=0.5)
    project = project_of(teacher.url)
    process, ballast = start_and_fill(project, teacher, small_disk)
    ballast.unlink()
    # Paid answers have waited for space; the run has gone on, or ended where something else could not be written.
    code = process.wait(120)
    log = (project.root / "stderr.log").read_text()
    assert "Traceback" not in log
    assert "paid answers wait in memory" in log
    assert code == (1 if FAILED.search(log) else 0)
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == teacher.stats()["completed_total"]
    project.make()
    assert teacher.stats()["completed_total"] == ALL


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True])
def test_a_run_that_is_stopped_on_a_full_disk_loses_at_most_what_it_names(
    small_disk: Path, teacher_of: Teachers, project_of: Projects, at_once: bool
) -> None:
    teacher = teacher_of(latency_s=0.5)
    project = project_of(teacher.url)
    process, ballast = start_and_fill(project, teacher, small_disk)
    paid = teacher.stats()["completed_total"]
    process.send_signal(signal.SIGINT)
    log = project.root / "stderr.log"
    wait_until(lambda: "Ctrl-C again" in log.read_text())
    if at_once:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    ballast.unlink()
    assert process.wait(60) == (1 if FAILED.search(log.read_text()) else 130)
    assert "Traceback" not in log.read_text()
    lost = paid - len(set(project.paid_lines()))
    waiting = re.findall(r"(\d+) paid answers wait in memory", log.read_text())
    assert lost == 0 or (at_once and lost <= max(map(int, waiting)))
    project.make()
    assert teacher.stats()["completed_total"] == ALL + lost


def test_a_run_on_a_disk_that_is_full_already_pays_nothing(
    small_disk: Path, teacher_of: Teachers, project_of: Projects
) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url)
    ballast = fill(small_disk)
    output = project.run("run", str(project.pipeline), expect=1)
    assert "No space left on device" in output
    assert "run the same command again" in output
    assert "Traceback" not in output
    assert teacher.stats()["received"] == 0
    ballast.unlink()
    project.make()
    assert teacher.stats()["completed_total"] == ALL
