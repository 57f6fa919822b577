"""The pool: verdicts in order, nothing hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, Problem, Thinking
from tracefactory.verification import pool as pool_module
from tracefactory.verification.base import VERIFIERS, VerifyTask, check_policy
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.process import main as worker_main
from tracefactory.verification.single import verify_one

HANGS = r"\binom{10^9}{5\cdot 10^8}"


def task(gold: str | None, text: str, verifier: str = "math", spec: str = "{}", policy: str = "{}") -> VerifyTask:
    problem = Problem.make(question="q", answer=gold, verifier=verifier, spec=spec)
    return VerifyTask(problem=problem, answer_text=text, policy=policy)


def workers() -> list[psutil.Process]:
    """Return the living worker processes that started during this test."""
    mine = psutil.Process().children(recursive=True)
    living = [child for child in mine if child.pid not in _before and child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if worker_main.__module__ in child.cmdline()]


_before: set[int] = set()


@pytest.fixture(autouse=True)
def _remember_processes() -> None:
    _before.clear()
    _before.update(child.pid for child in psutil.Process().children(recursive=True))


def wait_for_a_worker() -> None:
    while not workers():
        time.sleep(0.05)


async def test_hanging_items_time_out_without_touching_the_others() -> None:
    easy = [task(str(n), rf"\boxed{{{n + n % 2}}}") for n in range(40)]
    with VerifierPool(workers=1, deadline=1) as pool:
        begin = time.monotonic()
        verdicts = await pool.verify([*easy[:20], task("5", rf"\boxed{{{HANGS}}}"), *easy[20:]])
        assert time.monotonic() - begin < 60
        hung = verdicts.pop(20)
        assert (hung.outcome, hung.method) == (Outcome.VERIFIER_ERROR, "timeout")
        assert [v.outcome is Outcome.CORRECT for v in verdicts] == [n % 2 == 0 for n in range(40)]
        assert max(v.seconds for v in verdicts) < 1
        # the worker that hung was replaced
        again = await pool.verify([task(r"\int_0^1 x dx", r"\boxed{\int_0^1 y dy}")])
        assert again[0].outcome is not Outcome.VERIFIER_ERROR
    assert workers() == []


async def test_short_tasks_share_one_worker_and_long_ones_get_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker takes seconds of a CPU, which a few short tasks are not worth."""
    monkeypatch.setattr(pool_module, "_PATIENCE", 10.0)  # on a busy machine short tasks wait long, too
    short = [task("36", f"```python\nprint({n})\n```", "program") for n in range(35, 38)]
    with VerifierPool(workers=4, deadline=30) as pool:
        long = "So it is. " * 2_500  # longer than what is checked in this process, and quick in another one
        verdicts = await pool.verify([task(str(n), f"{long}\\boxed{{{n}}}") for n in range(8)])
        assert all(verdict.outcome is Outcome.CORRECT for verdict in verdicts), verdicts
        assert len(workers()) == 1
        monkeypatch.setattr(pool_module, "_PATIENCE", 0.5)
        slow = "```python\nimport time\ntime.sleep(2)\nprint(36)\n```"
        verdicts = await pool.verify([*short, *(task("36", slow, "program") for _ in range(4))])
        assert [verdict.outcome is Outcome.CORRECT for verdict in verdicts] == [False, True, False, *[True] * 4]
        assert 2 <= len(workers()) <= 4


async def test_killed_worker_is_an_error_of_its_item_only() -> None:
    """After it the pool serves other loops and threads."""
    with VerifierPool(workers=1, deadline=60) as pool:
        running = asyncio.create_task(pool.verify([task("5", rf"\boxed{{{HANGS}}}")]))
        await asyncio.to_thread(wait_for_a_worker)
        workers()[0].send_signal(signal.SIGKILL)
        (verdict,) = await running
        assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "crash")
        assert (await pool.verify([task("5", r"\boxed{5}")]))[0].outcome is Outcome.CORRECT
        elsewhere = lambda: asyncio.run(pool.verify([task(r"\int x dx", r"\boxed{\int y dy}")]))  # noqa: E731
        assert (await asyncio.to_thread(elsewhere))[0].outcome is not Outcome.VERIFIER_ERROR


