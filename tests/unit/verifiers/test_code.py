"""Programs: right ones pass, broken ones fail, hostile ones harm nothing and fool nobody."""

from __future__ import annotations

import ast
import json
import os
import time
import warnings
from pathlib import Path

import psutil
import pytest

from tracefactory.core.rows import Outcome, Problem, Verdict
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.run import run_program, run_tests
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import verify_one

DATA = next((up / "shared/data" for up in Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None)
SHORT = Limits(seconds=1, wall=6, memory_mb=256)
TEST = ["assert f(2) == 4"]


def check(code: str, **spec: object) -> Verdict:
    return verify_one(None, response=f"Here it is.\n```python\n{code}\n```\n", kind="code", spec=spec)


def test_programs_are_judged_by_unit_tests_of_all_styles() -> None:
    assert (
        check("def f(x):\n    return 2 * x", tests=["assert f(2) == 4", "assert f(0) == 0"]).outcome is Outcome.CORRECT
    )
    wrong = check("def f(x):\n    return x ** 2 + 1", tests=TEST)
    assert (wrong.outcome, wrong.method) == (Outcome.INCORRECT, "tests")
    humaneval = "def check(candidate):\n    assert candidate(2) == 4\n"
    assert check("def f(x):\n    return x + 2", tests=[humaneval], entry_point="f").outcome is Outcome.CORRECT
    prompt = 'def f(x):\n    """Double x."""\n'
    assert check("    return x + x", tests=[humaneval], entry_point="f", prompt=prompt).outcome is Outcome.CORRECT
    assert check("def f(x):\n    return math.floor(x) * 2", tests=TEST, setup="import math").outcome is Outcome.CORRECT


def test_programs_are_judged_by_their_output() -> None:
    cases = [{"stdin": "3 4\n", "stdout": "7\n"}, {"stdin": "10 5", "stdout": "15"}]
    assert check("a, b = map(int, input().split())\nprint(a + b)", cases=cases).outcome is Outcome.CORRECT
    assert check("print(7)", cases=cases).outcome is Outcome.INCORRECT
    assert check("import sys\nprint(7)\nsys.exit(3)", cases=cases[:1]).outcome is Outcome.INCORRECT


def test_a_text_without_a_program_has_no_answer() -> None:
    verdict = verify_one(None, response="I would sort the list first.", kind="code", spec={"tests": TEST})
    assert (verdict.outcome, verdict.method) == (Outcome.UNVERIFIABLE, "no_answer")
    cut = verify_one(None, response="```python\ndef f(x):", kind="code", spec={"tests": TEST}, finish_reason="length")
    assert cut.method == "no_answer"


def test_the_time_limit_counts_processor_time() -> None:
    assert run_tests("import time\ndef f(x):\n    time.sleep(0.6)\n    return 2 * x", TEST, Limits(seconds=0.2)).passed


CROSSING = {
    "argument changed in place": ("def f(x):\n    x.sort()", "l = [3, 1]\nf(l)\nassert l == [1, 3]"),
    "generator": ("def f(n):\n    yield from range(n)", "g = f(3)\nassert next(g) == 0\nassert list(g) == [1, 2]"),
    "function as argument": ("def f(g, x):\n    return g(x) + 1", "assert f(lambda y: 2 * y, 3) == 7"),
    "own class": (
        "class P:\n    def __init__(self, a):\n        self.a = a\ndef f(ps):\n    return sum(p.a for p in ps)",
        "p = P(1)\np.a = 5\nassert f([p, P(2)]) == 7\nassert p.a == 5",
    ),
    "exception": (
        "def f(x):\n    raise ValueError(x)",
        "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass",
    ),
    "module": ("import math\ndef f(x):\n    return math.pi", "assert math.isclose(f(1), 3.141592653589793)"),
    "values": (
        "from decimal import Decimal\ndef f(x):\n    return x, 2**200, {1: {2, 3}}, b'a', 1j, Decimal('0.1')",
        "from decimal import Decimal\nassert f((1,)) == ((1,), 2**200, {1: {2, 3}}, b'a', 1j, Decimal('0.1'))",
    ),
}


@pytest.mark.parametrize(("code", "test"), CROSSING.values(), ids=CROSSING)
def test_values_cross_between_program_and_tests(code: str, test: str) -> None:
    run = run_tests(code, [test], SHORT)
    assert run.passed, run.stderr


FOOLING = {
    "leaves with success": "import os\nos._exit(0)",
    "leaves politely": "import sys\nsys.exit(0)",
    "leaves inside": "import os\ndef f(x):\n    os._exit(0)",
    "says so": "print('passed')\nprint('OK')\nimport os\nos._exit(0)",
    "writes to every pipe": (
        "import os\nfor fd in range(1, 64):\n    try:\n        os.write(fd, b'passed' * 11)\n    except OSError:\n"
        "        pass\nos._exit(0)"
    ),
    "equals everything": "class All:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return All()",
    "swallows assertions": ("import builtins\nbuiltins.AssertionError = KeyError\ndef f(x):\n    raise SystemExit(0)"),
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x):\n    return 5",
    "compares as it likes": "class C(int):\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return C(5)",
    "calculates as it likes": (
        "class C:\n    def __sub__(self, o):\n        return 0\n    __abs__ = __lt__ = __sub__\n"
        "def f(x):\n    return C()"
    ),
    "reads every pipe and writes it to every other": (
        "import os, select\nfor fd in range(3, 64):\n    try:\n        ready = select.select([fd], [], [], 0)[0]\n"
        "        data = os.read(fd, 4096) if ready else b''\n        for to in range(3, 64):\n            try:\n"
        "                os.write(to, data)\n            except OSError:\n                pass\n    except OSError:\n"
        "        pass\nos._exit(0)"
    ),
    "looks for the tests in memory": (
        "import gc, re\nseen = [str(o)[:500] for o in gc.get_objects()]\n"
        "found = re.findall(r'== (\\d+)', str([text for text in seen if 'assert f(2)' in text]))\n"
        "def f(x):\n    return int(found[0]) if found else 5"
    ),
    "looks for the tests in other processes": (
        "import glob, os\nanswer = 5\nfor path in glob.glob('/proc/[0-9]*/fd/*') + glob.glob('/proc/[0-9]*/mem'):\n"
        "    if f'/{os.getpid()}/' in path:\n        continue\n"
        "    try:\n        with open(path, 'r+b', 0) as file:\n            file.write(b'x')\n            answer = 4\n"
        "    except OSError:\n        pass\ndef f(x):\n    return answer"
    ),
    "answers with a forged reply": (
        "import os\ndef f(x):\n    for fd in range(3, 64):\n        try:\n"
        '            os.write(fd, b\'{"value": true, "after": {"t": "list", "v": [2]}}\\n\')\n'
        "        except OSError:\n            pass\n    return 5"
    ),
    "ends the tests": "import os, signal\nos.kill(-1, signal.SIGKILL)\ndef f(x):\n    return 4",
    "child goes on": "import os\nif os.fork():\n    os._exit(0)\ndef f(x):\n    return 5",
}


