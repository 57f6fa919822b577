"""`tracefactory ops`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tracefactory.cli.catalog.entries import Entry, Measure, Parameter, entries, measures, named
from tracefactory.cli.catalog.schema import pipeline_schema
from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.cli.show import stdout_console
from tracefactory.config.project import find_optional_project
from tracefactory.core import plugins
from tracefactory.core.registry import FAMILIES, registry
from tracefactory.filters import load_filters

LEFT = 30  # characters of the column with names, types and defaults
_TITLES = {
    "operation": "operations",
    "source": "sources",
    "decoder": "decoders",
    "pruner": "pruners",
    "rollout": "rollouts",
    "verifier": "verifiers",
    "view": "views",
    "model": "kinds of models",
    "section": "sections of a pipeline file",
}


def ops(
    name: Annotated[str | None, typer.Argument(help="Show one entry in full, e.g. sample:chat or math.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show every entry in full.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a pipeline file.")] = False,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """List operations, verifiers, views, pruners, sources, decoders, kinds of models, sections and measures.

    Inside a project, its plugins are included.
    """
    found = find_optional_project(project)
    if found is not None:
        plugins.load(found.root)
    if schema:
        filters = None if found is None else load_filters(found.filters)
        print(jsonlib.dumps(pipeline_schema(filters), indent=2, ensure_ascii=False))
        return
    shown = entries() if name is None else named(name)
    columns = measures(shown)
    if json:
        plain = {
            "entries": [one.model_dump(mode="json") for one in shown],
            "measures": [one.model_dump(mode="json") for one in columns],
        }
        print(jsonlib.dumps(plain, indent=2, ensure_ascii=False))
        return
    console = stdout_console()
    tables = _in_full(shown) if name is not None or full else _overview(shown)
    for part in (*tables, *([_measures(columns)] if columns else [])):
        console.print(part, highlight=False)


def _overview(shown: Sequence[Entry]) -> Iterator[Table]:
    """Yield one table for each kind, with the form, summary and parameters of each entry.

    Pruners, sources and decoders are shown as operations, which have more parameters.
    """
    for kind, title in _TITLES.items():
        table = _table(title, "in a pipeline", "what it does")
        for entry in (one for one in shown if _table_of(one) == kind):
            own = "" if entry.origin == "built in" else f" [{entry.origin}]"
            names = ", ".join(f"{one.name}{'*' if one.required else ''}" for one in entry.parameters)
            listed = f"\n[dim]{names}[/dim]" if names and kind != "view" else ""
            table.add_row(escape(entry.written), escape(f"{entry.summary}{own}") + listed)
        yield table


def _table_of(entry: Entry) -> str:
    """Return the kind of the table with an entry; "" for a pruner, source or decoder, whose operation is shown."""
    verb, _, own = entry.name.partition(":")
    if entry.kind == "operation":
        of = FAMILIES.get(verb)
        return of if of is not None and own in registry(of) else entry.kind
    return "" if entry.kind in FAMILIES.values() else entry.kind


def _in_full(shown: Sequence[Entry]) -> Iterator[Table | str]:
    for entry in shown:
        version = f", version {entry.version}" if entry.version else ""
        yield f"\n[bold]{escape(entry.written)}[/bold]  {entry.kind}{version}, {entry.origin}"
        yield escape(entry.description)
        table = _table("", "column" if entry.kind == "view" else "parameter", "what it is")
        for name, one in _flat(entry.parameters):
            default = "required" if one.required else f"= {jsonlib.dumps(one.default, ensure_ascii=False)}"
            parts = [one.type] if entry.kind == "view" or one.parameters else [one.type, default]
            left = "\n".join(line for part in parts for line in wrap(part, LEFT))
            table.add_row(f"{name}\n[dim]{escape(left)}[/dim]", escape(one.description))
        yield table if entry.parameters else "It has no parameters."


def _flat(parameters: Sequence[Parameter], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    for one in parameters:
        yield prefix + one.name, one
        yield from _flat(one.parameters, f"{prefix}{one.name}.")


def _measures(columns: Sequence[Measure]) -> Table:
    table = _table(
        "measures: columns that operations add to rows", "column", "unit", "better", "what it is", whole=False
    )
    for one in columns:
        by = one.operations[0] + (" ..." if len(one.operations) > 1 else "")
        about = " ".join(text for text in (one.description, one.source and f"({one.source})") if text)
        table.add_row(escape(one.name), one.unit or one.type, one.direction, f"{escape(about)} [dim]{by}[/dim]")
    return table


def _table(title: str, *columns: str, whole: bool = True) -> Table:
    """Return an empty table; with `whole`, its first column is not folded."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=whole and number == 0)
    return table
