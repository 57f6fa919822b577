"""Digests of tables, computed from their rows and not from the bytes of their files.

The digest of a table is the sum over its rows of a 128-bit hash of each row. It depends neither on the order of rows
nor on their division into files, and the digests of parts add up to the digest of the whole. It detects changed rows.
It is not secure against an attacker who constructs two tables with the same digest; a release therefore also lists the
sha256 of its files.

A row's hash combines the hashes of its values, each salted with the name of its column. Null, "" and [] contribute
nothing, so a column that is added later and is empty in old rows does not change their digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tracefactory.core.rows import ID_DIGITS

Hashes = NDArray[np.uint64]
"""Hashes of values or rows in two lanes of 64 bits: [2, rows]."""

MODULUS = 2**128
# Distinct strings are hashed once each, instead of once per row, if their mean length is at most _SHORT bytes or if
# less than this share of a sample is distinct.
_SHORT, _FEW = 64, 0.5
_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")
_SEEDS = np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F]], np.uint64)


def table_digest(table: pa.Table) -> str:
    """Return the digest of a table as 32 hexadecimal digits. The order of columns does not matter."""
    total = np.zeros((2, table.num_rows), np.uint64)
    for name in table.column_names:
        total += _salted(_value_hashes(table.column(name).combine_chunks()), name)
    hashes = _mix(total + _SEEDS)
    # The sum is taken in halves of 32 bits, so that up to 2**32 rows do not overflow.
    low, high = (hashes & np.uint64(0xFFFFFFFF)).sum(axis=1), (hashes >> np.uint64(32)).sum(axis=1)
    first, second = (int(low[lane]) + (int(high[lane]) << 32) for lane in (0, 1))
    return f"{((first << 64) + second) % MODULUS:032x}"


def combined_digest(digests: Iterable[str]) -> str:
    """Return the digest of all rows from the digests of their parts."""
    return f"{sum(int(one, 16) for one in digests) % MODULUS:032x}"


def draws(ids: pa.ChunkedArray | pa.Array, seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random number in [0, 2**64) for every id. Equal ids and seeds give equal numbers.

    Args:
        ids: ids of 16 lower-case hexadecimal digits; different ids get different numbers.
        seed: the seed of the draw.

    Raises:
        ValueError: when a value is not an id.
    """
    if len(ids) == 0:
        return np.zeros(0, np.uint64)
    numbers = id_numbers(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
    if numbers is None:
        raise ValueError("ids are 16 hexadecimal digits")
    mixed: NDArray[np.uint64] = _mix(_mix(numbers + _SEEDS[0]) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64))
    return mixed


def id_numbers(array: pa.Array) -> NDArray[np.uint64] | None:
    """Return ids of 16 lower-case hexadecimal digits as numbers; None when the array holds anything else."""
    if len(array) == 0 or array.null_count:
        return None
    array = array.cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if not (np.diff(offsets) == ID_DIGITS).all():
        return None
    digits = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, ID_DIGITS)
    nibbles = _NIBBLES[digits]
    if (nibbles > 15).any():
        return None
    return np.ascontiguousarray(nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).view(">u8").ravel().astype(np.uint64)


def _salted(hashes: Hashes, name: str) -> Hashes:
    salt = np.frombuffer(blake2b(name.encode(), digest_size=16).digest(), "<u8").reshape(2, 1)
    return np.where(hashes == 0, np.uint64(0), _mix(hashes ^ salt))


def _value_hashes(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_struct(kind):
        total = np.zeros((2, len(array)), np.uint64)
        for index in range(kind.num_fields):
            total += _salted(_value_hashes(array.field(index)), kind.field(index).name)
        hashes = np.where(total == 0, np.uint64(0), _mix(total + _SEEDS))
    elif pa.types.is_floating(kind):
        filled = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 becomes 0.0
        filled[np.isnan(filled)] = np.nan  # one bit pattern for every NaN; those computed on x86 have the sign bit set
        hashes = _mix(filled.view(np.uint64) + _SEEDS)
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        integers = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        hashes = _mix(integers.astype(np.int64).view(np.uint64) + _SEEDS)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        hashes = _list_hashes(array)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        hashes = _text_hashes(array)
    else:
        raise TypeError(f"no digest of values of type {kind}")
    if array.null_count:
        hashes[:, np.asarray(array.is_null())] = 0
    return hashes


def _list_hashes(array: pa.Array) -> Hashes:
    lengths = np.asarray(array.value_lengths().fill_null(0)).astype(np.int64)
    ends = np.cumsum(lengths)
    places = np.arange(int(lengths.sum()), dtype=np.uint64) - np.repeat(ends - lengths, lengths).astype(np.uint64)
    placed = _mix(_value_hashes(array.flatten()) ^ _mix(places + _SEEDS))
    total = np.concatenate([np.zeros((2, 1), np.uint64), np.cumsum(placed, axis=1, dtype=np.uint64)], axis=1)
    sums = total[:, ends] - total[:, ends - lengths]
    return np.where(lengths == 0, np.uint64(0), _mix(sums + _SEEDS))


def _text_hashes(array: pa.Array) -> Hashes:
    if (numbers := id_numbers(array)) is not None:  # equal to the code below, but for a whole column of ids at once
        return _mix(numbers + _SEEDS)
    sample = array.slice(0, 128)
    repeats = len(sample) > 16 and len(sample.unique()) < _FEW * len(sample)
    encoded = array.dictionary_encode() if array.nbytes < _SHORT * len(array) or repeats else None
    values = array if encoded is None else encoded.dictionary
    found = bytearray()
    for text in values.to_pylist():
        if not text:
            found += bytes(16)
        elif len(text) == ID_DIGITS and _ID.fullmatch(text):
            found += _mix(np.array([int(text, 16)], np.uint64) + _SEEDS).astype("<u8").tobytes()
        else:
            found += blake2b(text.encode(), digest_size=16).digest()
    hashes = np.frombuffer(found, "<u8").reshape(-1, 2).T.copy()
    if encoded is None:
        return hashes
    if len(values) == 0:
        return np.zeros((2, len(array)), np.uint64)
    return np.ascontiguousarray(hashes[:, encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)])


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit changes half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
