"""Summaries of the lengths of groups of traces."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tracefactory.core.rows import Frozen


class LengthLine(Frozen):
    """Lengths of one group of published traces, in completion tokens counted by the teacher's server."""

    group: str
    rows: int
    min: int
    p10: int
    median: int
    p90: int
    max: int

    @classmethod
    def of(cls, group: str, lengths: Iterable[int]) -> LengthLine:
        """Summarise lengths in tokens. Percentiles are nearest-rank, so every number is the length of a row.

        Raises:
            ValueError: when there are no lengths.
        """
        ordered = sorted(lengths)
        if not ordered:
            raise ValueError(f"{group}: no lengths to summarise")
        p10, median, p90 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.1, 0.5, 0.9))
        return cls(group=group, rows=len(ordered), min=ordered[0], p10=p10, median=median, p90=p90, max=ordered[-1])
