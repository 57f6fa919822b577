"""The score store: what a student said of every token of a trace, kept for good, so that it is computed once.

    scores/<student key16>/part-<unique>.parquet    rows of TOKEN_SCORES_SCHEMA; one file per shard that was scored

A row counts only while the trace still has the tokens it was scored on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tracefactory.core.files import whole_file
from tracefactory.students.scores import TOKEN_SCORES_SCHEMA, WORDS, TokenScores, scores_from_table, scores_to_table


class ScoreStore:
    """The scores of one student in one state folder; any number of processes may add to it."""

    def __init__(self, root: Path, student_key: str) -> None:
        self.student_key = student_key
        self.folder = root / "scores" / student_key[:16]

    def get(self, trace_ids: Iterable[str], *, words: bool = False) -> dict[str, list[TokenScores]]:
        """Return what is stored of these traces; a trace whose text has changed since has several scores.

        With `words` also the text, and what the student would have said instead, as far as they are stored.
        """
        files = sorted(str(path) for path in self.folder.glob("part-*.parquet"))
        if not files:
            return {}
        wanted = pa.array(list(trace_ids), pa.string())
        columns = [name for name in TOKEN_SCORES_SCHEMA.names if words or name not in WORDS]
        dataset = ds.dataset(files, schema=TOKEN_SCORES_SCHEMA)
        table = dataset.to_table(columns=columns, filter=ds.field("trace_id").isin(wanted))
        found: dict[str, list[TokenScores]] = {}
        for trace_id, _, scores in scores_from_table(table):
            found.setdefault(trace_id, []).append(scores)
        return found

    def put(self, scored: Mapping[str, TokenScores]) -> None:
        """Add scores by trace id, whole or not at all."""
        if scored:
            table = scores_to_table((trace_id, self.student_key, scores) for trace_id, scores in scored.items())
            with whole_file(self.folder / f"part-{uuid4().hex}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd")