async def test_a_broken_task_gets_a_verdict_instead_of_an_exception() -> None:
    with VerifierPool(workers=1) as pool:
        verdicts = await pool.verify(
            [
                task("5", r"\boxed{5}", verifier="nosuch"),
                task("5", r"\boxed{5}", spec='{"nosuch": 1}'),
                task("5", r"\boxed{5}", spec="[1"),
                task("5", r"\boxed{5}"),
                task(None, r"\boxed{5}"),
            ]
        )
    assert [v.outcome.value for v in verdicts] == ["verifier_error"] * 3 + ["correct", "unverifiable"]
    assert [v.method for v in verdicts[:3]] == ["exception"] * 3
    assert "nosuch" in (verdicts[0].detail or "")


def test_close_while_items_run_ends_them() -> None:
    pool = VerifierPool(workers=1, deadline=120)
    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.append(pool.verify_now(task("5", rf"\boxed{{{HANGS}}}")).outcome))
    thread.start()
    wait_for_a_worker()
    pool.close()
    pool.close()
    thread.join(10)
    assert found == [Outcome.VERIFIER_ERROR]
    assert workers() == []


def test_workers_are_silent_and_end_when_the_parent_is_killed() -> None:
    """One worker is busy and the other idle when the parent goes."""
    program = (
        "import threading, time\n"
        "from tracefactory.core.rows import Problem\n"
        "from tracefactory.verification import VerifierPool, VerifyTask\n"
        "problem = Problem.make(question='', answer='5', verifier='math')\n"
        f"texts = [r'\\boxed{{{HANGS}}}', r'\\boxed{{\\int_0^1 x dx}}']\n"
        "hangs, easy = [VerifyTask(problem=problem, answer_text=text) for text in texts]\n"
        "pool = VerifierPool(workers=2, deadline=300)\n"
        "threading.Thread(target=pool.verify_now, args=(hangs,)).start()\n"
        "while not pool._processes.live:\n"  # the other item would be quick enough to leave its worker to this one
        "    time.sleep(0.01)\n"
        "print(pool.verify_now(easy).outcome.value, flush=True)\n"
        "threading.Event().wait()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert parent.stdout.readline().strip() == "incorrect"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert (len(gone), alive) == (2, [])
        assert parent.stderr.read() == ""


async def test_no_program_runs_where_the_sandbox_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(allow: object) -> None:
        raise UserError("no sandbox here")

    monkeypatch.setattr(pool_module, "require", refuse)
    text = "```python\ndef f(x):\n    return 2 * x\n```"
    program = task(None, text, "code", spec=json.dumps({"tests": ["assert f(2) == 4"]}))
    with VerifierPool(workers=1) as pool:
        with pytest.raises(UserError, match="no sandbox here"):
            await pool.verify([task("1", "1"), program])
        with pytest.raises(UserError, match="no sandbox here"):
            pool.verify_now(program)
    assert workers() == []


def test_verify_one_raises_user_error_for_wrong_arguments() -> None:
    with pytest.raises(UserError, match="percent"):
        verify_one("5", "5", kind="math", percnt="strict")
    with pytest.raises(UserError, match="math"):
        verify_one("5", "5", kind="maths")
    with pytest.raises(UserError, match="either"):
        verify_one("5")
    with pytest.raises(UserError, match="tolerance"):
        check_policy({"tolerence": 1})


def test_policies_change_verdicts() -> None:
    assert verify_one("12 cm", "12", units="required").outcome is Outcome.INCORRECT
    assert verify_one("12 cm", "120 mm", convert_units=False).outcome is Outcome.INCORRECT
    assert verify_one("12.5%", "12.5", percent="strict").outcome is Outcome.INCORRECT
    assert verify_one("1, 2", "2, 1", ordered=True).outcome is Outcome.INCORRECT
    assert verify_one("2/3", "0.67", decimals=2).outcome is Outcome.CORRECT
    assert verify_one("100", "101", tolerance=0.02).outcome is Outcome.CORRECT


def test_every_verdict_has_the_verifiers_name_and_version() -> None:
    names = {"auto", "choice", "code", "equation", "exact", "math", "numeric", "program", "reasoning_gym", "text"}
    assert {*VERIFIERS} == names
    for name in VERIFIERS:
        verifier = VERIFIERS.get(name)
        assert verifier.name == name
        assert verifier.version
        assert verifier.Params.model_config["extra"] == "forbid"


def test_open_thinking_has_no_answer() -> None:
    problem = Problem.make(question="q", answer="5", verifier="math")
    looping = VerifyTask(problem=problem, answer_text="5, 5, 5, 5", thinking=Thinking.OPEN, finish_reason="length")
    with VerifierPool(workers=1) as pool:
        assert pool.verify_now(looping).method == "no_answer"
