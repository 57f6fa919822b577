"""`tracefactory verify`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_optional_project
from tracefactory.core import plugins
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.rows import Verdict
from tracefactory.verification.base import VerifyTask, resolve
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import make_task

_FIELDS = ("gold", "answer", "response", "kind", "question", "spec", "finish_reason")
_BATCH = 256


def verify(
    gold: Annotated[str | None, typer.Option(help="The correct answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to check.")] = None,
    response: Annotated[str | None, typer.Option(help="A whole completion to find the answer in.")] = None,
    kind: Annotated[str, typer.Option(help="Name of a verifier; auto selects it by the correct answer.")] = "auto",
    file: Annotated[
        Path | None, typer.Option(help="JSON lines with gold, either answer or response, and optionally kind.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A parameter of the verifier, e.g. units=required. May be repeated.", metavar="NAME=VALUE"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for verifiers that can hang.")] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Maximum seconds for one pair.")] = 10.0,
    project: ProjectFolder = Path(),
    as_json: Json = False,
) -> None:
    """Check one answer against the correct one, or the pairs of a file.

    Inside a project, its verifiers can be named.
    """
    if (found_project := find_optional_project(project)) is not None:
        plugins.load(found_project.root)
    parameters = _parameters(policy or [])
    if file is None:
        if gold is None:
            raise UserError("give --gold with --answer or --response, or --file")
        rows: list[tuple[int | None, dict[str, Any]]] = [
            (None, {"gold": gold, "answer": answer, "response": response, "kind": kind})
        ]
    else:
        if gold is not None or answer is not None or response is not None:
            raise UserError("give either --file or one pair, not both")
        rows = list(_rows(file))
    tasks: list[VerifyTask] = []
    mistakes: list[Mistake] = []
    for number, row in rows:
        try:
            tasks.append(_task(row, kind, parameters))
        except UserError as error:
            place = None if number is None else file
            mistakes.extend(Mistake(one.message, place, number, one.hint) for one in error.mistakes)
    if mistakes:
        raise UserError(mistakes)
    with VerifierPool(workers=workers, deadline=deadline) as pool:
        for start in range(0, len(tasks), _BATCH):
            batch = tasks[start : start + _BATCH]
            # One answer is for a person, who is also shown what its program wrote.
            verdicts = asyncio.run(pool.verify(batch)) if file is not None else [pool.verify_now(batch[0])]
            for (_, row), verdict in zip(rows[start : start + _BATCH], verdicts, strict=True):
                _show(row, verdict, as_json=as_json, alone=file is None)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with their line numbers."""
    if not file.is_file():
        raise UserError(f"{file} is not a file")
    mistakes: list[Mistake] = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            mistakes.append(Mistake(f"not JSON: {error}", file, number))
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            mistakes.append(Mistake("not a JSON object", file, number))
    if mistakes:
        raise UserError(mistakes)


def _task(row: Mapping[str, Any], kind: str, policy: Mapping[str, Any]) -> VerifyTask:
    if "gold" not in row:
        close = nearest("gold", row) if row else None
        raise UserError(Mistake("a row needs 'gold' and either 'answer' or 'response'", hint=close))
    texts = {name: None if row.get(name) is None else str(row[name]) for name in ("gold", "answer", "response")}
    spec = row.get("spec") or {}
    task = make_task(
        **texts,
        kind=str(row.get("kind") or kind),
        question=str(row.get("question") or ""),
        spec=json.loads(spec) if isinstance(spec, str) else spec,
        finish_reason=str(row.get("finish_reason") or "stop"),
        policy=policy,
    )
    resolve(task)  # raises for an unknown verifier or parameter
    return task


def _parameters(settings: list[str]) -> dict[str, Any]:
    """Return the parameters of the verifier from settings such as "units=required"; values may be JSON."""
    policy: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--policy {setting}: write NAME=VALUE")
        try:
            policy[name] = json.loads(value)
        except json.JSONDecodeError:
            policy[name] = value
    return policy


def _show(row: Mapping[str, Any], verdict: Verdict, *, as_json: bool, alone: bool) -> None:
    if as_json:
        record = verdict.model_dump(mode="json")
        shown = {**row, "verdict": record.pop("outcome"), **record}
        if alone:
            shown = {name: value for name, value in shown.items() if value is not None or name not in _FIELDS}
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")
        return
    parts = [verdict.outcome.value, f"by {verdict.method}"]
    if verdict.extracted is not None:
        parts.append(f"extracted {verdict.extracted!r}")
    if verdict.detail:
        parts.append(verdict.detail)
    print("\t".join(parts))
    if verdict.log:
        print(verdict.log, file=sys.stderr)
