"""A program cannot pass tests that it does not pass, and tests that say nothing about it are no verdict on it."""

# ruff: noqa: E501  # programs are easier to read on one line

from __future__ import annotations

import json
from typing import Any

import pytest

from tracefactory.core.rows import Outcome, Problem, Verdict
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.run import run_program, run_tests
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import verify_one

RIGHT = "def f(x):\n    return 2 * x"
WRONG = "def f(x):\n    return 5"
SHORT = Limits(seconds=2, wall=8, memory_mb=256)


def check(code: str, kind: str = "code", **spec: Any) -> Verdict:
    return verify_one(spec.pop("gold", None), response=f"```python\n{code}\n```", kind=kind, spec=spec)


STYLES: dict[str, dict[str, Any]] = {
    "statements": {"tests": ["assert f(2) == 4", "assert f(3) == 6"]},
    "check": {"tests": ["def check(candidate):\n    assert candidate(2) == 4"], "entry_point": "f"},
    "check that is called": {"tests": ["def check(candidate):\n    assert candidate(2) == 4\ncheck(f)"]},
    "pytest functions": {"tests": ["def test_two():\n    assert f(2) == 4\n\ndef test_zero():\n    assert f(0) == 0"]},
    "pytest class": {"tests": ["class TestF:\n    def test_two(self):\n        assert f(2) == 4"]},
    "coroutine": {"tests": ["async def test_two():\n    assert f(2) == 4"]},
    "unittest": {
        "tests": [
            "import unittest\nclass T(unittest.TestCase):\n    def setUp(self):\n        self.x = 2\n"
            "    def test_two(self):\n        self.assertEqual(f(self.x), 4)"
        ]
    },
    "unittest main": {
        "tests": [
            "import unittest\nclass T(unittest.TestCase):\n    def test_two(self):\n        self.assertEqual(f(2), 4)\n"
            "unittest.main()"
        ]
    },
    "main guard": {"tests": ["def test_two():\n    assert f(2) == 4\nif __name__ == '__main__':\n    test_two()"]},
    "from solution": {"tests": ["from solution import f as g\nassert g(2) == 4"]},
    "import solution": {"tests": ["import solution\nassert solution.f(2) == 4"]},
    "if and raise": {"tests": ["if f(2) != 4:\n    raise ValueError('wrong')"]},
    "helper": {"tests": ["def same(a, b):\n    assert a == b\nsame(f(2), 4)"]},
    "numpy": {"tests": ["import numpy as np\nnp.testing.assert_allclose(f(2.0), 4.0)"]},
}


@pytest.mark.parametrize("spec", STYLES.values(), ids=STYLES)
def test_every_style_of_tests_tells_right_from_wrong(spec: dict[str, Any]) -> None:
    right, wrong = check(RIGHT, **spec, memory_mb=2048), check(WRONG, **spec, memory_mb=2048)
    assert (right.outcome, wrong.outcome) == (Outcome.CORRECT, Outcome.INCORRECT), (right, wrong)


@pytest.mark.parametrize("base", ["unittest.TestCase", "object"])
def test_methods_of_one_name_in_two_classes_both_run(base: str) -> None:
    classes = [
        f"class {name}({base}):\n    def test_it(self):\n        assert f({x}) == {2 * x}"
        for name, x in (("TestTwo", 2), ("TestThree", 3))
    ]
    spec: dict[str, Any] = {"tests": ["\n".join(["import unittest", *classes])]}
    assert check(RIGHT, **spec).outcome is Outcome.CORRECT
    assert check("def f(x):\n    return 4", **spec).outcome is Outcome.INCORRECT


def test_an_exception_that_is_expected_is_an_assertion() -> None:
    spec: dict[str, Any] = {"tests": ["try:\n    f('x')\n    assert False\nexcept TypeError:\n    pass"]}
    assert check("def f(x):\n    return x - 1", **spec).outcome is Outcome.CORRECT
    assert check(RIGHT, **spec).outcome is Outcome.INCORRECT


VACUOUS = {
    "nothing": "",
    "a comment": "# assert f(2) == 4",
    "a check without entry point": "def check(candidate):\n    assert candidate(2) == 4",
    "a test with a parameter": "def test_two(fixture):\n    assert f(2) == 4",
    "a call": "f(2)",
    "a print": "print(f(2) == 4)",
    "a comparison": "f(2) == 4",
    "an assertion of something else": "assert 2 + 2 == 4",
    "an assertion in a branch that is not taken": "f(2)\nif False:\n    assert f(2) == 4",
    "a class without tests": "import unittest\nclass T(unittest.TestCase):\n    pass",
    "a loop over nothing": "for x, y in []:\n    assert f(x) == y",
    "it leaves early": "import sys\nsys.exit(0)\nassert f(2) == 4",
}


