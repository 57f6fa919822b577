"""The release folder: Parquet per view, the card and the manifest, written whole or not at all.

Rows are sorted by (problem_id, id) and files are cut by size alone, so the same rows give the same files, and a small
change moves few bytes for a store that deduplicates chunks. The Parquet settings (zstd, content-defined chunking, page
index, row groups under 100 MB, files under 500 MB) are those of https://huggingface.co/docs/hub/datasets-libraries.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tracefactory import __version__
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.files import sync_folder, write_text
from tracefactory.core.fingerprint import canonical, digest, digest_all, digest_file
from tracefactory.core.schema import Frozen
from tracefactory.publish.card import CardInputs, ConfigLine, ModelLine, render
from tracefactory.publish.views import VIEWS

MANIFEST = "manifest.json"
CARD = "README.md"
_GROUP_BYTES = 96 * 2**20  # of row text per row group; the Hub's viewer reads a row group at once
_FILE_BYTES = 480 * 2**20  # of row text per file, before compression
_RUN_BYTES = 256 * 2**20  # of rows that are sorted in memory before they go to disk
_CHUNKING = {"min_chunk_size": 256 * 2**10, "max_chunk_size": 2**20, "norm_level": 0}
_ORDER = ("problem_id", "id")
# What a git tag may hold (git-check-ref-format), less what a shell or a URL would need quoted.
_VERSION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z_+-]|\.(?!\.|lock$|$))*")


class FileLine(Frozen):
    """One file of a release: its path in the folder, digest and size. `rows` is None for files that hold no rows."""

    path: str
    sha256: str
    bytes: int
    rows: int | None = None


class ConfigDigest(Frozen):
    """What the rows of one configuration are. `digest` covers canonical JSON of every row in order, not file bytes."""

    view_version: str
    rows: int
    digest: str


class Manifest(Frozen):
    """What a release is made of. `content` identifies it: name, version, licence and rows; not time, files or card.

    `stages` maps stage ids to stage keys. `created` is ISO 8601, UTC.
    """

    name: str
    version: str
    content: str
    licence: str | None
    tracefactory: str
    created: str
    configs: Mapping[str, ConfigDigest]
    files: tuple[FileLine, ...]
    stages: Mapping[str, str]
    models: tuple[ModelLine, ...]


def write_release(
    folder: Path,
    *,
    name: str,
    version: str,
    configs: Mapping[str, Iterable[pa.Table]],
    card: CardInputs,
    stages: Mapping[str, str],
) -> Manifest:
    """Write a release into `folder` (which appears complete or not at all) and return its manifest.

    `configs` maps view names to tables of the view's schema, in any order; rows are sorted here, on disk when they are
    many. The first one is what loads by default. `stages` maps stage ids to stage keys.

    When the folder holds this version with the same content already, nothing is changed and its manifest is returned.

    Raises:
        UserError: when the version is not one, or the folder holds something else.
        RunError: when a view has no row, or a row twice.
    """
    if not _VERSION.fullmatch(version):
        raise UserError(f"version: {version!r} cannot be a tag; use letters, digits and . _ + -")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch:
        built = scratch / "release"
        digests: dict[str, ConfigDigest] = {}
        files: list[FileLine] = []
        for view_name, tables in configs.items():
            digests[view_name], data = _write_config(built, view_name, tables, scratch)
            files.extend(data)
        lines = tuple(
            ConfigLine(name=key, summary=VIEWS.get(key).summary, rows=found.rows, files=f"data/{key}/*.parquet")
            for key, found in digests.items()
        )
        write_text(built / CARD, render(card, version=version, configs=lines))
        files.append(_file_line(built, built / CARD, None))
        manifest = Manifest(
            name=name,
            version=version,
            content=_content(name, version, card.licence, digests),
            licence=card.licence,
            tracefactory=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            configs=digests,
            files=tuple(files),
            stages=dict(stages),
            models=card.models,
        )
        write_text(built / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        return _put(built, folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a release folder.

    Raises:
        UserError: when the folder is not a release.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError) as error:
        raise UserError(f"{folder} does not hold a release: {MANIFEST} is missing or not readable") from error


def verify_release(folder: Path) -> Manifest:
    """Return the manifest of a release after checking that every file still has its digest.

    Raises:
        UserError: naming the first file that is missing or was changed.
    """
    manifest = read_manifest(folder)
    for line in manifest.files:
        path = folder / line.path
        if not path.is_file() or digest_file(path) != line.sha256:
            raise UserError(
                f"{path} is missing or was changed after it was written; move the folder away and run again"
            )
    return manifest


def _content(name: str, version: str, licence: str | None, configs: Mapping[str, ConfigDigest]) -> str:
    rows = {key: value.model_dump() for key, value in configs.items()}
    return digest({"name": name, "version": version, "licence": licence, "configs": rows})


def _put(built: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Move a finished release to its place, unless the same content is there."""
    if folder.exists() and any(folder.iterdir()):
        present = verify_release(folder)
        if present.content != manifest.content:
            raise UserError(
                f"{manifest.name} {manifest.version} exists in {folder} with other content, and a version is never "
                "changed: raise `version:` in the pipeline"
            )
        return present
    for inner in (built, *(path for path in built.rglob("*") if path.is_dir())):
        sync_folder(inner)
    os.rename(built, folder)
    sync_folder(folder.parent)
    return manifest


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a locked temporary folder beside `folder`; remove it at the end, and those that killed runs left behind."""
    prefix = f".{folder.name}.tmp-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        with _locked(leftover) as ours:
            if ours:
                shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    with _locked(scratch):
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold an advisory lock on a folder; gives False when another process holds it or the folder is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def _write_config(
    built: Path, view_name: str, tables: Iterable[pa.Table], scratch: Path
) -> tuple[ConfigDigest, list[FileLine]]:
    """Write the rows of one view, sorted, and return their digest and their files."""
    view = VIEWS.get(view_name)
    shards = _Shards(built / "data" / view_name, view.schema)

    def written() -> Iterator[str]:
        for row in _sorted_rows(tables, view.schema, scratch / view_name):
            text = canonical(row)
            shards.add(row, len(text.encode()))
            yield text

    rows_digest = digest_all(written())
    shards.close()
    if not shards.files:  # `datasets` raises on a configuration without rows
        raise RunError(f"no row is left for the view {view_name!r}: nothing was published")
    files = [_file_line(built, path, rows) for path, rows in shards.files.items()]
    total = sum(shards.files.values())
    return ConfigDigest(view_version=view.version, rows=total, digest=rows_digest), files


def _sorted_rows(tables: Iterable[pa.Table], schema: pa.Schema, spill: Path) -> Iterator[dict[str, Any]]:
    """Yield all rows in (problem_id, id) order: runs are sorted in memory, spilled to `spill`, and merged."""
    runs: list[Iterator[dict[str, Any]]] = []
    held: list[pa.Table] = []
    for table in tables:
        if not table.schema.equals(schema):
            raise ValueError(f"a table does not have the schema of the view: {table.schema} instead of {schema}")
        held.append(table)
        if sum(part.nbytes for part in held) > _RUN_BYTES:
            spill.mkdir(exist_ok=True)
            runs.append(_spilled(_sorted(held, schema), spill / f"{len(runs)}.arrow"))
            held = []
    runs.append(row for batch in _sorted(held, schema).to_batches(max_chunksize=64) for row in batch.to_pylist())
    before: tuple[str, str] | None = None
    for row in heapq.merge(*runs, key=_key):
        if _key(row) == before:
            raise RunError(f"row {row['id']} of problem {row['problem_id']} is there twice: nothing was published")
        before = _key(row)
        yield row


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["problem_id"], row["id"]


def _sorted(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([*parts, schema.empty_table()]).sort_by([(column, "ascending") for column in _ORDER])


def _spilled(run: pa.Table, path: Path) -> Iterator[dict[str, Any]]:
    """Write a sorted run to disk now; return its rows, to be read back a few at a time."""
    with pa.ipc.new_stream(path, run.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(run, max_chunksize=32)
    return _read_back(path)


def _read_back(path: Path) -> Iterator[dict[str, Any]]:
    with pa.ipc.open_stream(path) as reader:
        for batch in reader:
            yield from batch.to_pylist()


class _Shards:
    """Cuts a stream of rows into row groups and files by the size of their text, and writes them."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.files: dict[Path, int] = {}  # path -> rows, in order
        self._folder = folder
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._file_bytes = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        """Take one row whose text has `size` bytes."""
        if self._group and self._group_bytes + size > _GROUP_BYTES:
            self._flush()
        self._group.append(row)
        self._group_bytes += size

    def close(self) -> None:
        """Write what is held and finish the last file."""
        if self._group:
            self._flush()
        self._close_file()

    def _flush(self) -> None:
        if self._file_bytes + self._group_bytes > _FILE_BYTES:
            self._close_file()
        if self._writer is None:
            path = self._folder / f"train-{len(self.files):05d}.parquet"
            self.files[path] = 0
            self._writer = pq.ParquetWriter(
                path,
                self._schema,
                compression="zstd",
                use_content_defined_chunking=_CHUNKING,
                write_page_index=True,
            )
        table = pa.Table.from_pylist(self._group, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._group))
        self.files[next(reversed(self.files))] += len(self._group)
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._file_bytes = None, 0
            with next(reversed(self.files)).open("rb") as file:
                os.fsync(file.fileno())


def _file_line(built: Path, path: Path, rows: int | None) -> FileLine:
    relative = path.relative_to(built).as_posix()
    return FileLine(path=relative, sha256=digest_file(path), bytes=path.stat().st_size, rows=rows)
