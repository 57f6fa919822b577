"""What the sandbox costs: one start per program, beside the start of the interpreter alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.attacks.users import possible_users, run
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.run import run_program, run_tests

pytestmark = pytest.mark.bench
_STARTS = 40
_MOST_MS = 50.0


def least_ms(work: Callable[[], object]) -> float:
    """Return the least time of a call in milliseconds, which is that without other work on the machine."""
    taken = []
    for _ in range(_STARTS):
        begin = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begin) * 1e3)
    return min(taken)


def test_a_start_costs_less_than_50_ms_beyond_the_interpreter() -> None:
    limits = Limits()
    run_program("pass", "", limits)  # the protections are measured once
    alone = least_ms(lambda: subprocess.run([sys.executable, "-I", "-c", "pass"], check=True))
    script = least_ms(lambda: run_program("pass", "", limits))
    tested = least_ms(lambda: run_tests("def f(x):\n    return x", ["assert f(1) == 1"], limits))
    times = f"interpreter {alone:.0f} ms, program {script:.0f} ms, program with tests {tested:.0f} ms"
    print(f"\n{times} (least of {_STARTS})")
    assert script - alone < _MOST_MS
    assert tested - alone < _MOST_MS


@pytest.mark.parametrize("user", possible_users())
def test_a_start_as_each_user(user: str) -> None:
    ends = run(user, [{"code": "pass"}] * _STARTS)[1:]
    print(f"\n{user}: program {min(end['usage']['wall'] for end in ends) * 1e3:.0f} ms")
    assert all(end["code"] == 0 for end in ends)
