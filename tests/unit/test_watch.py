"""`tracefactory watch`: a run of another process is followed from its folder to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tracefactory.cli import main
from tracefactory.cli import watch as command
from tracefactory.engine.plan import Plan
from tracefactory.engine.reporting import watching
from tracefactory.engine.reporting.watching import LogReader
from tracefactory.engine.runs import End, RunFolder, RunOutcome
from tracefactory.store.shared import cloud, runs

STAGE = {"stage": "short", "state": "runs", "shards_done": 1, "shards": 8, "kept": 9, "dropped": 0, "errors": 1}
STAGE |= {"requests": 1234567, "in_flight": 40, "elsewhere": 2, "cost": 1.5, "unpriced": 0, "waiting": ""}
Watch = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "POLL_S", 0.02)
    root = tmp_path / "project"
    (root / "pipelines").mkdir(parents=True)
    return root


@pytest.fixture
def watch(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Watch:
    """Run `tracefactory watch` in this process; return what it prints when it ends with the expected status."""

    def run(*arguments: str, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["tracefactory", "watch", *arguments, "--project", str(project)])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        assert (end.value.code or 0) == expect, output.out + output.err
        return output.out + output.err

    return run


def begun(project: Path) -> RunFolder:
    run = RunFolder(project / ".tracefactory", "sums")
    run.begin({"name": "sums"}, Plan(pipeline="sums", version="1", stages=()))
    return run


def ended(run: RunFolder, state: End = End.FINISHED, status: int | None = None, reason: str = "") -> None:
    started = run.started
    outcome = RunOutcome(run=run.id, pipeline="sums", version="1", started=started, finished=started + 1, stages=())
    run.finish(outcome.model_copy(update={"state": state, "exit_status": status, "reason": reason}))
    run.close()


@pytest.fixture
def later() -> Iterator[Callable[..., None]]:
    """Do something in a thread, after 0.1 s."""
    threads: list[threading.Timer] = []

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Timer(0.1, work))
        threads[-1].start()

    yield start
    for one in threads:
        one.join()


@pytest.mark.parametrize(
    ("state", "stored", "status"),
    [
        (End.FINISHED, 0, 0),
        (End.CAP, 3, 3),
        (End.FAILED, 1, 1),
        (End.FAILED, 2, 2),
        (End.INTERRUPTED, 130, 130),
        (End.STOPPED, None, 1),  # of an earlier version
    ],
)
def test_it_ends_with_the_status_of_a_run_that_has_ended(
    state: End, stored: int | None, status: int, project: Path, watch: Watch
) -> None:
    ended(begun(project), state, stored, "why it ended")
    output = watch(expect=status)
    assert "sums 1" in output
    assert ("why it ended" in output) is (state is not End.FINISHED)
    assert json.loads(watch("--json", expect=status).splitlines()[-1])["exit_status"] == status


def test_a_killed_run_and_one_that_left_at_once(project: Path, watch: Watch) -> None:
    killed = begun(project)
    killed.close()
    assert "the run was killed" in watch(expect=137)
    left = begun(project)
    left.log("left", exit_status=130)
    left.close()
    watch(left.id, expect=130)
    unplanned = RunFolder(project / ".tracefactory", "sums")
    unplanned.log("left", exit_status=130)
    unplanned.close()
    assert "before it was planned" in watch(expect=130)


def test_a_run_is_followed_to_its_end(project: Path, watch: Watch, later: Callable[..., None]) -> None:
    run = begun(project)
    path = run.path / "log.jsonl"

    def work() -> None:
        run.log("progress", stages=[STAGE, {"stage": "next", "state": "waits"}], models=[])
        run.log("row_failed", stage="short", kind="timeout", problem="p", message="\x1b[2J took too long " * 20)
        whole = json.dumps({"event": "model", "model": "teacher", "notice": "is starting"}) + "\n"
        for part in (whole[:30], whole[30:]):
            with path.open("a") as file:
                file.write(part)
            time.sleep(0.1)
        path.rename(run.path / "log.1.jsonl")
        time.sleep(0.1)
        path.write_text('{"event": "model", "model": "teacher", "notice": "ready"}\n')
        time.sleep(0.1)
        ended(run, End.CAP, 3, "enough")

    later(work)
    output = watch(run.id, expect=3)
    lines = output.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in output
    flat = " ".join(output.split())
    assert "short: runs; 1/8 shards, kept 9, dropped 0, errors 1, requests 1,234,567, 40 in flight" in flat
    assert "40 in flight, 2 wait for another process, 1.5000 $" in flat
    assert "short: a row failed (timeout): \\u001b[2J took too long" in flat
    assert flat.index("teacher: is starting") < flat.index("teacher: ready") < flat.index("enough")
    assert "next" not in flat


def test_a_run_that_has_not_begun_is_waited_for(project: Path, watch: Watch, later: Callable[..., None]) -> None:
    later(lambda: ended(begun(project), End.FINISHED, 0))
    assert "no run has begun" in watch()


def test_an_unknown_run_is_a_mistake(project: Path, watch: Watch) -> None:
    run = begun(project)
    ended(run)
    assert run.id in watch(f"{run.id}x", expect=2)
    assert "no run ../.. under" in watch("../..", expect=2)


def test_hostile_lines_are_counted_and_passed_over(project: Path, watch: Watch) -> None:
    run = begun(project)
    with (run.path / "log.jsonl").open("ab") as file:
        for line in (b"\xff\xfe\x00", b"[1]", b'{"event": 5}', b"[" * 100_000, b"", b"null", b"x" * 100):
            file.write(line + b"\n")
    hostile: list[Any] = [{"stages": 5}, {"stages": [None, {"kept": {}}, {"stage": "\x1b[2J", "requests": "[/b]"}]}]
    for what in hostile:
        run.log("progress", **what)
    run.log("waiting", stage={"a": 1})
    ended(run, End.FINISHED, 0)
    output = watch()
    assert "6 lines of" in output
    assert "\x1b" not in output


def test_a_run_of_another_host_is_killed_when_it_is_silent(
    project: Path, watch: Watch, later: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STALE_S", 1.0)
    run = begun(project)
    text = (run.path / "log.jsonl").read_text()
    run.close()  # its locks are not seen here
    (run.path / "log.jsonl").write_text(text.replace('"host": "', '"host": "elsewhere-'))

    def work() -> None:
        for _ in range(15):
            with (run.path / "log.jsonl").open("a") as file:
                file.write('{"event": "model", "model": "teacher", "notice": "alive"}\n')
            time.sleep(0.1)

    later(work)
    assert watch(expect=137).count("alive") == 15


def test_runs_of_a_shared_state_are_fetched(project: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEFACTORY_SHARED", "s3://bucket/folder")
    monkeypatch.setattr(cloud, "open_objects", lambda url: url)
    monkeypatch.setattr(command, "PULL_S", 0.02)
    asked = []

    def pull(root: Path, objects: object) -> None:
        asked.append(objects)
        if len(asked) == 2:
            raise cloud.Unreachable("gone\x1b for a while")
        if len(asked) == 3:
            ended(begun(project), End.FINISHED, 0)

    monkeypatch.setattr(runs, "pull_runs", pull)
    output = watch()
    assert asked == ["s3://bucket/folder"] * 3
    assert "the shared state is not seen now: gone\\u001b for a while" in output


def test_a_damaged_record_is_said(project: Path, watch: Watch) -> None:
    run = begun(project)
    ended(run)
    (run.path / "outcome.json").write_text("{")
    assert "outcome.json" in watch(expect=1)


def test_a_reader_holds_no_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(watching, "_CHUNK", 100)
    reader = LogReader(tmp_path / "log.jsonl")
    assert reader.new() == []
    (tmp_path / "log.jsonl").write_text("x" * 5000)
    assert reader.new() == []
    assert len(reader._rest) <= 1000
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('xx\n{"event": "a"}\n{"event"')
    assert [one["event"] for one in reader.new()] == ["a"]
    assert reader.damaged == 1
    (tmp_path / "log.jsonl").write_text('{"event": "b"}\n')  # cut, and written anew
    assert [one["event"] for one in reader.new()] == ["b"]
    (tmp_path / "log.jsonl").unlink()
    assert reader.new() == []
    (tmp_path / "log.jsonl").write_text('{"event": "c"}\n')
    assert [one["event"] for one in reader.new()] == ["c"]
    reader.close()


def test_a_real_run_is_told_from_its_begin_to_its_end(project: Path, watch: Watch) -> None:
    pipeline = project / "pipelines" / "p.yaml"
    pipeline.write_text("name: p\nversion: '1'\nstages: [{id: sums, source: files, with: {paths: sums.jsonl}}]\n")
    (project / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    run = [sys.executable, "-m", "tracefactory", "run", str(pipeline), "--metrics-port", "0"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "metrics: http://127.0.0.1:" in done.stderr
    events = [json.loads(line)["event"] for line in watch("--json").splitlines()]
    assert events[0] == "run_begun"
    assert events[-2:] == ["run_ended", "ended"]
    assert {"stage_begun", "stage_done", "progress", "metrics", "workers"} <= set(events)
