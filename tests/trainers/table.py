"""The findings table of docs/trainers.md: `python -m tests.trainers.table` proves every cell anew and writes it, and
the digests of the configurations that were read (`tests.trainers.proved`)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.trainers import proved, release, students
from tests.trainers.proofs import Bench, environment, found, read
from tests.trainers.students import STUDENTS
from tracefactory.trainers import TRAINERS

DOCS = Path(__file__).parents[2] / "tracefactory" / "docs" / "trainers.md"
BEGIN, END = "<!-- make trainers-table -->\n", "<!-- end -->\n"
PROVEN = [
    (trainer.name, view)
    for trainer in TRAINERS.values()
    if trainer.name != "open_instruct"
    for view in trainer.readings
    if view not in ("rlvr", "steps")
]
"""Every trainer and view whose result hangs on the chat template."""


def cells(bench: Bench, trainer: str, view: str) -> list[str]:
    """Return what a trainer makes of a view, for each student."""
    made = read(trainer, [bench.job(trainer, view, student) for student in STUDENTS])
    return [cell(found(bench, trainer, view, rows, student)) for student, rows in zip(STUDENTS, made, strict=True)]


def cell(findings: Mapping[str, set[str]]) -> str:
    """Return findings as the text of a cell."""
    output = [
        name
        if kinds == {"all"}
        else f"{name} ({', '.join(sorted(kinds - {'plain'}) if 'plain' not in kinds else ['where there is any'])})"
        for name, kinds in sorted(findings.items())
    ]
    return "; ".join(output) or "ok"


def line(trainer: str, view: str, found: Sequence[str]) -> str:
    """Return one line of the table."""
    return f"| {TRAINERS[trainer].title} {TRAINERS[trainer].proven} | `{view}` | {' | '.join(found)} |\n"


def written() -> str:
    """Return the table that the documentation has."""
    return DOCS.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    """Prove everything and write the table; every environment is needed."""
    if missing := [name for name, _ in PROVEN if name != "trl" and environment(name) is None]:
        sys.exit(f"no environment for {', '.join(dict.fromkeys(missing))}: make test-trainers makes them")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench = Bench(release.make(root / "project"), students.make(root / "students"), root / "jobs")
        head = f"| trainer | view | {' | '.join(STUDENTS)} |\n|---|---|{'---|' * len(STUDENTS)}\n"
        table = head + "".join(line(trainer, view, cells(bench, trainer, view)) for trainer, view in PROVEN)
    before, rest = DOCS.read_text().split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}{table}{END}{rest.split(END)[1]}")
    proved.FILE.write_text(json.dumps(proved.digests(), indent=1) + "\n")


if __name__ == "__main__":
    main()
