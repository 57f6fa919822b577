"""`tracefactory gc`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from tracefactory.cli.options import Json, ProjectFolder

if TYPE_CHECKING:
    from tracefactory.core.pipeline import Project
    from tracefactory.engine.garbage.collection import GarbagePlan, Item


def gc(
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be deleted and why, and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    keep_runs: Annotated[int, typer.Option(min=1, help="Run folders to keep of each pipeline.")] = 10,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Delete this too, although it costs something to make again: a stage, scores or a trained student "
            "that the plan lists as kept, by the name there. May be repeated.",
            metavar="NAME",
        ),
    ] = None,
    completions_of: Annotated[
        str | None,
        typer.Option(
            help="Delete the paid completions of one model, and nothing else. Their requests are paid again if a "
            "pipeline needs them.",
            metavar="MODEL",
        ),
    ] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Delete what nobody needs and what can be made again without paying: stages, old runs, leftovers.

    Paid completions are never deleted, except those of a model that --completions-of names.
    """
    import orjson

    from tracefactory.config.project import find_project
    from tracefactory.engine.garbage.collection import collect, plan_garbage

    found = find_project(project)
    if completions_of is not None:
        _delete_completions(found, completions_of, only_plan=plan, yes=yes, json=json)
        return
    made = plan_garbage(found, keep_runs=keep_runs, named=also or ())
    told = made.model_dump(mode="json")
    if not json:
        print("\n".join(_lines(made)))
    if plan or not made.to_delete:
        if json:
            print(orjson.dumps({**told, "deleted": []}, option=orjson.OPT_INDENT_2).decode())
        return
    _confirm(f"delete {_sum(made.to_delete)}?", yes=yes, json=json)
    done = asyncio.run(collect(found, made))
    if json:
        dumped = done.model_dump(mode="json")
        print(orjson.dumps({**told, "deleted": dumped["deleted"], "in_use": dumped["left"]}).decode())
        return
    print(f"deleted: {_sum(done.deleted)}")
    for one in done.left:
        print(f"left: {one.name}: {one.kept}")


def _lines(plan: GarbagePlan) -> Iterator[str]:
    """Yield the plan as text: each item with its size, and below it why."""
    for title, items in (("to delete", plan.to_delete), ("kept, unless --also names it", plan.left)):
        if items:
            yield f"{title}: {_sum(items)}"
        for one in sorted(items, key=lambda item: -item.bytes):
            yield f"  {one.name}  {amount(one.files, one.bytes)}"
            why = one.why + (f"; kept: {one.kept}" if one.kept else "")
            yield fill(why, 80, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    if not plan.items:
        yield "nothing to delete"
    yield from (f"no stage is deleted, because this cannot be read: {text}" for text in plan.broken)
    yield from plan.notes
    yield f"{plan.needed:,} stages are needed by pipelines, newest runs and releases; paid completions are never listed"


def _sum(items: Sequence[Item]) -> str:
    return amount(sum(one.files for one in items), sum(one.bytes for one in items))


def amount(files: int, size: int) -> str:
    """Return numbers of files and bytes as text."""
    return f"{files:,} {'file' if files == 1 else 'files'}, {in_bytes(size)}"


def in_bytes(size: int) -> str:
    """Return a number of bytes with a unit, such as `1.5 MB`."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def _confirm(question: str, *, yes: bool, json: bool) -> None:
    """Ask before something is deleted.

    Raises:
        UserError: when nobody can be asked.
    """
    from tracefactory.core.errors import Mistake, UserError

    if yes:
        return
    if json or not sys.stdin.isatty():
        raise UserError(Mistake("nothing was deleted", hint="--plan shows what would be, --yes deletes it"))
    typer.confirm(question, abort=True, err=True)


def _delete_completions(project: Project, model: str, *, only_plan: bool, yes: bool, json: bool) -> None:
    import orjson

    from tracefactory.core.errors import Mistake, UserError, nearest
    from tracefactory.store.discarding import completions_by_model, discard_completions

    if project.shared:
        raise UserError(
            Mistake(
                f"--completions-of: the state is shared at {project.shared}, which has the completions too and from "
                "which nothing is deleted here",
            )
        )
    held = completions_by_model(project.state_dir)
    if model not in held:
        raise UserError(Mistake(f"--completions-of: no completion of {model!r} is stored", hint=nearest(model, held)))
    one = held[model]
    unpriced = f", and {one.unpriced:,} have no known price" if one.unpriced else ""
    if not json:
        print(f"{one.completions:,} completions of {model}, {in_bytes(one.size)}, cost {one.usd:.4f} ${unpriced}")
    if not only_plan:
        _confirm(f"delete {one.completions:,} paid completions of {model}?", yes=yes, json=json)
        deleted = discard_completions(project.state_dir, model)
        if not json:
            print(f"deleted: {deleted:,} completions; a run that needs them pays again")
    if json:
        told = {"model": model, **vars(one), "deleted": 0 if only_plan else deleted}
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
