"""`tracefactory diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tracefactory.cli.options import Json
from tracefactory.cli.show import stdout_console
from tracefactory.engine.report import plain_table
from tracefactory.publish.compare import Difference, ViewDifference, compare

_SHOWN = 5

Folder = Annotated[Path, typer.Argument(help="The folder of a published version.", show_default=False)]


def diff(first: Folder, second: Folder, json: Json = False) -> None:
    """Say which rows two published versions share, which came, went and changed, and what they were made by."""
    found = compare(first, second)
    if json:
        print(found.model_dump_json(indent=2))
        return
    console = stdout_console()
    console.print(_table(found), highlight=False)
    for line in _details(found):
        console.print(f"• {line}", highlight=False, markup=False)


def _table(found: Difference) -> Table:
    title = f"{found.first} and {found.second}: {'the same rows' if found.identical else 'rows by id'}"
    table = plain_table(title)
    table.add_column("view")
    for name in ("same", "changed", "only in the first", "only in the second"):
        table.add_column(name, justify="right")
    table.add_column("columns that changed")
    for one in found.views:
        counts = (one.same, len(one.changed), len(one.only_first), len(one.only_second))
        columns = ", ".join(f"{name} {count:,}" for name, count in one.changed_columns.items())
        table.add_row(one.view, *(f"{count:,}" for count in counts), columns)
    return table


def _details(found: Difference) -> list[str]:
    view = found.views[0]
    said = [f"{style}: {before:,} rows, then {after:,}" for style, (before, after) in view.styles.items()]
    said += _rows(view)
    said += [f"{one.view}: only one of them has the column {name}" for one in found.views for name in one.columns]
    said += [f"{what}: {one or 'none'}, then {other or 'none'}" for what, (one, other) in found.made_by.items()]
    return said


def _rows(view: ViewDifference) -> list[str]:
    listed = {
        "changed": view.changed,
        "only in the first": view.only_first,
        "only in the second": view.only_second,
    }
    return [f"{name}: {_few(ids)}" for name, ids in listed.items() if ids]


def _few(ids: tuple[str, ...]) -> str:
    shown = ", ".join(one[:12] for one in ids[:_SHOWN])
    return shown if len(ids) <= _SHOWN else f"{shown} and {len(ids) - _SHOWN:,} more"
