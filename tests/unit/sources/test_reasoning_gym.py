"""reasoning_gym as a source: the mix, the seeds, and entries that a scorer can use after a round trip through JSON."""

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.rows import Problem
from tracefactory.reading import gym
from tracefactory.reading.base import Rejected
from tracefactory.sources.reasoning_gym import ReasoningGym, interleave


@pytest.fixture(autouse=True)
def _no_marks_of_earlier_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass is remembered in the cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


SMALL = {"task": "chain_sum", "params": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}


def params(*tasks: dict[str, Any], size: int = 6, seed: int = 1) -> Any:
    return ReasoningGym.Params.model_validate({"tasks": tasks, "size": size, "seed": seed})


def read(given: Any, limit: int | None = None) -> list[Problem | Rejected]:
    return list(ReasoningGym().read(given, base_dir=Path(), limit=limit))


def score(problem: Problem, answer: str) -> float:
    spec = json.loads(problem.spec)
    dataset_class, config_class = gym.tasks()[spec["task"]]
    return float(dataset_class(config=config_class(seed=1, size=1)).score_answer(answer, spec["entry"]))


def test_a_mix_is_deterministic_and_a_larger_one_begins_with_it():
    mix = [{**SMALL, "weight": 3}, {"task": "gcd"}, {"task": "acre", "weight": 0.5}]
    rows = read(params(*mix, size=18))
    assert read(params(*mix, size=36))[:18] == rows
    assert read(params(*mix, size=18), limit=5) == rows[:5]
    assert Counter(row.source for row in rows if isinstance(row, Problem)) == {
        "reasoning_gym/chain_sum": 12,
        "reasoning_gym/gcd": 4,
        "reasoning_gym/acre": 2,
    }


def test_the_problem_carries_what_its_scorer_needs():
    (row,) = read(params(SMALL, size=1))
    assert isinstance(row, Problem)
    assert row.answer is not None
    assert (row.verifier, row.domain, row.licence) == ("reasoning_gym", "arithmetic", "Apache-2.0")
    assert score(row, row.answer) == 1.0
    assert score(row, row.answer + "1") < 1.0


def test_a_task_without_a_known_answer_is_still_scored():
    row = read(params({"task": "graph_color"}, size=1))[0]
    assert isinstance(row, Problem)
    assert row.answer is None
    assert score(row, "no colouring") < 1


def test_seeds_and_parameters_give_other_problems():
    questions = [
        {row.question for row in read(params(task, size=20, seed=seed)) if isinstance(row, Problem)}
        for seed, task in [(1, {"task": "chain_sum"}), (2, {"task": "chain_sum"}), (3, {"task": "chain_sum"})]
    ]
    # The package's own seeds overlap: problem i of seed s is problem i - 1 of seed s + 1.
    assert all(len(one) == 20 for one in questions)
    assert not questions[0] & questions[1]
    assert not questions[1] & questions[2]


