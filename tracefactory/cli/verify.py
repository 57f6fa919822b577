"""`tracefactory verify`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracefactory.cli.options import Json
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.rows import Verdict
from tracefactory.verification.base import VerifyTask, resolve
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import make_task

_FIELDS = ("gold", "answer", "response", "kind", "question", "spec", "finish_reason")
_BATCH = 256


def verify(
    gold: Annotated[str | None, typer.Option(help="The right answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to check.")] = None,
    response: Annotated[str | None, typer.Option(help="A whole completion to find the answer in.")] = None,
    kind: Annotated[str, typer.Option(help="Name of a verifier; auto goes by the right answer.")] = "auto",
    file: Annotated[
        Path | None, typer.Option(help="JSON lines with gold and either answer or response, and perhaps kind.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A parameter of the verifier, e.g. units=required. May be repeated.", metavar="NAME=VALUE"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for what may hang.")] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds one pair may take.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Check one answer against the right one, or the pairs of a file."""
    given = _policy(policy or [])
    if file is None:
        if gold is None:
            raise UserError("give --gold with --answer or --response, or --file")
        rows = [{"gold": gold, "answer": answer, "response": response, "kind": kind}]
        places: list[tuple[Path | None, int]] = [(None, 1)]
    else:
        if gold is not None or answer is not None or response is not None:
            raise UserError("give either --file or one pair, not both")
        found = list(_rows(file))
        rows, places = [row for _, row in found], [(file, number) for number, _ in found]
    tasks = _tasks(rows, places, kind, given)
    with VerifierPool(workers=workers, deadline=deadline) as pool:
        for start in range(0, len(tasks), _BATCH):
            verdicts = asyncio.run(pool.verify(tasks[start : start + _BATCH]))
            for row, verdict in zip(rows[start : start + _BATCH], verdicts, strict=True):
                _show(row, verdict, as_json=as_json, alone=file is None)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _tasks(
    rows: list[dict[str, Any]], places: list[tuple[Path | None, int]], kind: str, policy: Mapping[str, Any]
) -> list[VerifyTask]:
    tasks: list[VerifyTask] = []
    mistakes: list[Mistake] = []
    for row, (file, number) in zip(rows, places, strict=True):
        try:
            task = _task(row, kind, policy)
            resolve(task)
        except UserError as error:
            mistakes.extend(Mistake(one.message, file, number if file else None, one.hint) for one in error.mistakes)
        else:
            tasks.append(task)
    if mistakes:
        raise UserError(mistakes)
    return tasks


def _task(row: Mapping[str, Any], kind: str, policy: Mapping[str, Any]) -> VerifyTask:
    if "gold" not in row:
        close = nearest("gold", row) if row else None
        raise UserError(Mistake("a row needs 'gold' and either 'answer' or 'response'", hint=close))
    texts = {name: None if row.get(name) is None else str(row[name]) for name in ("gold", "answer", "response")}
    spec = row.get("spec") or {}
    return make_task(
        **texts,
        kind=str(row.get("kind") or kind),
        question=str(row.get("question") or ""),
        spec=json.loads(spec) if isinstance(spec, str) else spec,
        finish_reason=str(row.get("finish_reason") or "stop"),
        policy=policy,
    )


def _policy(settings: list[str]) -> dict[str, Any]:
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
