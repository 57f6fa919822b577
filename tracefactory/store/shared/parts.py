"""The files of a stage that are shared: their names, and the records in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tracefactory.store.records import checked
from tracefactory.store.stages import FOOTER_KEY, PART, ShardRecord

RECORD, IDENTITY = "record.json", "identity.json"
_DIGITS = frozenset("0123456789abcdef")

Files = Mapping[str, str]
"""Digests (SHA-256) by the names of files."""


def is_file(name: Any) -> bool:
    """Return whether a name is that of a file that is shared; nothing else is ever written here."""
    return name in (RECORD, IDENTITY) or (isinstance(name, str) and PART.match(name) is not None)


def is_digest(value: Any) -> bool:
    """Return whether a value is a digest of a file."""
    return isinstance(value, str) and len(value) == 64 and _DIGITS.issuperset(value)


def judged_file(index: int, count: int) -> str:
    """Return the name of the file that marks a shard as done; of the files of a shard it is the first in order."""
    return f"judged-{index:05d}-of-{count:05d}.parquet"


def shard_of(name: str) -> str:
    """Return what the names of all files of a shard have in common; empty for a file of the whole stage."""
    return name.partition("-")[2]


def of_shard(files: Files, index: int, count: int) -> dict[str, str]:
    """Return the files of one shard."""
    shard = shard_of(judged_file(index, count))
    return {name: one for name, one in files.items() if shard_of(name) == shard}


def of_shards(files: Files, count: int | None = None) -> dict[str, str]:
    """Return the files of all shards of a stage that is divided into `count` shards, by default into any number."""
    found = {name: PART.match(name) for name in files}
    return {name: files[name] for name, match in found.items() if match and count in (None, int(match[3]))}


def record_in(judged: Path | bytes) -> ShardRecord | None:
    """Return the record of a shard from its `judged` table, None when it is missing or damaged."""
    try:
        footer = pq.read_schema(pa.BufferReader(judged) if isinstance(judged, bytes) else judged).metadata or {}
        return ShardRecord.model_validate(checked(footer[FOOTER_KEY]))
    except (ValueError, KeyError, OSError, RecursionError):
        return None