@pytest.mark.parametrize("code", FOOLING.values(), ids=FOOLING)
def test_fooling_the_harness_fails(code: str) -> None:
    assert not run_tests(code, TEST, SHORT).passed


HARMFUL = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(10 ** 7))",
    "endless output": "while True:\n    print('x' * 10000)",
    "ignored signals": (
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    ),
    "detached child": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(120)\nprint('gone')"
    ),
    "huge file": "with open('big', 'wb') as f:\n    while True:\n        f.write(b'x' * 10 ** 6)",
}


@pytest.mark.parametrize("code", HARMFUL.values(), ids=HARMFUL)
def test_harmful_programs_end_in_time_and_leave_nothing(code: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    begin = time.monotonic()
    run = run_tests(code, ["assert False"], SHORT)
    assert not run.passed
    assert time.monotonic() - begin < 20
    assert len(run.stdout) <= SHORT.output_bytes
    left = [
        process
        for process in psutil.process_iter(["pid", "cmdline"])
        if process.pid not in before and any("sandbox/inside" in part for part in process.info["cmdline"] or ())
    ]
    assert psutil.wait_procs(left, timeout=10)[1] == []  # killed, and gone as soon as the kernel is done with them


def test_temporary_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("open('x', 'w').write('x')", "", SHORT)
    assert os.listdir(tmp_path) == []


def test_program_of_a_trace_is_run() -> None:
    text = "We compute.\n```python\nprice = 12\nprint(price * 3)\n```\n```output\n40\n```\nSo \\boxed{40}."
    verdict = verify_one("36", response=text, kind="program")
    assert (verdict.outcome, verdict.extracted) == (Outcome.CORRECT, "36")
    last = "```python\nfrom sympy import sqrt\nsqrt(8)\n```"
    assert verify_one(r"2\sqrt{2}", response=last, kind="program").outcome is Outcome.CORRECT
    failing = verify_one("36", response="```python\nprint(1 / 0)\n```", kind="program")
    assert (failing.outcome, failing.method) == (Outcome.INCORRECT, "program_failed")
    assert verify_one("36", response="It is 36.", kind="program").method == "no_answer"


def mutated(code: str) -> str | None:
    """Return the program with every function returning nothing of use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escape sequences in the corpus
        tree = ast.parse(code)
    changed = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Tuple([ast.Constant("mutated"), node.value], ast.Load())
            changed = True
    return ast.unparse(ast.fix_missing_locations(tree)) if changed else None


def corpus() -> list[tuple[str, dict[str, object]]]:
    assert DATA is not None
    rows: list[tuple[str, dict[str, object]]] = []
    for line in (DATA / "code/humaneval.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.append((row["prompt"] + row["canonical_solution"], {"tests": [row["test"]]}))
    for line in (DATA / "code/mbpp.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.append((row["code"], {"tests": row["test_list"], "setup": row["test_setup_code"]}))
    return rows


async def all_pass_and_mutations_fail(rows: list[tuple[str, dict[str, object]]]) -> None:
    tasks, wanted = [], []
    for code, spec in rows:
        problem = Problem.make(question="", answer=None, verifier="code", spec=json.dumps({**spec, "seconds": 20}))
        broken = mutated(code)
        for text, right in ((code, True), *(((broken, False),) if broken else ())):
            tasks.append(VerifyTask(problem=problem, answer_text=f"```python\n{text}\n```"))
            wanted.append(right)
    with VerifierPool(workers=2, deadline=30) as pool:
        verdicts = await pool.verify(tasks)
    wrong = [
        (task.answer_text, verdict)
        for task, verdict, right in zip(tasks, verdicts, wanted, strict=True)
        if (verdict.outcome is Outcome.CORRECT) is not right
    ]
    assert wrong == []


@pytest.mark.skipif(DATA is None, reason="needs the shared data")
async def test_some_canonical_solutions_pass_and_their_mutations_fail() -> None:
    await all_pass_and_mutations_fail(corpus()[::120])


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs the shared data")
async def test_all_canonical_solutions_pass_and_their_mutations_fail() -> None:
    await all_pass_and_mutations_fail(corpus())
