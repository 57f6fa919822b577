"""Access to reasoning_gym: its tasks, their parameters and their problems, which must be scorable from JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest

_OURS = {"seed", "size"}
# Some tasks prepare all problems at once, depending on their number; generating blocks of a fixed size makes problem i
# independent of the size of the mix.
_BLOCK = 500


@dataclass(frozen=True)
class GeneratedProblem:
    """A generated problem as JSON values; `wrong` is the reason why it cannot be used, or None."""

    entry: dict[str, Any]
    category: str
    wrong: str | None


def installed() -> str:
    """Return the version of reasoning_gym.

    Raises:
        UserError: when it is not installed.
    """
    try:
        return version("reasoning-gym")
    except PackageNotFoundError:
        missing = "problems of reasoning_gym need the package reasoning-gym"
        raise UserError(Mistake(missing, hint="pip install 'tracefactory[gym]'")) from None


@functools.cache
def tasks() -> Mapping[str, tuple[Any, Any]]:
    """Return the dataset class and configuration class of every task; the import takes one or two seconds.

    Raises:
        UserError: when reasoning_gym is not installed.
    """
    installed()
    with _pycosat():
        from reasoning_gym.factory import DATASETS

    # `composite` mixes other tasks, which this source does itself.
    return {name: classes for name, classes in sorted(DATASETS.items()) if name != "composite"}


@contextlib.contextmanager
def _pycosat() -> Iterator[None]:
    """Let reasoning_gym be imported without pycosat, which has no wheel: pip compiles it, for `zebra_puzzles` alone."""
    if importlib.util.find_spec("pycosat") is not None:
        yield
        return

    def missing(name: str) -> NoReturn:
        raise ModuleNotFoundError("zebra_puzzles needs pycosat, which pip compiles: pip install pycosat")

    stand_in = ModuleType("pycosat")
    stand_in.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules["pycosat"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pycosat"]  # sympy uses it where it can be imported


def check_params(task: str, params: Mapping[str, Any]) -> list[str]:
    """Return the mistakes in the parameters of a task, according to its configuration class.

    Args:
        task: the name of a known task.
        params: its parameters.
    """
    config_class = tasks()[task][1]
    known = {field.name for field in dataclasses.fields(config_class)} - _OURS
    mistakes = []
    for name in params:
        if name in _OURS:
            mistakes.append(f"{name!r} is set for the whole mix, not for a task")
        elif name not in known:
            hint = nearest(name, known)
            mistakes.append(f"unknown parameter {name!r}" + (f" ({hint})" if hint else ""))
    if mistakes:
        return mistakes
    try:
        _config(task, params, seed=0)
    except ValidationError as error:
        return [f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()]
    except (AssertionError, ValueError, TypeError) as error:
        return [str(error) or f"its parameters are invalid: {type(error).__name__}"]
    return []


def problems(task: str, params: Mapping[str, Any], seed: int) -> Iterator[GeneratedProblem]:
    """Yield problems of one task indefinitely; when the generator fails, `wrong` of the problem has the reason.

    Args:
        task: the name of the task.
        params: its parameters.
        seed: the seed of the mix.
    """
    block = 0
    while True:
        # Tasks generate problem i from seed + i, so adjacent seeds would share nearly all problems; digests of the
        # seed do not.
        block_seed = int(digest([seed, task, dict(params), block])[:8], 16) % 2**31
        dataset = tasks()[task][0](config=_config(task, params, block_seed))
        for index in range(_BLOCK):
            yield _make(dataset, index)
        block += 1


def try_out(task: str, params: Mapping[str, Any], seed: int) -> str | None:
    """Return the reason why the first problem of a task cannot be used, None when it can be used.

    Args:
        task: the name of the task.
        params: its parameters.
        seed: the seed of the mix.
    """
    with quietly():
        return next(problems(task, params, seed)).wrong


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Redirect what tasks print from stdout, which is for results, to stderr, and suppress their warnings."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _config(task: str, params: Mapping[str, Any], seed: int) -> Any:
    """Build a task's configuration; the field types convert JSON lists to tuples and reject invalid values."""
    config = TypeAdapter(tasks()[task][1]).validate_python({**params, "seed": seed, "size": _BLOCK})
    if hasattr(config, "validate"):
        config.validate()
    return config


def _make(dataset: Any, index: int) -> GeneratedProblem:
    try:
        made = dataset[index]
    except Exception as error:  # noqa: BLE001 - generators can raise any exception; the row records it
        return GeneratedProblem({}, dataset.category, f"it could not be generated: {type(error).__name__}: {error}")
    entry = {name: made[name] for name in ("question", "answer", "metadata")}
    if not (entry["answer"] is None or isinstance(entry["answer"], str)):
        return GeneratedProblem({}, dataset.category, f"its answer is a {type(entry['answer']).__name__}, not text")
    try:
        as_json = json.loads(json.dumps(entry, allow_nan=False))
    except (TypeError, ValueError) as error:
        return GeneratedProblem({}, dataset.category, f"its metadata has no JSON form: {error}")
    for answer in (entry["answer"], entry["question"], "0"):
        here, there = _score(dataset, answer, entry), _score(dataset, answer, as_json)
        if here != there:
            changed = f"scores {here} with its metadata, but {there} after a JSON round trip"
            return GeneratedProblem(as_json, dataset.category, f"the answer {str(answer)[:40]!r} {changed}")
    return GeneratedProblem(as_json, dataset.category, None)


def _score(dataset: Any, answer: str | None, entry: dict[str, Any]) -> float | str:
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception as error:  # noqa: BLE001 - scorers can raise any exception; equal exceptions count as equal scores
        return type(error).__name__
