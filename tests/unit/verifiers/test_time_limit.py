"""A program that runs too long: incorrect where the limit is the task's, an error where the machine is the cause."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest

from tracefactory.core.rows import Outcome, Verdict
from tracefactory.sandbox import launch as running
from tracefactory.sandbox import usage as measuring
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.protections import protections
from tracefactory.sandbox.run import RunResult, run_program, run_tests
from tracefactory.sandbox.usage import Meter, Usage, stopped_by
from tracefactory.verification.programs import unfinished
from tracefactory.verification.single import verify_one
from tracefactory.verifiers import code as judging
from tracefactory.verifiers.code import CodeParams, CodeVerifier
from tracefactory.verifiers.program import ProgramParams, ProgramVerifier

TEST = ["assert f(2) == 4"]
LOOP = "def f(x):\n    while True:\n        pass"
SLEEP = "import time\ndef f(x):\n    time.sleep(1000)"
BLOCK = "import os\ndef f(x):\n    os.read(os.pipe()[0], 1)"
DECLARED = CodeParams(seconds=1)


def run(code: str, *, seconds: float = 1, wall: float = 4) -> RunResult:
    """Run a program with a test, again with more time while the machine is too busy to say anything of the program."""
    while True:
        made = run_tests(code, TEST, Limits(seconds=seconds, wall=wall, memory_mb=256))
        if wall > 60 or made.ended != "wall_time" or stopped_by(made.usage, seconds) == "program":
            return made
        wall *= 2


def judged(made: RunResult, params: CodeParams = DECLARED) -> Verdict:
    verdict = unfinished(CodeVerifier(), made, params.limits(), params)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("used", "cause"),
    [
        (Usage(cpu=5.0, wall=5.2), "program"),  # a loop on an idle machine
        (Usage(cpu=5.0, wall=24.0, waited=19.0), "program"),  # a loop that had its time on a busy one
        (Usage(cpu=0.4, wall=25.0, waited=24.5), "machine"),  # a loop that hardly ran
        (Usage(cpu=0.1, wall=25.0, waited=0.2), "program"),  # a program that sleeps
        (Usage(cpu=0.1, wall=25.0), "program"),
        (Usage(cpu=0.1, wall=25.0, waited=3.0), "program"),  # it sleeps, and started slowly
        (Usage(cpu=0.1, wall=25.0, waited=7.0), "machine"),  # it might have done more in this time
        (Usage(cpu=0.1, wall=25.0, disk=20.0), "machine"),  # its imports were read from a slow disk
        (Usage(cpu=0.1, wall=25.0, stalled=20.0), "machine"),  # nothing ran on the machine
        (Usage(cpu=0.1, wall=25.0, waited=90.0), "machine"),  # many threads waited at once
        (Usage(cpu=30.0, wall=25.0, waited=90.0), "program"),  # and had their time
    ],
)
def test_who_is_the_cause_follows_from_what_was_measured(used: Usage, cause: str) -> None:
    assert stopped_by(used, 5.0) == cause
    made = RunResult("wall_time", None, "", "", "", 0, None, used)
    verdict = judged(made, CodeParams(seconds=5))
    wanted = (Outcome.INCORRECT, "time_limit") if cause == "program" else (Outcome.VERIFIER_ERROR, "timeout")
    assert (verdict.outcome, verdict.method) == wanted
    assert ("busy" in (verdict.detail or "")) == (cause == "machine")
    # A limit that the task does not declare is ours.
    assert judged(made, CodeParams()).outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize("code", [LOOP, SLEEP, BLOCK], ids=["loops", "sleeps", "waits for input"])
def test_an_endless_program_is_incorrect_where_the_task_declares_its_limit(code: str) -> None:
    made = run(code)
    assert (made.passed, made.ended) == (False, "cpu_time" if code == LOOP else "wall_time")
    verdict = judged(made)
    assert (verdict.outcome, verdict.method) == (Outcome.INCORRECT, "time_limit"), verdict.detail
    verdict = judged(made, CodeParams())
    assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "timeout")
    assert "which is the default" in (verdict.detail or "")


def test_a_loop_uses_its_processor_time_and_a_sleeper_none() -> None:
    loops, sleeps = run(LOOP), run(SLEEP)
    assert loops.usage.cpu >= 0.7  # 1 s by the clock ticks of a shared machine, 0.90 s by what the kernel measures
    assert loops.seconds < 60
    assert sleeps.usage.cpu < 0.7
    assert sleeps.seconds >= 4


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(x):\n    os.fork()\n    while True:\n        pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n" + LOOP,
        "def f(x):\n    while True:\n        yield 4",
    ],
    ids=["children", "ignores the signal", "generator without an end"],
)
def test_other_ways_to_use_all_the_time_are_the_programs_own(code: str) -> None:
    tests = ["assert sum(f(2)) == 4"] if "yield" in code else TEST
    made = run_tests(code, tests, Limits(seconds=1, wall=60, memory_mb=256))
    assert judged(made).method == "time_limit", judged(made).detail


def test_tests_that_loop_by_themselves_say_nothing_of_the_program() -> None:
    made = run_tests("def f(x):\n    return 4", ["while True:\n    pass"], Limits(seconds=1, wall=60))
    assert (made.passed, made.ended) == (False, "tests_time")
    verdict = judged(made)
    assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "timeout")
    assert "the tests did not end" in (verdict.detail or "")


@pytest.mark.parametrize("code", [123, 124])
def test_an_exit_code_is_no_time_out(code: int) -> None:
    made = run_tests(f"import os\ndef f(x):\n    os._exit({code})", TEST, Limits(seconds=5))
    verdict = CodeVerifier()._judge(made, made.passed, judging.Extraction("f", 0, 1, "code"), DECLARED, "tests")
    assert (made.ended, verdict.outcome, verdict.method) == ("left", Outcome.INCORRECT, "program_exited")


@pytest.mark.parametrize(
    "spec", [{"tests": TEST, "seconds": 1}, {"cases": [{"stdin": "", "stdout": "4"}], "seconds": 1}]
)
def test_the_limit_of_the_spec_reaches_the_verdict(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    code = LOOP if "tests" in spec else "while True:\n    pass"
    monkeypatch.setattr(Limits, "wall_seconds", 60.0)
    verdict = verify_one(None, response=f"```python\n{code}\n```", kind="code", spec=spec)
    assert (verdict.outcome, verdict.method, verdict.version) == (Outcome.INCORRECT, "time_limit", "4")
    verdict = verify_one("4", response="```python\nwhile True:\n    pass\n```", kind="program", spec={"seconds": 1})
    assert (verdict.outcome, verdict.method, verdict.version) == (Outcome.INCORRECT, "time_limit", "4")


def test_the_program_of_a_trace_has_the_same_rule() -> None:
    made = run_program("while True:\n    pass", "", Limits(seconds=1, wall=60))
    for params, outcome in ((ProgramParams(seconds=1), Outcome.INCORRECT), (ProgramParams(), Outcome.VERIFIER_ERROR)):
        verdict = unfinished(ProgramVerifier(), made, Limits(seconds=1), params)
        assert verdict is not None
        assert verdict.outcome is outcome


@pytest.mark.parametrize("counted", [True, False])
def test_a_busy_machine_is_measured_by_its_run_queue_or_by_samples(
    counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that is ready to run and gets a tenth of the time, as the kernel and as samples tell it."""
    now, cpu = [100.0], [0.0]

    def delays(pid: int) -> Iterator[tuple[int, float]]:
        return iter([(7, (now[0] - 100.0) * 0.9)] if counted else [])

    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(measuring, "_tree", lambda pid: [7])
    monkeypatch.setattr(measuring, "_stat", lambda pid: ("R", cpu[0], 1.0))
    monkeypatch.setattr(measuring, "_run_delays", delays)
    meter = Meter(7, 100.0)
    for _ in range(40):
        now[0] += 0.2001
        cpu[0] += 0.02
        meter.woken(0.2)
        meter.sample()
    found = meter.usage(0.0)
    assert found.cpu == pytest.approx(0.8)
    assert found.waited == pytest.approx(7.2, abs=0.3)
    assert found.stalled == 0.0
    assert stopped_by(found, 5.0) == "machine"


