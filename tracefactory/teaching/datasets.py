"""The datasets of a comparison: those that its file names, and the controls, in the tokens of the student.

A dataset without a control proves little: a student may learn the form of the answers alone (`shuffled`), from any rows
(`random`), or as much from the first part of each trace (`truncated`; the first half keeps about 91% of the effect of
long traces, arXiv 2512.21002).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.teach import Arm, Teach
from tracefactory.publish.release import read_manifest
from tracefactory.students.render import Renderer
from tracefactory.teaching.encoding import IGNORED, Encoded, encode_rows
from tracefactory.teaching.hub import release_folder
from tracefactory.teaching.rows import TrainingRow, drawn, read_measures, read_rows, shuffled

_HALF = 0.5  # of a target, where there is no shorter dataset to compare with
_MOST_REFUSED = 0.02


@dataclass(frozen=True, eq=False)
class Dataset:
    """One dataset of a comparison.

    Attributes:
        name: its name.
        about: how its rows were made, in words.
        rows: its rows as texts; of a truncated one the whole ones.
        encoded: its rows in the student's tokens.
        release: the digest of the contents of the release, of a dataset that is one.
        measures: means of what was measured of its traces, as they are in it.
    """

    name: str
    about: str
    rows: Sequence[TrainingRow]
    encoded: Encoded
    release: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_tokens(self) -> float:
        """The mean number of tokens in the loss of a row."""
        return self.encoded.tokens / max(len(self.encoded.table), 1)


def datasets_of(teach: Teach, root: Path, cache: Path, renderer: Renderer) -> dict[str, Dataset]:
    """Return the datasets of a comparison by name, in the order of its file, then the controls.

    A control that would be one of the datasets again is left out: random rows of a single dataset.

    Args:
        teach: the section `teach:`.
        root: the folder of the project, which the folders of releases start from.
        cache: where releases of the Hub are kept.
        renderer: the student's.

    Raises:
        UserError: for a release that cannot be read, a template that loses the reasoning, or many rows that it refuses.
    """
    maker = _Maker(renderer, teach.training.max_length)
    for name in teach.order():
        arm = teach.arms[name]
        if arm.release:
            maker.read(name, arm, root, cache)
        elif arm.random:
            maker.draw(name, maker.made[arm.random].rows, len(maker.made[arm.like].rows), arm.random)
        elif arm.shuffle:
            maker.shuffle(name, maker.made[arm.shuffle])
        else:
            of = maker.made[arm.truncate]
            share = arm.share or min(1.0, maker.made[arm.like].mean_tokens / of.mean_tokens)
            maker.truncate(name, of, share)
    named = {name: maker.made[name] for name in teach.arms}
    first, lengths = next(iter(named.values())), sorted(named.values(), key=lambda one: one.mean_tokens)
    everything = {row.id: row for one in named.values() for row in one.rows}
    for control in teach.controls:
        if control == "truncated":
            short, long = lengths[0].mean_tokens, lengths[-1]
            maker.truncate(control, long, _HALF if long is lengths[0] else short / long.mean_tokens)
        elif control == "shuffled":
            maker.shuffle(control, first)
        elif len(everything) > len(first.rows):
            maker.draw(control, list(everything.values()), len(first.rows), "all datasets")
    return {**named, **maker.made}


@dataclass
class _Maker:
    """Makes datasets; `measured` are the measures of traces by id, of the releases that were read."""

    renderer: Renderer
    max_length: int
    made: dict[str, Dataset] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)

    def read(self, name: str, arm: Arm, root: Path, cache: Path) -> None:
        folder = release_folder(arm.release, root, cache)
        self.measured |= read_measures(folder)
        rows = read_rows(folder, arm.view, arm.style)
        about = f"{arm.release}, style {arm.style}" if arm.style else arm.release
        content = read_manifest(folder).content
        self._add(Dataset(name, about, rows, self._encoded(rows), content, means(self.measured, rows)))

    def draw(self, name: str, rows: Sequence[TrainingRow], count: int, of: str) -> None:
        about = f"{min(count, len(rows)):,} of the {len(rows):,} rows of {of} at random"
        chosen = drawn(rows, count)
        self._add(Dataset(name, about, chosen, self._encoded(chosen), measures=means(self.measured, chosen)))

    def shuffle(self, name: str, of: Dataset) -> None:
        rows = shuffled(of.rows)
        self._add(Dataset(name, f"{of.name} with its targets under other questions", rows, self._encoded(rows)))

    def truncate(self, name: str, of: Dataset, share: float) -> None:
        about = f"the first {share:.0%} of each target of {of.name}"
        self._add(Dataset(name, about, of.rows, truncated(of.encoded, share)))

    def _encoded(self, rows: Sequence[TrainingRow]) -> Encoded:
        return encode_rows(rows, self.renderer, self.max_length)

    def _add(self, made: Dataset) -> None:
        """Add a dataset unless so many of its rows cannot be encoded that the rest is another dataset."""
        refused = made.encoded.refused
        if len(refused) > _MOST_REFUSED * len(made.rows):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in made.encoded.reasons.items())
            what = f"{made.name}: {len(refused):,} of {len(made.rows):,} rows cannot be trained on ({reasons})"
            raise UserError(Mistake(f"{what}; the first: {refused[0].detail}"))
        self.made[made.name] = made


def means(measured: Mapping[str, Mapping[str, float]], rows: Iterable[TrainingRow]) -> dict[str, float]:
    """Return the mean of each measure over the rows that have it, {} where fewer than half of them have it."""
    found: dict[str, list[float]] = defaultdict(list)
    count = 0
    for row in rows:
        count += 1
        for name, value in measured.get(row.id, {}).items():
            if math.isfinite(value):
                found[name].append(value)
    return {name: fmean(values) for name, values in sorted(found.items()) if 2 * len(values) >= count}


def truncated(encoded: Encoded, share: float) -> Encoded:
    """Return encoded rows of which the first share of the tokens in the loss is left, at least one token.

    The answer and the marker that ends the turn are lost, which is what naive truncation is.
    """
    lines = []
    for line in encoded.table.to_pylist():
        labels = np.array(line["labels"])
        (inside,) = np.nonzero(labels != IGNORED)
        kept = max(1, round(share * len(inside)))
        stop = int(inside[kept - 1]) + 1
        lost = {"cut": kept < len(inside) or line["cut"], "answer_lost": kept < len(inside) or line["answer_lost"]}
        cut = {name: line[name][:stop] for name in ("input_ids", "labels")}
        lines.append({**line, **cut, "tokens": kept, **lost})
    return replace(encoded, table=pa.Table.from_pylist(lines, schema=encoded.table.schema))
