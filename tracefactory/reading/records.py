"""Read rows from JSON lines, JSON, CSV and Parquet files, one at a time; unreadable rows are yielded as rejected."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tracefactory.core.errors import Mistake, UserError
from tracefactory.reading.base import Rejected, json_text

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet"]

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_COMPRESSED = {".gz", ".bz2", ".zst", ".lz4"}
_UNDECODED = re.compile("[\udc80-\udcff]")
_BATCH = 256
_SNIFF = 1024
# With an unclosed quote, the rest of the file would otherwise be read as one field.
_MAX_FIELD = 16 * 2**20
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Record:
    """One row with its line number, or its row number in a file without lines, from 1."""

    values: dict[str, Any]
    unit: Literal["line", "row"]
    number: int

    def reject(self, reason: str, detail: str) -> Rejected:
        """Return the row as rejected.

        Args:
            reason: a stable snake_case identifier.
            detail: the cause, for a person.
        """
        return Rejected(row=json_text(self.values), reason=reason, detail=f"{self.unit} {self.number}: {detail}")


def read_records(file: Path, form: Format, encoding: str) -> Iterator[Record | Rejected]:
    """Yield the rows of a file. Only JSON arrays are loaded as a whole; .gz, .bz2, .zst and .lz4 are decompressed.

    NaN and infinities in JSON are missing values.

    Args:
        file: the file.
        form: its format; `auto` uses the suffix of its name, except that JSON arrays are recognised.
        encoding: the encoding of a text file without a byte order mark.

    Raises:
        UserError: when the file is not in its format.
    """
    kind = _kind(file, form)
    try:
        if kind == "parquet":
            numbers = count(1)
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=_BATCH):
                    for values in batch.to_pylist():
                        yield Record(values, "row", next(numbers))
            return
        with io.BufferedReader(pa.input_stream(str(file), compression="detect")) as binary:
            start = binary.peek(_SNIFF)[:_SNIFF]
            found = next((name for mark, name in _BOMS.items() if start.startswith(mark)), encoding)
            # Undecodable bytes become lone surrogates, so that one bad row does not fail the whole file.
            newline = "" if kind in ("csv", "tsv") else "\n"
            text = io.TextIOWrapper(binary, encoding=found, errors="surrogateescape", newline=newline)
            if kind in ("csv", "tsv"):
                yield from _csv(file, text, "\t" if kind == "tsv" else ",")
            elif kind == "json" or (form == "auto" and start.decode(found, "ignore").lstrip().startswith("[")):
                # A JSON array, whatever the suffix of the file.
                yield from _json(file, text)
            else:
                yield from _jsonl(text)
    except (pa.ArrowInvalid, pa.ArrowIOError, UnicodeError) as error:
        raise UserError(Mistake(f"cannot be read as {kind} in {encoding}: {error}", file)) from error


def _kind(file: Path, form: Format) -> Format:
    if form != "auto":
        return form
    suffixes = [suffix for suffix in file.suffixes if suffix not in _COMPRESSED]
    suffix = suffixes[-1].lower() if suffixes else ""
    if suffix not in _SUFFIXES:
        hint = f"known: {', '.join(_SUFFIXES)}"
        raise UserError(Mistake(f"unknown format of {file.name!r}; set format", file, hint=hint))
    return _SUFFIXES[suffix]


def _jsonl(text: io.TextIOWrapper) -> Iterator[Record | Rejected]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where, raw = f"line {number}", json_text(line.rstrip("\r\n"))
        if _UNDECODED.search(line):
            yield Rejected(row=raw, reason="bad_encoding", detail=f"{where}: not {text.encoding}")
            continue
        try:
            value = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            yield Rejected(row=raw, reason="bad_json", detail=f"{where}: {error}")
            continue
        yield _as_record(value, "line", number)


def _json(file: Path, text: io.TextIOWrapper) -> Iterator[Record | Rejected]:
    try:
        values = json.load(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise UserError(Mistake(f"is not valid JSON: {error.msg}", file, error.lineno)) from error
    if not isinstance(values, list):
        raise UserError(Mistake(f"has one JSON {type(values).__name__} instead of an array of rows", file))
    for number, value in enumerate(values, 1):
        yield _as_record(value, "row", number)


def _as_record(value: Any, unit: Literal["line", "row"], number: int) -> Record | Rejected:
    if isinstance(value, dict):
        return Record(value, unit, number)
    detail = f"{unit} {number}: {type(value).__name__} instead of an object"
    return Rejected(row=json_text(value), reason="not_an_object", detail=detail)


def _csv(file: Path, text: io.TextIOWrapper, delimiter: str) -> Iterator[Record | Rejected]:
    csv.field_size_limit(_MAX_FIELD)
    rows = csv.reader(text, delimiter=delimiter)
    header = next(rows, [])
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(Mistake(f"has a column name twice: {', '.join(repeated)}", file, 1))
    for _ in count():
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Rejected(row="null", reason="bad_csv", detail=f"line {number}: {error}")
            continue
        if not row:
            continue
        if len(row) != len(header):
            detail = f"line {number}: {len(row)} fields instead of {len(header)}"
            yield Rejected(row=json_text(row), reason="bad_csv", detail=detail)
        elif any(map(_UNDECODED.search, row)):
            yield Rejected(row=json_text(row), reason="bad_encoding", detail=f"line {number}: not {text.encoding}")
        else:
            yield Record(dict(zip(header, row, strict=True)), "line", number)
