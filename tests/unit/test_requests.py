"""The request store: what was paid for is found again, whatever happened to its writer."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from tracefactory.core.fingerprint import digest
from tracefactory.store import appending, journals, segments
from tracefactory.store.requests import RequestStore, compact
from tracefactory.store.segments import write_segment

KEYS = [digest(number) for number in range(50)]


def record(number: int) -> dict[str, object]:
    return {"completion": {"content": f"Antwort {number} ½ \u2028 \n"}, "cost": number / 7}


async def fill(root: Path, numbers: range) -> RequestStore:
    store = RequestStore(root)
    for number in numbers:
        await store.put(KEYS[number], record(number))
    return store


async def test_what_is_put_is_there_for_others_at_once(tmp_path: Path) -> None:
    other = RequestStore(tmp_path)
    assert other.present(KEYS) == set()
    await fill(tmp_path, range(10))
    assert other.get(KEYS) == {KEYS[n]: record(n) for n in range(10)}


async def test_a_torn_last_line_is_ignored_and_the_rest_kept(tmp_path: Path) -> None:
    store = await fill(tmp_path, range(5))
    store.close()
    (journal,) = (tmp_path / "requests").iterdir()
    whole = journal.read_bytes()
    for cut in (1, 30, 80):
        journal.write_bytes(whole[:-cut])
        assert RequestStore(tmp_path).present(KEYS) == set(KEYS[:4])


async def test_compaction_keeps_every_record_and_readers_that_indexed_before(tmp_path: Path) -> None:
    (await fill(tmp_path, range(20))).close()
    early = RequestStore(tmp_path)
    assert len(early.present(KEYS)) == 20
    writing = await fill(tmp_path, range(20, 30))
    assert compact(tmp_path, at_least=1) == 1  # the journal in use is left alone
    expected = {KEYS[n]: record(n) for n in range(30)}
    assert early.get(KEYS) == expected
    assert RequestStore(tmp_path).get(KEYS) == expected
    writing.close()
    assert compact(tmp_path, at_least=1) == 1
    assert early.get(KEYS) == RequestStore(tmp_path).get(KEYS) == expected
    assert not list((tmp_path / "requests").glob("journal-*"))


async def test_small_journals_are_left_alone(tmp_path: Path) -> None:
    (await fill(tmp_path, range(3))).close()
    assert compact(tmp_path) == 0


def _write_and_die(root: Path) -> None:
    async def write() -> None:
        await fill(root, range(7))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(write())


def test_completions_survive_kill_9_of_their_writer(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert RequestStore(tmp_path).present(KEYS) == set(KEYS[:7])
    assert compact(tmp_path, at_least=1) == 1  # its lock died with it


SHARED = [digest(["shared", number]) for number in range(400)]
"""Keys of the records that several processes write; the first writer has the even ones."""


def _write_shared(root: Path, first: int) -> None:
    async def write() -> None:
        store = RequestStore(root)
        for number in range(first, len(SHARED), 2):
            await asyncio.sleep(0.003)
            await store.put(SHARED[number], record(number), f"{number % 9:016x}")
        store.close()

    appending.ROTATE_BYTES = 2000  # a journal of some twenty records
    while not (root / "compacting").exists():
        time.sleep(0.01)
    asyncio.run(write())


def _compact_shared(root: Path) -> None:
    (root / "compacting").touch()
    while (root / "compacting").exists():
        compact(root, at_least=1)


def test_two_processes_write_while_a_third_compacts_and_nothing_is_lost_or_there_twice(tmp_path: Path) -> None:
    early = RequestStore(tmp_path)
    assert early.get(SHARED) == {}
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_shared, args=(tmp_path, first)) for first in (0, 1)]
    compactor = spawn.Process(target=_compact_shared, args=(tmp_path,))
    for process in (*writers, compactor):
        process.daemon = True  # it ends with the test, also where that fails
        process.start()
    seen: set[str] = set()
    looks: set[int] = set()
    while any(writer.is_alive() for writer in writers):
        found = set(early.get(SHARED))
        assert seen <= found  # what was there stays there, wherever it is moved
        assert early.present(SHARED) >= found
        seen = found
        looks.add(len(found))
    (tmp_path / "compacting").unlink()
    for process in (*writers, compactor):
        process.join(60)
        assert process.exitcode == 0
    compact(tmp_path, at_least=1)
    expected = {key: record(number) for number, key in enumerate(SHARED)}
    assert early.get(SHARED) == RequestStore(tmp_path).get(SHARED) == expected
    assert len(looks) > 2  # it was read while it was written
    files = list((tmp_path / "requests").glob("*.parquet"))
    assert len(files) > 1  # and compacted
    stored = Counter(key for file in files for key in pq.read_table(file)["key"].to_pylist())
    assert stored == Counter(SHARED)
    assert {path.suffix for path in (tmp_path / "requests").iterdir()} == {".parquet", ".index"}


@pytest.mark.parametrize("look", [1, 2])
async def test_what_is_compacted_while_a_reader_looks_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    (await fill(tmp_path, range(20))).close()
    reader, early = RequestStore(tmp_path), RequestStore(tmp_path)
    early.refresh()
    real, looks = Path.glob, 0

    def glob(self: Path, pattern: str) -> Iterable[Path]:
        nonlocal looks
        found = list(real(self, pattern))
        looks += 1
        if looks == look:
            compact(tmp_path, at_least=1)
        return found

    for store in (reader, early):
        looks = 0
        monkeypatch.setattr(Path, "glob", glob)
        assert store.present(KEYS) == set(KEYS[:20])
        monkeypatch.undo()
        assert len(store.get(KEYS)) == 20


async def test_a_journal_that_is_only_just_there_is_not_taken_for_a_closed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await fill(tmp_path, range(5))).close()
    real = fcntl.flock
    compacted: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not compacted:
            compacted.append(compact(tmp_path, at_least=1))
        real(descriptor, operation)

    monkeypatch.setattr(journals.fcntl, "flock", flock)
    (await fill(tmp_path, range(5, 10))).close()
    assert compacted == [1]
    assert RequestStore(tmp_path).present(KEYS) == set(KEYS[:10])


async def compacted(root: Path, numbers: range) -> Path:
    """Put records, compact them and return their segment."""
    (await fill(root, numbers)).close()
    compact(root, at_least=1)
    (segment,) = (root / "requests").glob("*.parquet")
    return segment


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: None,
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: whole[:16],
        lambda whole: whole + b"\0",
        lambda whole: b"tfindex1" + whole[8:],
        lambda whole: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 128]),
        lambda whole: whole[:10],
        lambda whole: whole[:8] + (51).to_bytes(8, "little") + whole[16:],
    ],
)
async def test_an_index_that_is_missing_or_not_whole_is_built_again(tmp_path: Path, damage: Any) -> None:
    index = (await compacted(tmp_path, range(50))).with_suffix(".index")
    whole = index.read_bytes()
    index.unlink()
    if (damaged := damage(whole)) is not None:
        index.write_bytes(damaged)
    assert len(RequestStore(tmp_path).get(KEYS)) == 50
    assert index.read_bytes() == whole


async def test_a_segment_whose_index_cannot_be_written_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = (await compacted(tmp_path, range(50))).with_suffix(".index")
    index.unlink()
    monkeypatch.setattr(segments.os, "access", lambda *given: False)
    assert len(RequestStore(tmp_path).get(KEYS)) == 50
    assert not index.exists()


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
async def test_a_segment_that_is_not_whole_is_named(tmp_path: Path, keep: float) -> None:
    segment = await compacted(tmp_path, range(50))
    whole = segment.read_bytes()
    segment.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    store = RequestStore(tmp_path)
    assert len(store.get(KEYS)) == (50 if keep == -1 else 0)  # its index has a copy of the footer
    assert {damage.path for damage in store.damage} == {segment}


@pytest.mark.parametrize("column", ["key", "record"])
async def test_a_segment_with_a_flipped_bit_is_named(tmp_path: Path, column: str) -> None:
    segment = await compacted(tmp_path, range(50))
    chunk = pq.read_metadata(segment).row_group(0).column(("key", "record").index(column))
    flipped = bytearray(segment.read_bytes())
    flipped[chunk.dictionary_page_offset + chunk.total_compressed_size // 2] ^= 1
    segment.write_bytes(flipped)
    store = RequestStore(tmp_path)
    assert store.get(KEYS) == {}
    assert [(damage.path, damage.place) for damage in store.damage] == [(segment, "row group 0")]


def as_v1(journal: Path) -> None:
    """Write a journal as version 1 wrote it: without checksum and problem."""
    lines = (orjson.loads(line) for line in journal.read_bytes().splitlines())
    journal.write_bytes(b"".join(orjson.dumps({"key": one["key"], "record": one["record"]}) + b"\n" for one in lines))


async def test_completions_under_keys_of_version_1_are_known_as_such_wherever_they_lie(tmp_path: Path) -> None:
    expected = {KEYS[n]: record(n) for n in range(20)}
    await compacted(tmp_path, range(5, 20))
    assert not RequestStore(tmp_path).has_v1_keys
    (await fill(tmp_path, range(5))).close()
    (journal,) = (tmp_path / "requests").glob("journal-*")
    as_v1(journal)
    early = RequestStore(tmp_path)
    assert early.get(KEYS) == expected
    assert early.has_v1_keys
    assert compact(tmp_path, at_least=1) == 1
    late = RequestStore(tmp_path)
    assert late.get(KEYS) == expected
    assert late.has_v1_keys
    assert early.get(KEYS) == expected


async def test_segments_of_version_1_are_read_as_they_are(tmp_path: Path) -> None:
    segment = await compacted(tmp_path, range(20))
    former = segment.with_name(f"segment-{segment.name}")
    pq.write_table(pq.read_table(segment).replace_schema_metadata(None), former)  # version 1 wrote no index
    segment.unlink()
    segment.with_suffix(".index").unlink()
    store = RequestStore(tmp_path)
    assert store.get(KEYS) == {KEYS[n]: record(n) for n in range(20)}
    assert store.has_v1_keys


async def test_a_key_that_begins_like_a_stored_one_is_another(tmp_path: Path) -> None:
    await compacted(tmp_path, range(10))
    alike = KEYS[3][:16] + "0" * 48
    assert RequestStore(tmp_path).get([alike, KEYS[4]]) == {KEYS[4]: record(4)}


@pytest.mark.parametrize("digits", [4, 15, 16, 17, 64])
async def test_a_record_is_found_by_any_beginning_of_its_key(tmp_path: Path, digits: int) -> None:
    (await compacted(tmp_path, range(10))).with_suffix(".index").unlink()
    await fill(tmp_path, range(10, 20))
    store = RequestStore(tmp_path)
    for number in (3, 13):  # in a segment, and in a journal
        assert store.find(KEYS[number][:digits]) == {KEYS[number]: record(number)}
    assert store.find(KEYS[30][:digits]) == {}


def test_asking_for_many_keys_reads_no_completion(tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    folder.mkdir()
    keys = [digest(["many", number]) for number in range(20_000)]
    rows = [("", key, orjson.dumps({"cost": number})) for number, key in enumerate(keys)]
    for start in (0, 10_000):
        segment = write_segment(folder, rows[start : start + 10_000], {2})
        footer = pq.read_metadata(segment).serialized_size + 8
        whole = segment.read_bytes()
        segment.write_bytes(b"PAR1" + bytes(len(whole) - 4 - footer) + whole[-footer:])  # nothing but its footer
    store = RequestStore(tmp_path)
    assert store.present([*keys, *KEYS]) == set(keys)
    assert store.get(keys[:1]) == {}
    assert len(store.damage) == 1
