"""What touches reasoning_gym: its tasks, their parameters, their problems, and whether JSON carries a problem whole."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tracefactory.core.errors import nearest
from tracefactory.core.fingerprint import digest

_OURS = {"seed", "size"}
# A few tasks prepare all of their problems at once, from their size; always asking for blocks of one size makes
# problem i the same whatever the size of the mix.
_BLOCK = 500


@dataclass(frozen=True)
class Made:
    """A generated problem as JSON values; `wrong` says why it cannot be used."""

    entry: dict[str, Any]
    category: str
    wrong: str | None


@functools.cache
def tasks() -> Mapping[str, tuple[Any, Any]]:
    """Return dataset class and configuration class of every task; importing the package takes a second or two."""
    import reasoning_gym  # noqa: F401 - fills the table below
    from reasoning_gym.factory import DATASETS

    # `composite` mixes the others, which this source does itself.
    return {name: classes for name, classes in sorted(DATASETS.items()) if name != "composite"}


def check_params(task: str, params: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the parameters of a known task, by its own configuration class."""
    config_class = tasks()[task][1]
    known = {field.name for field in dataclasses.fields(config_class)} - _OURS
    mistakes = []
    for name in params:
        if name in _OURS:
            mistakes.append(f"{name!r} is set for the whole mix")
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
        return [str(error) or f"its parameters do not fit: {type(error).__name__}"]
    return []


def problems(task: str, params: Mapping[str, Any], seed: int) -> Iterator[Made]:
    """Yield the problems of one task without end; a failing generator gives a problem that says so."""
    block = 0
    while True:
        # Tasks draw problem i from seed + i: neighbouring seeds would share all problems but one, a digest of the
        # seed shares none.
        block_seed = int(digest([seed, task, dict(params), block])[:8], 16) % 2**31
        dataset = tasks()[task][0](config=_config(task, params, block_seed))
        for index in range(_BLOCK):
            yield _make(dataset, index)
        block += 1


def try_out(task: str, params: Mapping[str, Any], seed: int) -> str | None:
    """Return what is wrong with the first problem of a task, None when nothing is."""
    with quietly():
        return next(problems(task, params, seed)).wrong


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what tasks print away from stdout, which is for results, and their warnings away from people."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _config(task: str, params: Mapping[str, Any], seed: int) -> Any:
    """Build a task's configuration; the field types turn lists of JSON into tuples and refuse what does not fit."""
    config = TypeAdapter(tasks()[task][1]).validate_python({**params, "seed": seed, "size": _BLOCK})
    if hasattr(config, "validate"):
        config.validate()
    return config


def _make(dataset: Any, index: int) -> Made:
    try:
        made = dataset[index]
    except Exception as error:  # noqa: BLE001 - any generator may fail in any way; the row records it
        return Made({}, dataset.category, f"it could not be generated: {type(error).__name__}: {error}")
    entry = {name: made[name] for name in ("question", "answer", "metadata")}
    if not (entry["answer"] is None or isinstance(entry["answer"], str)):
        return Made({}, dataset.category, f"its answer is a {type(entry['answer']).__name__}, not a text")
    try:
        as_json = json.loads(json.dumps(entry, allow_nan=False))
    except (TypeError, ValueError) as error:
        return Made({}, dataset.category, f"its metadata has no JSON form: {error}")
    for answer in (entry["answer"], entry["question"], "0"):
        here, there = _score(dataset, answer, entry), _score(dataset, answer, as_json)
        if here != there:
            changed = f"scores {here} with its metadata, and {there} after a round trip through JSON"
            return Made(as_json, dataset.category, f"the answer {str(answer)[:40]!r} {changed}")
    return Made(as_json, dataset.category, None)


def _score(dataset: Any, answer: str | None, entry: dict[str, Any]) -> float | str:
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception as error:  # noqa: BLE001 - scorers raise whatever they like; failing alike is equal scoring
        return type(error).__name__