def test_the_hash_seed_of_python_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    tasks = [{"task": name} for name in ("ransom_note", "isomorphic_strings", "polynomial_multiplication")]
    found = []
    for hash_seed in ("1", "77"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        found.append(read(params(*tasks, size=12)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("tasks", "messages"),
    [
        ([{"task": "chain_sm"}], ["unknown reasoning_gym task 'chain_sm' (did you mean 'chain_sum'?)"]),
        (
            [{"task": "chain_sum", "params": {"max_term": 2, "size": 3}}],
            ["unknown parameter 'max_term' (did you mean 'max_terms'?)", "'size' is set for the whole mix"],
        ),
        ([{"task": "chain_sum", "params": {"max_terms": "many"}}], ["max_terms: Input should be a valid integer"]),
        ([{"task": "chain_sum", "params": {"min_terms": 9}}], ["max_terms must be >= min_terms"]),
        ([SMALL, SMALL], ["'chain_sum' is there twice with the same parameters"]),
        ([{"task": "rearc"}], ["1.0 with its metadata, but 0.05 after a JSON round trip"]),
        (
            [{"task": "gcd"}, {"task": "gdc"}, {"task": "lcn"}],
            ["'gdc' (did you mean 'gcd'?)", "'lcn' (did you mean 'lcm'?)"],
        ),
        ([SMALL, {"task": "chain_sum", "params": {"max_digits": 2}}], []),
    ],
)
def test_reasoning_gym_check_finds_mistakes(
    tasks: list[dict[str, Any]], messages: list[str], capsys: pytest.CaptureFixture[str]
):
    found = ReasoningGym().check(params(*tasks), Path())
    assert len(found) == len(messages), found
    for message, wrong in zip(messages, found, strict=True):
        assert message in wrong
    assert capsys.readouterr().out == ""


def test_parameters_of_a_mix_are_validated():
    for wrong in (
        {"tasks": [], "size": 3},
        {"tasks": [SMALL], "size": 0},
        {"tasks": [{**SMALL, "weight": 0}], "size": 1},
    ):
        with pytest.raises(ValidationError):
            ReasoningGym.Params.model_validate(wrong)
    with pytest.raises(UserError, match="did you mean"):
        read(params({"task": "chain_sm"}))


def test_a_problem_that_changes_in_json_is_rejected():
    rows = read(params({"task": "rearc"}, size=2))
    assert [getattr(row, "reason", None) for row in rows] == ["not_scorable_from_json"] * 2


def test_a_failed_generator_process_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tracefactory.sources.reasoning_gym.sys.executable", "/bin/false")
    with pytest.raises(RunError, match="reasoning_gym failed"):
        read(params(SMALL))


@pytest.mark.parametrize("weights", [[1.0], [3, 1], [0.1] * 10, [5, 3, 2], [1, 1e-3], [0.7, 0.2, 0.1], [1 / 3, 2 / 3]])
def test_the_mix_is_within_one_of_its_shares_at_every_step(weights: list[float]):
    order = list(interleave(weights, 500))
    assert len(order) == 500
    counts = Counter[int]()
    for step, index in enumerate(order, 1):
        counts[index] += 1
        assert all(abs(counts[i] - w * step / sum(weights)) < 1 + 1e-9 for i, w in enumerate(weights)), step
    assert list(interleave(weights, 100)) == order[:100]


@pytest.mark.slow
def test_every_task_but_two_survives_json():
    """Three problems of each of the tasks, scored with gold and with wrong answers, before and after JSON."""
    wrong = {}
    for task in gym.tasks():
        with gym.quietly():
            stream = gym.problems(task, {}, seed=11)
            found = {made.wrong for made in (next(stream) for _ in range(3))}
        if found != {None}:
            wrong[task] = found
    assert set(wrong) == {"arc_agi", "rearc"}
    assert len(gym.tasks()) > 100


def test_without_the_package_the_check_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gym, "version", version)
    (mistake,) = ReasoningGym().check(params(SMALL), Path())
    assert "pip install 'tracefactory[gym]'" in mistake


WITHOUT_PYCOSAT = """
import sys
sys.modules["pycosat"] = None
from tracefactory.reading import gym
(sums, zebras) = (next(gym.problems(task, {}, 1)) for task in ("chain_sum", "zebra_puzzles"))
print(sums.wrong, "|", zebras.wrong, "|", sys.modules.get("pycosat"))
"""


def test_without_pycosat_all_tasks_but_one_make_problems() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYCOSAT], capture_output=True, text=True, check=True)
    sums, zebras, left = done.stdout.strip().split(" | ")
    assert sums == "None"
    assert "pip install pycosat" in zebras
    assert left == "None"  # sympy would use what is found under this name


def test_the_makefile_installs_what_reasoning_gym_needs_but_for_pycosat() -> None:
    root = Path(__file__).parents[3]
    (listed,) = re.findall(r"^GYM := (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    own = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = {one for one in requires("reasoning-gym") or () if "extra ==" not in one}
    names = {re.split(r"[^\w-]", one)[0] for one in needed} - {"pycosat"}
    assert names <= {*listed.split(), *(re.split(r"[^\w-]", one)[0] for one in own)}
