"""The log of a run: what is in it, how large it can become, and what cannot get into it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tracefactory.config import load_pipeline
from tracefactory.core.model import RequestFailed
from tracefactory.core.pipeline import RunOptions
from tracefactory.engine.executors.ray import RayExecutor, _Member
from tracefactory.engine.reporting import log as log_module
from tracefactory.engine.reporting.events import Events
from tracefactory.engine.reporting.log import EARLIER, LIMIT, LOG, RunLog, one_line
from tracefactory.engine.run import run_pipeline
from tracefactory.testing import fake_teacher
from tracefactory.testing.run import unwatched

SECRET = "sk-canary-7f3a9c"


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path, "r", {"TEACHER_KEY": SECRET, "PORT": "80"})


def lines(log: RunLog, name: str = LOG) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log.path.parent / name).read_text().split("\n")[:-1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two\n lines\tand \r\n more", "two lines and more"),
        ("\x1b[31mred\x07", "\\u001b[31mred\\u0007"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("\ud800 and \x85 and \u2028", "\\ud800 and and"),
        ("é 漢 🙂", "é 漢 🙂"),
        ("", ""),
        ("x" * 5000, "x" * 999 + "…"),
        ("\x00" * 1_000_000, "\\u0000" * 166 + "\\u0…"),
        (" " * 5000 + "x", "…"),
    ],
    ids=["spaces", "escape", "bidi", "separators", "letters", "empty", "long", "huge", "blank"],
)
def test_a_text_becomes_one_line_that_is_safe_to_print(text: str, message: str) -> None:
    assert one_line(text) == message


def test_every_line_has_time_event_and_run_and_no_secret(log: RunLog) -> None:
    log.write(
        "waiting", text=f"key {SECRET}\x1b", more={SECRET: [SECRET * 2000, float("nan"), 80, None, True, Path("/x")]}
    )
    (line,) = lines(log)
    assert SECRET not in log.path.read_text()
    assert line.pop("time") > 0
    assert line.pop("more")["env:TEACHER_KEY"][1:] == [None, 80, None, True, "/x"]
    assert line == {"event": "waiting", "run": "r", "text": "key env:TEACHER_KEY\\u001b"}


def test_a_secret_is_not_cut_in_two(log: RunLog) -> None:
    log.write("waiting", text="x" * 995 + SECRET)
    assert "sk-" not in log.path.read_text()


def test_a_secret_in_a_long_message_is_not_cut_in_two() -> None:
    events = Events()
    for blanks in range(1900, 2001, len(SECRET) - 1):
        events.row_failed("s", 0, "row", "problem", "timeout", "x" + " " * blanks + SECRET + " y" * 100)
    told = [one["message"] for one in events.take()]
    assert all("sk-" not in one or SECRET in one for one in told)
    assert any(SECRET in one for one in told)


def test_a_million_failures_are_some_lines_and_a_count(log: RunLog) -> None:
    for worker in (Events(), Events()):
        for number in range(5 * LIMIT):
            worker.row_failed("checked", 3, f"row{number}", f"problem{number}", "timeout", "took too long " * 1000)
        worker.request_failed("long", "key", "problem", RequestFailed("quota", "no credit", attempts=2, retryable=True))
        for one in worker.take():
            log.write(**one)
        assert worker.take() == []
    found = lines(log)
    rows = [one for one in found if one["event"] == "row_failed"]
    assert len(rows) == LIMIT
    assert {"stage": "checked", "shard": 3, "kind": "timeout", "row": "row0", "problem": "problem0"}.items() <= rows[
        0
    ].items()
    (request, _) = (one for one in found if one["event"] == "request_failed")
    assert {"stage": "long", "request": "key", "attempts": 2, "owed": True, "kind": "quota"}.items() <= request.items()
    log.write("run_ended", state="failed")
    assert lines(log)[-1]["failures"] == [
        {"event": "request_failed", "stage": "long", "kind": "quota", "count": 2},
        {"event": "row_failed", "stage": "checked", "kind": "timeout", "count": 10 * LIMIT},
    ]


def test_the_log_has_a_bounded_size(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MAX_BYTES", 10_000)
    for number in range(1000):
        log.write("waiting", text=str(number))
    files = sorted(log.path.parent.iterdir())
    assert [file.name for file in files] == [EARLIER, LOG]
    assert all(file.stat().st_size <= 10_000 for file in files)
    numbers = [int(line["text"]) for line in (*lines(log, EARLIER), *lines(log))]
    assert numbers == list(range(numbers[0], 1000))


def test_lines_that_a_full_disk_refused_are_counted(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    write, full = os.write, [True]

    def limited(file: int, data: bytes) -> int:
        if not full[0]:
            return write(file, data)
        if data.startswith(b"\n"):
            raise OSError(errno.ENOSPC, "no space")
        return write(file, data[:10])  # the first line is torn, then the disk is full

    monkeypatch.setattr(os, "write", limited)
    log.write("a")
    log.write("b")
    full[0] = False
    log.write("c")
    log.write("d")
    torn, *whole = log.path.read_text().splitlines()
    assert torn == '{"time": 1'
    assert [(json.loads(line)["event"], json.loads(line).get("lines_lost")) for line in whole] == [
        ("c", 2),
        ("d", None),
    ]


def test_a_closed_log_writes_to_no_other_file(log: RunLog, tmp_path: Path) -> None:
    log.close()
    with (tmp_path / "other").open("w") as other:  # gets the number of the log
        log.write("late")
        other.write("untouched")
    assert (tmp_path / "other").read_text() == "untouched"


def test_threads_and_signal_handlers_may_write(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [
        threading.Thread(target=lambda: [log.write("waiting", text="x" * 500) for _ in range(50)]) for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(lines(log)) == 200
    monkeypatch.setattr(log_module, "_LOCK_S", 0.01)
    with log._lock:
        log.write("same thread")
        other = threading.Thread(target=log.write, args=("while it hangs",))
        other.start()
        other.join(30)
        assert not other.is_alive()
    assert [one["event"] for one in lines(log)[200:]] == ["same thread"]


PIPELINE = """\
name: t
version: "1"
models:
  teacher: {entry}
