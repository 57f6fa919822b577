"""The score store: a permanent store of token scores of traces under a student.

    scores/<student key16>/part-<unique>.parquet    rows of TOKEN_SCORES_SCHEMA; one file per scored shard

A row is valid only if the trace still has the tokens that were scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tracefactory.core.files import whole_file
from tracefactory.core.token_scores import TOKEN_SCORES_SCHEMA, WORDS, TokenScores, scores_from_table, scores_to_table
from tracefactory.store.damage import Damage, reading


class _Index:
    """An index from traces to files with their scores. Files never change, so each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, pa.Array] = {}
        self.damage: list[Damage] = []

    def files_with(self, trace_ids: pa.Array) -> list[str]:
        """Return the files with scores of any of these traces, sorted by name."""
        for path in map(str, self._folder.glob("part-*.parquet")):
            if path not in self._ids:
                self._ids[path] = self._ids_in(Path(path))
        return sorted(path for path, ids in self._ids.items() if pc.any(pc.is_in(ids, value_set=trace_ids)).as_py())

    def _ids_in(self, path: Path) -> pa.Array:
        try:
            with reading(path):
                return pq.read_table(path, columns=["trace_id"])["trace_id"].combine_chunks()
        except ValueError as error:
            self.met(path, error)
            return pa.array([], pa.string())

    def met(self, path: Path, error: ValueError) -> None:
        """Leave a damaged file out from now on."""
        self._ids[str(path)] = pa.array([], pa.string())
        self.damage.append(Damage(path, "the whole file", str(error), "its scores are measured again"))


@lru_cache(maxsize=16)
def _index(folder: Path) -> _Index:
    return _Index(folder)


class ScoreStore:
    """The scores of one student in one state folder. Several processes can add scores."""

    def __init__(self, root: Path, student_key: str) -> None:
        self.student_key = student_key
        self.folder = root / "scores" / student_key[:16]

    @property
    def damage(self) -> list[Damage]:
        """The damage that this process has met in these scores; damaged files are left out."""
        return list(_index(self.folder).damage)

    def get(self, trace_ids: Iterable[str], *, words: bool = False) -> dict[str, list[TokenScores]]:
        """Return the stored scores of these traces; a trace whose text has changed can have several.

        With `words`, the scores include the text and the student's likeliest tokens, if they are stored.
        """
        wanted = pa.array(list(trace_ids), pa.string())
        import pyarrow.dataset as ds  # imports pandas if it is installed

        files = _index(self.folder).files_with(wanted)
        if not files:
            return {}
        columns = [name for name in TOKEN_SCORES_SCHEMA.names if words or name not in WORDS]
        checked = ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        )

        def read(some: list[str]) -> pa.Table:
            dataset = ds.dataset(some, schema=TOKEN_SCORES_SCHEMA, format=checked)
            try:
                with reading(Path(some[0])):
                    return dataset.to_table(columns=columns, filter=ds.field("trace_id").isin(wanted))
            except ValueError as error:
                if len(some) > 1:
                    return pa.concat_tables(map(read, ([one] for one in some)))
                _index(self.folder).met(Path(some[0]), error)
                return TOKEN_SCORES_SCHEMA.empty_table().select(columns)

        table = read(files)
        found: dict[str, list[TokenScores]] = {}
        for trace_id, _, scores in scores_from_table(table):
            found.setdefault(trace_id, []).append(scores)
        return found

    def put(self, scored: Mapping[str, TokenScores]) -> None:
        """Add scores by trace id, atomically."""
        if scored:
            table = scores_to_table((trace_id, self.student_key, scores) for trace_id, scores in scored.items())
            with whole_file(self.folder / f"part-{uuid4().hex}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