def test_processor_time_of_ended_children_is_counted_once() -> None:
    code = "import subprocess, sys\nfor _ in range(2):\n    subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])"
    made = run_program(code, "", Limits(seconds=20, wall=100))
    alone = run_program("sum(range(10**7))\nsum(range(10**7))", "", Limits(seconds=20, wall=100))
    assert made.code == alone.code == 0
    assert 0.5 * alone.usage.cpu < made.usage.cpu < alone.usage.cpu + 1.5


def test_a_watcher_that_does_not_run_itself_knows_that_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])
    meter = Meter(0, 100.0)
    for late in (0.2, 5.2, 0.2, 4.2):
        now[0] += late
        meter.woken(0.2)
    assert replace(meter.usage(0.0), wall=10.0).kept_from_running == pytest.approx(9.0)


@pytest.fixture
def crowded() -> Iterator[int]:
    """One processor with many busy processes, and nothing on the others."""
    processor = min(os.sched_getaffinity(0))
    busy = f"import os\nos.sched_setaffinity(0, {{{processor}}})\nprint(flush=True)\nwhile True:\n    pass"
    # Each in a session of its own, because the kernel can share a processor out among sessions.
    start = {"stdout": subprocess.PIPE, "start_new_session": True}
    with ExitStack() as stack:
        crowd = [stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", busy], **start)) for _ in range(40)]
        for process in crowd:
            stack.callback(process.kill)
        assert all(process.stdout.readline() for process in crowd)
        yield processor


@pytest.mark.slow
def test_a_loop_that_an_overloaded_machine_hardly_runs_is_an_error(
    crowded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real overload: the program shares one processor with forty others, and is nicer than they are."""
    protections()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {which("nice")} -n 19 {which("taskset")} -c {crowded} {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(running, "sys", SimpleNamespace(executable=str(python)))
    made = run_tests(LOOP, TEST, Limits(seconds=2, wall=8, memory_mb=256))
    assert made.ended == "wall_time"
    assert made.usage.cpu < 1
    assert made.usage.waited > 4
    verdict = judged(made, CodeParams(seconds=2))
    assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "timeout")
    assert "the machine was busy" in (verdict.detail or "")
