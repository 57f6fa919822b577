"""Generate problems with reasoning_gym, whose scorers are the verifiers.

Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable Rewards",
arXiv:2505.24760.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from tracefactory.core.errors import RunError, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen, Problem
from tracefactory.reading import gym
from tracefactory.reading.base import SOURCES, Rejected, Source, json_text, take

_LICENCE = "Apache-2.0"


class Task(Frozen):
    """One task of the mix, with its share of the problems and its parameters."""

    task: str = Field(description="Name of the reasoning_gym task, such as chain_sum.")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Share of the mix, relative to the others.")
    params: dict[str, JsonValue] = Field({}, description="The parameters of the task, without seed and size.")


class ReasoningGymParams(Frozen):
    """A mix of tasks. The same seed gives the same problems; a larger size gives the same problems and then others."""

    tasks: tuple[Task, ...] = Field(min_length=1, description="The tasks of the mix.")
    size: int = Field(gt=0, description="Number of problems of all tasks together.")
    seed: int = Field(0, description="Any integer; other seeds give other problems.")


@SOURCES.register("reasoning_gym")
class ReasoningGym(Source[ReasoningGymParams]):
    """Generates problems in a separate process, for the reasons in `tracefactory.reading.gym_process`."""

    name = "reasoning_gym"
    version = "1"
    Params = ReasoningGymParams

    def read(self, params: ReasoningGymParams, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        """Yield the problems of the mix."""
        # The names are known where the file was checked; the tasks take a second to import.
        if not _checked_file(params).exists() and (mistakes := _check_names(params)):
            raise UserError("; ".join(mistakes))
        yield from take(_generate(params), limit)

    def identity(self, params: ReasoningGymParams, base_dir: Path) -> dict[str, Any]:
        """Return the version of the package, because its generators change between versions."""
        return {"reasoning_gym": gym.installed()}

    def verifiers(self, params: ReasoningGymParams) -> frozenset[str]:
        """Return the verifier of all tasks."""
        return frozenset({"reasoning_gym"})

    def describe(self, params: ReasoningGymParams) -> str:
        """Return the version of the package and the names of the tasks."""
        names = ", ".join(sorted({task.task for task in params.tasks}))
        return f"reasoning_gym {gym.installed()}: {names}"

    def check(self, params: ReasoningGymParams, base_dir: Path) -> list[str]:
        """Check names and values, then generate one problem of every task and score it as the verifier does."""
        try:
            checked = _checked_file(params)
        except UserError as error:
            return [str(error)]
        if checked.exists():
            return []
        mistakes = _check_names(params) or [
            f"{task.task}: {wrong}"
            for task in params.tasks
            if (wrong := gym.try_out(task.task, task.params, params.seed))
        ]
        if not mistakes:
            with contextlib.suppress(OSError):
                checked.parent.mkdir(parents=True, exist_ok=True)
                checked.touch()
        return mistakes


def _checked_file(params: ReasoningGymParams) -> Path:
    """Return the file in the user's cache that exists when these tasks passed the check, which takes seconds.

    Its name depends on the version of reasoning_gym, the tasks and the seed, but not on the number of problems.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = digest({"version": gym.installed(), "tasks": params.model_dump(mode="json")["tasks"]})
    return cache / "tracefactory" / "reasoning_gym" / f"{asked[:32]}-{params.seed}.checked"


def interleave(weights: Sequence[float], size: int) -> Iterator[int]:
    """Yield indexes of weights, so that after every step each count differs from its exact share by less than one.

    The next index is the one that is furthest behind its share (the quota method of apportionment; Balinski and Young
    1975). A smaller size gives the beginning of the same sequence.

    Args:
        weights: the weights.
        size: the number of indexes.
    """
    total = sum(weights)
    counts = [0] * len(weights)
    for step in range(1, size + 1):
        # Of the weights with fewer problems than their share of the first `step`, the largest weight per problem.
        eligible = [index for index, weight in enumerate(weights) if counts[index] < weight * step / total]
        chosen = max(eligible, key=lambda index: (weights[index] / (counts[index] + 1), -index))
        counts[chosen] += 1
        yield chosen


def _check_names(params: ReasoningGymParams) -> list[str]:
    mistakes: list[str] = []
    seen: list[tuple[str, Mapping[str, JsonValue]]] = []
    for task in params.tasks:
        if (task.task, task.params) in seen:
            mistakes.append(f"task {task.task!r} is there twice with the same parameters; add up the weights")
        seen.append((task.task, task.params))
        if task.task not in gym.tasks():
            hint = nearest(task.task, gym.tasks())
            mistakes.append(f"unknown reasoning_gym task {task.task!r}" + (f" ({hint})" if hint else ""))
        else:
            mistakes += [f"{task.task}: {wrong}" for wrong in gym.check_params(task.task, task.params)]
    return mistakes


def _generate(params: ReasoningGymParams) -> Iterator[Problem | Rejected]:
    request = {
        "tasks": [[task.task, task.params] for task in params.tasks],
        "seed": params.seed,
        "order": list(interleave([task.weight for task in params.tasks], params.size)),
    }
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    # The request and stderr are files and not pipes, because a full pipe could block the process.
    with (
        tempfile.TemporaryFile("w+") as input_file,
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory() as folder,
    ):
        json.dump(request, input_file)
        input_file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tracefactory.reading.gym_process"],
            stdin=input_file,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,  # tasks that run code can leave files in their working folder
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path},
            encoding="utf-8",
        )
        with process:
            try:
                for number, line in enumerate(process.stdout or (), 1):
                    yield _as_problem(json.loads(line), number)
                if process.wait():
                    errors.seek(0)
                    raise RunError(f"reasoning_gym failed:\n{errors.read()}")
            finally:
                # A caller that stops early leaves a process that still generates.
                process.kill()


def _as_problem(row: Mapping[str, Any], number: int) -> Problem | Rejected:
    task, entry = row["task"], row["entry"]
    if row["wrong"] is not None:
        detail = f"{task}, problem {number}: {row['wrong']}"
        return Rejected(row=json_text(entry), reason="not_scorable_from_json", detail=detail)
    return Problem.make(
        question=entry["question"],
        answer=entry["answer"],
        verifier="reasoning_gym",
        spec=json_text({"task": task, "entry": entry}),
        domain=row["category"],
        source=f"reasoning_gym/{task}",
        licence=_LICENCE,
        meta=json_text({"row": number}),
    )
