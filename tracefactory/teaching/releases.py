"""The pipeline file of a comparison of releases, written from the options of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracefactory.config.project import find_project
from tracefactory.core.checkpoint import local_path
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_text
from tracefactory.core.yamlfile import to_yaml
from tracefactory.models.local import PACKAGED
from tracefactory.publish.release import read_manifest

_QUESTIONS = 1000
_SEED = 990_001  # of questions; the ones of shipped pipelines are small
_GYM = "reasoning_gym:"
_PROMPT = "question"
_VLLM = "TRACEFACTORY_VLLM"
_AT_ONCE = 128
"""Answers of a student that are decoded together in torch."""


def comparison_file(
    releases: Sequence[str], *, student: str | None, tokens: str, seeds: int, questions: str | None
) -> Path:
    """Write the pipeline file of a comparison into the project, unless it is there already, and return it.

    Args:
        releases: each the folder of a release, with `:VIEW` for one of its views, or ORG/REPO@TAG; the first one is the
            baseline.
        student: the student to train.
        tokens: the budget of each release, in tokens of the student in the loss.
        seeds: the trainings of each release.
        questions: where the questions are from: reasoning_gym:TASK, a file, or ORG/REPO@REVISION.

    Raises:
        UserError: when an option is missing, a folder is no release, or there is another file of this name.
    """
    mistakes = [
        Mistake(f"{option} is missing", hint=hint)
        for option, value, hint in (
            ("--student", student, f"such as {PACKAGED}smollm2-135m, a folder, or ORG/MODEL@REVISION"),
            ("--eval", questions, f"such as {_GYM}chain_sum, problems.jsonl or openai/gsm8k@REVISION"),
        )
        if value is None
    ]
    if mistakes or student is None or questions is None:
        raise UserError(mistakes)
    project = find_project(Path())
    arms: dict[str, Any] = {}
    for given in releases:
        place, _, view = given.partition(":")
        if Path(place).exists():
            place, base = _relative(Path(place), project.root), read_manifest(Path(place)).name
        else:
            base = place.rpartition("/")[2].partition("@")[0]
        name = next(one for one in (base, f"{base}-{view or len(arms)}", f"{base}-{len(arms)}") if one not in arms)
        arms[name] = {"release": place, **({"view": view} if view else {})}
    pipeline = {
        "name": f"teach-{'-'.join(arms)}"[:100],
        "version": "1",
        "models": _models(student),
        "stages": [
            {"id": "questions", **_source(questions, project.root)},
            {"id": "answers", "sample": "chat", "with": {"model": "taught", "prompt": _PROMPT, "temperature": 0.0}},
            {"id": "checked", "verify": "auto"},
        ],
        "teach": {"student": "student", "answers": "taught", "arms": arms, "tokens": tokens, "seeds": seeds},
    }
    file = project.pipelines / f"{re.sub(r'[^a-z0-9]+', '_', str(pipeline['name']).lower())}.yaml"
    text = to_yaml(pipeline)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        hint = f"tracefactory teach {file}, or move it away"
        raise UserError(Mistake(f"{file} exists, and compares something else", hint=hint))
    write_text(file, text)
    return file


def _models(student: str) -> dict[str, Any]:
    """Return the student, and the model that serves it once it is trained: vLLM where an environment of it is named."""
    name, _, revision = student.partition("@")
    pinned = {"revision": revision} if revision and local_path(name) is None else {}
    trained = {"use": "transformers", "model": name, **pinned}
    if _VLLM not in os.environ or name.startswith(PACKAGED) or name.endswith(".gguf"):
        return {"student": trained, "taught": {**trained, "concurrency": _AT_ONCE}}
    return {"student": trained, "taught": {"use": "vllm", "model": name, "env": f"env:{_VLLM}", **pinned}}


def _source(questions: str, root: Path) -> dict[str, Any]:
    if questions.startswith(_GYM):
        task = questions.removeprefix(_GYM)
        return {"source": "reasoning_gym", "with": {"size": _QUESTIONS, "seed": _SEED, "tasks": [{"task": task}]}}
    if Path(questions).exists():
        return {"source": "files", "with": {"paths": _relative(Path(questions), root)}}
    repo, at, revision = questions.partition("@")
    if not at or "/" not in repo:
        raise UserError(
            Mistake(f"--eval {questions}: no such file", hint=f"or {_GYM}TASK, or ORG/REPO@REVISION of the Hub")
        )
    return {"source": "hub_dataset", "with": {"repo": repo, "revision": revision, "split": "test"}}


def _relative(path: Path, root: Path) -> str:
    absolute = path.resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)
