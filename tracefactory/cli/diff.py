"""`tracefactory diff`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tracefactory.cli.options import Json
from tracefactory.cli.show import stdout_console
from tracefactory.engine.reporting.report import plain_table
from tracefactory.publish.compare import Difference, compare

_SHOWN = 5

Folder = Annotated[Path, typer.Argument(help="The folder of a published version.", show_default=False)]


def diff(first: Folder, second: Folder, json: Json = False) -> None:
    """Compare two published versions: equal, changed, added and removed rows, and how the versions were made."""
    found = compare(first, second)
    if json:
        print(found.model_dump_json(indent=2))
        return
    console = stdout_console()
    console.print(_table(found), highlight=False)
    for line in _details(found):
        console.print(f"• {line}", highlight=False, markup=False)


def _table(found: Difference) -> Table:
    table = plain_table(f"{found.first} and {found.second}: {'the same rows' if found.identical else 'rows by id'}")
    table.add_column("view")
    for name in ("same", "changed", "only in the first", "only in the second"):
        table.add_column(name, justify="right")
    table.add_column("columns that changed")
    for one in found.views:
        counts = (one.same, len(one.changed), len(one.only_first), len(one.only_second))
        columns = ", ".join(f"{name} {count:,}" for name, count in one.changed_columns.items())
        table.add_row(one.view, *(f"{count:,}" for count in counts), columns)
    return table


def _details(found: Difference) -> Iterator[str]:
    """Yield the differences that the table does not have; rows are those of the first view."""
    view = found.views[0]
    for style, (before, after) in view.styles.items():
        yield f"{style}: {before:,} rows, then {after:,}"
    rows = {"changed": view.changed, "only in the first": view.only_first, "only in the second": view.only_second}
    for name, ids in rows.items():
        if ids:
            more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
            yield f"{name}: {', '.join(one[:12] for one in ids[:_SHOWN])}{more}"
    for one in found.views:
        yield from (f"{one.view}: only one of the versions has the column {name}" for name in one.columns)
    yield from found.changes
    for what, (first, second) in found.made_by.items():
        yield f"{what}: {first or 'none'}, then {second or 'none'}"
