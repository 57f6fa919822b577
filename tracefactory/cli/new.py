"""`tracefactory new`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from tracefactory.cli.options import ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core import plugins
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


class Kind(StrEnum):
    """The kinds of files that can be written."""

    FILTER = "filter"
    COLUMN_FILTER = "column_filter"
    PROMPT = "prompt"
    PIPELINE = "pipeline"
    PRUNER = "pruner"
    ROLLOUT = "rollout"
    VERIFIER = "verifier"
    VIEW = "view"
    SOURCE = "source"
    DECODER = "decoder"
    MODEL = "model"
    STAGE = "stage"


_FILES = {
    Kind.FILTER: "filters/{name}.py",
    Kind.COLUMN_FILTER: "filters/{name}.py",
    Kind.PROMPT: "prompts/{name}.md",
    Kind.PIPELINE: "pipelines/{name}.yaml",
    Kind.PRUNER: "pruners/{name}.py",
    Kind.ROLLOUT: "rollouts/{name}.py",
    Kind.VERIFIER: "verifiers/{name}.py",
    Kind.VIEW: "views/{name}.py",
    Kind.SOURCE: "sources/{name}.py",
    Kind.DECODER: "decoders/{name}.py",
    Kind.MODEL: "models/{name}.py",
    Kind.STAGE: "stages/{verb}/{name}.py",
}


def new(
    kind: Annotated[Kind, typer.Argument(show_default=False)],
    name: Annotated[
        str, typer.Argument(help="Letters, digits and underscores; of a stage verb:name.", show_default=False)
    ],
    verb: Annotated[str | None, typer.Option(help="The verb of a stage.")] = None,
    project: ProjectFolder = Path(),
) -> None:
    """Write a template of one kind of file, and its test in tests/. No other file needs a change."""
    verb, name = _named(kind, name, verb)
    root = find_project(project).root
    words = [part for part in f"{verb or ''}_{name}".split("_") if part]
    values = {"name": name, "verb": verb or "", "title": "".join(map(str.capitalize, words))}
    files = {root / _FILES[kind].format(name=name, verb=verb): f"{kind}.txt"}
    if (_TEMPLATES / f"{kind}_test.txt").exists():
        files[root / "tests" / f"test_{'_'.join([kind, *words])}.py"] = f"{kind}_test.txt"
    mistakes = [Mistake(f"{file} exists") for file in files if file.exists()]
    if wrong := plugins.wrong_file(next(iter(files)), root):
        mistakes.append(wrong)
    if mistakes:
        raise UserError(mistakes)
    for file, template in files.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        write_text(file, Template(text).substitute(values))
        print(file)


def _named(kind: Kind, name: str, verb: str | None) -> tuple[str | None, str]:
    """Return the verb, of a stage only, and the name.

    Raises:
        UserError: when one of them cannot be used.
    """
    if kind is Kind.STAGE:
        before, colon, after = name.partition(":")
        verb, name = (before, after.strip()) if colon else (verb, name)
        if not verb:
            raise UserError(Mistake("a stage needs a verb and a name", hint=f"write verify:{name} or --verb verify"))
        if not plugins.VERB.fullmatch(verb):
            raise UserError(f"{verb!r} cannot be a verb: small letters only")
    elif verb is not None:
        raise UserError("--verb is only for stages")
    pattern = r"[a-z][a-z0-9_]*" if kind in (Kind.PROMPT, Kind.PIPELINE) else plugins.NAME.pattern
    if not re.fullmatch(pattern, name):
        raise UserError(f"{name!r} cannot be a name: small letters, digits and underscores, a letter first")
    return verb, name
