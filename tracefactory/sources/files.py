"""Read problems from files (JSON lines, JSON, CSV and Parquet) with a mapping of fields."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.core.environment import EnvStr
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest_file
from tracefactory.core.rows import Problem
from tracefactory.reading.base import SOURCES, Rejected, Source, take
from tracefactory.reading.mapping import FieldMapping, missing_fields, to_problem
from tracefactory.reading.records import Format, Record, read_records

_PEEK = 20


class FilesParams(FieldMapping):
    """The files, their format, and the mapping of their fields."""

    paths: EnvStr | tuple[EnvStr, ...] = Field(
        description="File names or globs (also **), relative to the project's folder; env:NAME is possible."
    )
    format: Format = Field("auto", description="Format of the files; `auto` uses the suffixes of their names.")
    encoding: str = Field("utf-8", description="Encoding of text files that have no byte order mark.")


@SOURCES.register("files")
class Files(Source[FilesParams]):
    """Reads files in the order of their names, each row by row."""

    name = "files"
    version = "1"
    Params = FilesParams

    def located(self, params: FilesParams, environ: Mapping[str, str]) -> FilesParams:
        """Return the parameters with the environment variables in `paths` resolved."""
        paths = (params.paths,) if isinstance(params.paths, str) else params.paths
        return params.model_copy(update={"paths": tuple(EnvStr(path.resolve(environ)) for path in paths)})

    def read(self, params: FilesParams, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        """Yield the problems of all files, in the order of the file names."""
        rows = labelled_records(params, base_dir)
        made = (to_problem(row, params, label) if isinstance(row, Record) else row for label, row in rows)
        yield from take(made, limit)

    def identity(self, params: FilesParams, base_dir: Path) -> dict[str, Any]:
        """Return the sha256 of every file's content, by the label of the file."""
        return {"files": [[label, digest_file(file)] for label, file in _find(params, base_dir)]}

    def verifiers(self, params: FilesParams) -> frozenset[str]:
        """Return the verifier of the mapping."""
        return frozenset({params.verifier_name})

    def describe(self, params: FilesParams) -> str:
        """Return the names of the files or globs."""
        # Only names: a card must not contain a path of this machine.
        patterns = (params.paths,) if isinstance(params.paths, str) else params.paths
        return f"files {', '.join(Path(pattern).name.removeprefix('env:') for pattern in patterns)}"

    def check(self, params: FilesParams, base_dir: Path) -> list[str]:
        """Find the files and apply the mapping to the first rows of each."""
        try:
            "".encode(params.encoding)
            return [wrong for label, file in _find(params, base_dir) for wrong in _mistakes_in(params, label, file)]
        except LookupError:
            return [f"unknown encoding {params.encoding!r}"]
        except UserError as error:
            return [str(mistake) for mistake in error.mistakes]


def labelled_records(params: FilesParams, base_dir: Path) -> Iterator[tuple[str, Record | Rejected]]:
    """Yield the rows of all files in order, each with the label of its file."""
    for label, file in _find(params, base_dir):
        for record in read_records(file, params.format, params.encoding):
            if isinstance(record, Rejected):
                yield label, record.model_copy(update={"detail": f"{label}: {record.detail}"})
            else:
                yield label, record


def _find(params: FilesParams, base_dir: Path) -> list[tuple[str, Path]]:
    """Return the files with their labels: the path relative to base_dir, or the name of a file outside of it.

    A label is stored in rows and keys, which must not contain a path of this machine.
    """
    patterns = (params.paths,) if isinstance(params.paths, str) else params.paths
    found: dict[Path, str] = {}
    mistakes: list[Mistake] = []
    for pattern in patterns:
        exact = base_dir / pattern
        names = [pattern] if exact.is_file() else sorted(glob.glob(pattern, root_dir=base_dir, recursive=True))
        files = [base_dir / name for name in names if (base_dir / name).is_file()]
        if not files:
            siblings = [entry.name for entry in exact.parent.glob("*") if entry.is_file()]
            mistakes.append(Mistake(f"no file {pattern!r}", hint=nearest(exact.name, siblings)))
        for file in files:
            inside = file.resolve().is_relative_to(base_dir.resolve())
            found[file] = file.resolve().relative_to(base_dir.resolve()).as_posix() if inside else file.name
    if mistakes or not patterns:
        raise UserError(mistakes or "paths names no file")
    return [(label, file) for file, label in found.items()]


def _mistakes_in(params: FilesParams, label: str, file: Path) -> list[str]:
    """Return the mistakes that the first rows of a file show: missing fields, or no usable row."""
    rows = list(islice(read_records(file, params.format, params.encoding), _PEEK))
    if missing := missing_fields([row for row in rows if isinstance(row, Record)], params, label):
        return missing
    tried = [to_problem(row, params, label) if isinstance(row, Record) else row for row in rows]
    rejected = [row for row in tried if isinstance(row, Rejected)]
    if len(rejected) == len(tried):
        why = f"{rejected[0].reason}: {rejected[0].detail}" if rejected else "it is empty"
        return [f"none of the first rows of {label} gives a problem ({why})"]
    return []