@pytest.mark.parametrize("test", VACUOUS.values(), ids=VACUOUS)
def test_tests_that_assert_nothing_about_the_program_are_no_verdict(test: str) -> None:
    verdict = check(WRONG, tests=[test])
    assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "no_test_ran"), verdict


@pytest.mark.parametrize("test", ["def (", "import a_module_that_is_nowhere\nassert f(2) == 4", "assert f(2) == 4\n\0"])
def test_tests_that_cannot_run_are_no_verdict(test: str) -> None:
    verdict = check(RIGHT, tests=[test])
    assert (verdict.outcome, verdict.method) == (Outcome.VERIFIER_ERROR, "tests_broken"), verdict


REPLACING = {
    "abs": ("def abs(x):\n    return 0", "assert abs(f(2) - 4) < 1e-6"),
    "all": ("def all(x):\n    return True", "assert all(f(x) == 2 * x for x in range(3))"),
    "isinstance": ("def isinstance(*a):\n    return True", "assert isinstance(f(2), str)"),
    "set": ("class set:\n    def __init__(self, *a): pass\n    def __eq__(self, o): return True", "assert set([f(2)]) == {4}"),
    "sorted": ("def sorted(x):\n    return [4]", "assert sorted([f(2)]) == [4]"),
    "str": ("def str(x):\n    return '4'", "assert str(f(2)) == '4'"),
    "len": ("def len(x):\n    return 4", "assert len([f(2)] * 4) == 4 and f(2) == 4"),
    "round": ("def round(*a):\n    return 4", "assert round(f(2.0), 2) == 4"),
    "math": (
        "class math:\n    @staticmethod\n    def isclose(*a):\n        return True",
        "import math\nassert math.isclose(f(2), 4)",
    ),
    "math without an import": (
        "class math:\n    @staticmethod\n    def isclose(*a):\n        return True",
        "assert math.isclose(f(2), 4)",
    ),
    "a module in sys.modules": (
        "import sys, types\nmath = types.ModuleType('math')\nmath.isclose = lambda *a: True\nsys.modules['math'] = math",
        "import math\nassert math.isclose(f(2), 4)",
    ),
    "a patched module": ("import math\nmath.isclose = lambda *a, **k: True", "import math\nassert math.isclose(f(2), 4)"),
    "np": (
        "class np:\n    @staticmethod\n    def allclose(*a):\n        return True",
        "assert np.allclose(f(2), 4)",
    ),
    "__builtins__": ("__builtins__ = {'abs': lambda x: 0}", "assert abs(f(2) - 4) < 1e-6"),
    "builtins": ("import builtins\nbuiltins.abs = lambda x: 0", "assert abs(f(2) - 4) < 1e-6"),
    "AssertionError": ("class AssertionError(Exception): pass\nimport builtins\nbuiltins.AssertionError = KeyError", "assert f(2) == 4"),
    "the counter of assertions": ("__asserted__ = lambda: None", "assert f(2) == 4"),
    "check": ("def check(x):\n    return True", "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)"),
    "a StopIteration": ("def f(x):\n    raise StopIteration", "assert all(map(lambda c: f(c[0]) == c[1], [(2, 4)]))"),
    "a generator exit": ("def f(x):\n    raise GeneratorExit", "assert all(map(lambda c: f(c[0]) == c[1], [(2, 4)]))"),
    "a system exit": ("def f(x):\n    raise SystemExit(0)", "assert f(2) == 4"),
    "a subclass of a value": ("class I(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x):\n    return I(5)", "assert f(2) == 4"),
    "a value that orders as it likes": (
        "class I(int):\n    def __lt__(self, o): return True\n    __gt__ = __le__ = __ge__ = __lt__\ndef f(x):\n    return I(5)",
        "assert 4 <= f(2) <= 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("trick", "test"), REPLACING.values(), ids=REPLACING)
def test_a_program_cannot_replace_what_tests_use(trick: str, test: str) -> None:
    fooled = check(trick if "def f" in trick else f"{WRONG}\n{trick}", tests=[test])
    assert fooled.outcome is Outcome.INCORRECT, fooled


def test_helpers_of_the_prompt_are_those_of_the_problem() -> None:
    prompt = (
        "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef root(xs):\n    '''Find it.'''\n"
    )
    tests = ["def check(candidate):\n    assert abs(poly([-4, 2], candidate([-4, 2]))) < 1e-6"]
    spec: dict[str, Any] = {"prompt": prompt, "tests": tests, "entry_point": "root"}
    assert check("def root(xs):\n    return -xs[0] / xs[1]", **spec).outcome is Outcome.CORRECT
    fooling = "def poly(xs, x):\n    return 0\ndef root(xs):\n    return 7"
    assert check(fooling, **spec).outcome is Outcome.INCORRECT


def test_a_function_may_have_the_name_of_a_builtin() -> None:
    right, wrong = "def sum(a, b):\n    return a + b", "def sum(a, b):\n    return a - b"
    for code, outcome in ((right, Outcome.CORRECT), (wrong, Outcome.INCORRECT)):
        assert check(code, tests=["assert sum(1, 2) == 3"]).outcome is outcome
        assert check(code, tests=["def check(c):\n    assert c(1, 2) == 3"], entry_point="sum").outcome is outcome


OWN_FAILURES = {
    "stops itself": ("import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)", "stopped"),
    "stops all": ("import os, signal\nos.kill(-1, signal.SIGSTOP)\ndef f(x):\n    return 4", "stopped"),
    "stops the tests": (
        "import os, signal\nfor pid in range(1, 40):\n    if pid != os.getpid():\n        try:\n"
        "            os.kill(pid, signal.SIGSTOP)\n        except OSError:\n            pass\ndef f(x):\n    return 4",
        "stopped",
    ),
    "closes its descriptors": (
        "import os, time\nos.closerange(0, 64)\ndef f(x):\n    return 4\nwhile True:\n    time.sleep(1)",
        "program_exited",
    ),
    "writes without end": ("while True:\n    print('x' * 10_000)", "output_limit"),
    "writes errors without end": ("import sys\nwhile True:\n    sys.stderr.write('x' * 10_000)", "output_limit"),
    "exits": ("import os\nos._exit(0)", "program_exited"),
}


@pytest.mark.parametrize(("code", "method"), OWN_FAILURES.values(), ids=OWN_FAILURES)
def test_what_a_program_does_to_its_tests_is_its_own_failure(code: str, method: str) -> None:
    verdict = check(code, tests=["assert f(2) == 4"])
    assert (verdict.outcome, verdict.method) == (Outcome.INCORRECT, method), verdict
    assert verdict.seconds < 15


def test_a_flood_of_messages_is_no_success() -> None:
    flood = "import os\ndef f(x):\n    while True:\n        for fd in range(3, 64):\n            try:\n                os.write(fd, b'x' * 65536)\n            except OSError:\n                pass"
    assert not run_tests(flood, ["assert f(2) == 4"], SHORT).passed


LEAKS = {
    "an exception": "raise ValueError(SECRET)",
    "an own exception": "class E(Exception): pass\nE.__name__ = SECRET\nraise E(SECRET)",
    "stderr": "import sys\nsys.stderr.write(SECRET)\nsys.exit(1)",
    "stdout": "print(SECRET)",
    "an exit message": "import sys\nsys.exit(SECRET)",
    "a function": "def f(x):\n    raise KeyError(SECRET)",
    "a value": "def f(x):\n    return SECRET",
    "a path": "import os\nraise OSError(os.__file__)",
}


@pytest.mark.parametrize("code", LEAKS.values(), ids=LEAKS)
async def test_nothing_that_a_program_read_is_in_a_verdict(code: str) -> None:
    """The secret is put together by the program: it is no part of the answer, which is published as it is."""
    program = "SECRET = ''.join(map(chr, [104, 117, 115, 104, 45, 104, 117, 115, 104]))\n" + code
    specs = {"code": {"tests": ["assert f(2) == 4"]}, "program": {}}
    problems = [
        Problem.make(question="", answer="36", verifier=kind, spec=json.dumps(spec)) for kind, spec in specs.items()
    ]
    tasks = [VerifyTask(problem=one, answer_text=f"```python\n{program}\n```") for one in problems]
    with VerifierPool(workers=1) as pool:
        for verdict in await pool.verify(tasks):
            shown = verdict.model_dump_json()
            assert verdict.outcome is not Outcome.CORRECT
            assert "hush-hush" not in shown
            assert "/lib/python" not in shown
            assert verdict.log is None


def test_a_person_who_verifies_one_answer_sees_what_the_program_wrote() -> None:
    assert "division by zero" in (check("1 / 0", "program", gold="1").log or "")


def test_exit_codes_of_the_sandbox_are_not_those_of_programs() -> None:
    for code in (123, 124, 125, 126, 127, 128, 255):
        assert run_program(f"import sys\nsys.exit({code})", "", SHORT).ended == "exit"
        assert check(f"import os\nos._exit({code})", cases=[{"stdin": "", "stdout": ""}]).outcome is Outcome.INCORRECT


def test_threads_and_exit_handlers_of_a_program_run() -> None:
    late = "import threading, time, atexit\natexit.register(print, 'bye')\n"
    late += "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()"
    assert run_program(late, "", SHORT).stdout == "late\nbye\n"
