"""`tracefactory fsck`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tracefactory.cli.options import Json, ProjectFolder


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged files aside and write again what can be read of them.")
    ] = False,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Read everything that is stored and list every damage: file, place, what is wrong and what it means.

    Exit status: 0 when nothing is damaged or everything was repaired, 1 otherwise.
    """
    import orjson

    from tracefactory.config.project import find_project
    from tracefactory.store.check import check
    from tracefactory.store.repair import repair as repair_files

    root = find_project(project).state_dir
    report = check(root, _Progress(root))
    aside = repair_files(root, report.damage) if repair and report.damage else None
    left = report.damage if aside is None else check(root, _Progress(root)).damage
    if json:
        listed = [{**vars(one), "path": str(one.path)} for one in report.damage]
        print(
            orjson.dumps(
                {
                    "files": report.files,
                    "completions": report.completions,
                    "lost_completions": report.lost,
                    "damage": listed,
                    "repaired": aside is not None and not left,
                    "set_aside": None if aside is None else str(aside),
                },
                option=orjson.OPT_INDENT_2,
            ).decode()
        )
    else:
        for one in report.damage:
            print(one)
        read = f"{report.files:,} files and {report.completions:,} completions read"
        print(f"{read}: {len(report.damage):,} damaged places, {report.lost:,} completions lost")
        if aside is not None:
            print(f"the damaged files were set aside in {aside}; requests of lost completions are owed again")
            for one in left:
                print(f"could not be repaired: {one}")
            print("`tracefactory plan PIPELINE` says what is to pay; `tracefactory run PIPELINE` goes on")
        elif report.damage:
            print("`tracefactory fsck --repair` sets damaged files aside; nothing that can be read is lost")
    if left:
        raise typer.Exit(1)


class _Progress:
    """Shows on a terminal which file is being read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: Path) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{path.relative_to(self.root)}\r", end="", file=sys.stderr, flush=True)