stages:
  - {{id: sums, source: files, with: {{paths: sums.jsonl}}}}
  - {{id: short, sample: chat, with: {{model: teacher, prompt: short, samples: 2}}}}
run: {{executor: inline, shards: 2, max_error_rate: 1}}
"""


def test_a_run_logs_its_stages_shards_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    for folder in ("pipelines", "prompts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prompts" / "short.md").write_text("---\nstyle: short\n---\n{{ question }}\n")
    rows = [{"question": f"What is {number} + 3?", "answer": str(number + 3)} for number in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "pipelines" / "t.yaml"

    async def run() -> None:
        async with fake_teacher(accuracy=1.0, rate_500=0.5) as teacher:
            entry = json.dumps({**teacher.entry, "retries": 0, "api_key": "env:TEACHER_KEY"})
            file.write_text(PIPELINE.format(entry=entry))
            await run_pipeline(load_pipeline(file), unwatched)

    asyncio.run(run())
    (path,) = tmp_path.glob(".tracefactory/runs/*/log.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    events = Counter((one["event"], one.get("stage")) for one in found)
    for stage, shards in (("sums", 0), ("short", 2)):
        assert (events["stage_begun", stage], events["stage_done", stage]) == (1, 1)
        assert (events["shard_begun", stage], events["shard_done", stage]) == (shards, shards)
    failed, rows_failed = events["request_failed", "short"], events["row_failed", "short"]
    assert 0 < failed == rows_failed < 24
    (done,) = (one for one in found if one["event"] == "stage_done" and one["stage"] == "short")
    assert done["tally"]["errors"] == failed
    requests = [one for one in found if one["event"] == "request_failed"]
    assert len({one["request"] for one in requests}) == failed
    assert all(one["problem"] and one["kind"] == "server_error" and one["run"] == path.parent.name for one in requests)
    (server,) = (one for one in found if one["event"] == "server")
    assert (server["model"], server["host"].partition(":")[0]) == ("teacher", "127.0.0.1")
    assert found[0]["event"] == "run_begun"
    assert found[-1]["event"] == "run_ended"
    assert {one["count"] for one in found[-1]["failures"]} == {failed}
    assert SECRET not in path.read_text()


async def test_actors_of_ray_are_asked_and_one_that_is_lost_is_passed_over() -> None:
    async def answer(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    def member(what: Any, waits_for: int = 0) -> _Member:
        actor = SimpleNamespace(events=SimpleNamespace(remote=lambda: answer(what)))
        return _Member(actor, asyncio.Semaphore(), waits_for=waits_for)

    setup: Any = SimpleNamespace(pipeline=SimpleNamespace(run=RunOptions(executor="ray")))
    executor = RayExecutor(setup)
    executor._members = {
        "cpu": [member([{"event": "a"}]), member(RuntimeError("died"))],
        "model:m": [member([{"event": "b"}, {"event": "c"}]), member([{"event": "never asked"}], waits_for=1)],
    }
    assert [one["event"] for one in await executor.events()] == ["a", "b", "c"]
