"""The score store: a permanent store of token scores of traces under a student.

    scores/<student key16>/part-<unique>.parquet    rows of TOKEN_SCORES_SCHEMA; a row group for each batch of traces

A row is valid only if the trace still has the tokens that were scored. Every batch is a file at first; `merge` makes
large files of them.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tracefactory.core.files import whole_file
from tracefactory.core.token_scores import TOKEN_SCORES_SCHEMA, WORDS, TokenScores, scores_from_table, scores_to_table
from tracefactory.store.damage import Damage, reading

MERGE_FILES, MERGE_BYTES = 64, 64 << 20
"""As many small files of one student are merged; a file of so many bytes is not small."""
_REREAD = 5  # times that files are listed again because they were merged meanwhile


class _Index:
    """An index from traces to row groups with their scores. Files never change, so each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, list[pa.Array]] = {}  # of the row groups, by path
        self._damaged: set[str] = set()
        self.damage: list[Damage] = []

    def groups_with(self, trace_ids: pa.Array) -> dict[Path, list[int]]:
        """Return the row groups with scores of any of these traces, by file."""
        there = sorted(map(str, self._folder.glob("part-*.parquet")))
        self._ids = {path: self._ids[path] for path in there if path in self._ids}
        found = {}
        for path in (path for path in there if path not in self._damaged):
            if path not in self._ids and (ids := self._ids_in(Path(path))) is not None:
                self._ids[path] = ids
            groups = [
                number
                for number, ids in enumerate(self._ids.get(path, ()))
                if pc.any(pc.is_in(ids, value_set=trace_ids)).as_py()
            ]
            if groups:
                found[Path(path)] = groups
        return found

    def _ids_in(self, path: Path) -> list[pa.Array] | None:
        try:
            with reading(path), pq.ParquetFile(path) as file:
                return [
                    file.read_row_group(number, columns=["trace_id"])["trace_id"].combine_chunks()
                    for number in range(file.num_row_groups)
                ]
        except FileNotFoundError:
            return None  # it was merged since it was listed
        except ValueError as error:
            self.met(path, error)
            return None

    def met(self, path: Path, error: ValueError) -> None:
        """Leave a damaged file out from now on."""
        self._damaged.add(str(path))
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
        columns = [name for name in TOKEN_SCORES_SCHEMA.names if words or name not in WORDS]
        found: dict[str, list[TokenScores]] = {}
        for table in self._tables(wanted, columns):
            for trace_id, _, scores in scores_from_table(table.filter(pc.is_in(table["trace_id"], value_set=wanted))):
                found.setdefault(trace_id, []).append(scores)
        return found

    def put(self, scored: Mapping[str, TokenScores]) -> None:
        """Add scores by trace id, atomically."""
        if scored:
            table = scores_to_table((trace_id, self.student_key, scores) for trace_id, scores in scored.items())
            with whole_file(self.folder / f"part-{uuid4().hex}.parquet") as temporary:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    def _tables(self, wanted: pa.Array, columns: Sequence[str]) -> list[pa.Table]:
        index = _index(self.folder)
        for _ in range(_REREAD):
            tables = []
            try:
                for path, groups in index.groups_with(wanted).items():
                    try:
                        with reading(path):
                            tables.append(_read(path, groups, columns))
                    except ValueError as error:
                        index.met(path, error)
            except FileNotFoundError:
                continue  # merged meanwhile: the rows are in another file
            return tables
        raise FileNotFoundError(self.folder)


def merge(root: Path, *, at_least: int = MERGE_FILES) -> None:
    """Merge the small files of each student, where there are `at_least` of them.

    This is safe while other processes read and write: the merged file is there before the small ones are removed, and
    one process merges at a time. Damaged files, and all where there is no space, are left as they are.
    """
    for folder in sorted((root / "scores").glob("[!.]*")):
        with suppress(OSError):
            if len(_small(folder)) < max(at_least, 2):
                continue
            with _merging(folder) as alone:
                if alone and len(small := _small(folder)) >= max(at_least, 2):
                    _merge(folder, small)


def _small(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("part-*.parquet")) if path.stat().st_size < MERGE_BYTES]


def _merge(folder: Path, small: Iterable[Path]) -> None:
    merged: list[Path] = []
    made = folder / f"part-{uuid4().hex}.parquet"
    with (
        whole_file(made) as temporary,
        pq.ParquetWriter(temporary, TOKEN_SCORES_SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for path in small:
            try:
                with reading(path), pq.ParquetFile(path) as file:
                    tables = [_read(path, [number], TOKEN_SCORES_SCHEMA.names) for number in range(file.num_row_groups)]
            except ValueError:
                continue  # the index reports it
            for table in tables:
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
            merged.append(path)
            if temporary.stat().st_size >= MERGE_BYTES:
                break
    for path in merged or [made]:
        path.unlink()


@contextmanager
def _merging(folder: Path) -> Iterator[bool]:
    """Yield whether no other process merges in this folder."""
    with (folder / ".merging").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _read(path: Path, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Return row groups of a file; columns that an earlier version did not write are null."""
    schema = pa.schema([TOKEN_SCORES_SCHEMA.field(name) for name in columns])
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        table = file.read_row_groups(groups, columns=present)
    return pa.concat_tables([schema.empty_table(), table], promote_options="default").select(schema.names)
