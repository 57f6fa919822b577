"""The request store: what was paid for is found again, whatever happened to its writer."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tracefactory.core.errors import RunError
from tracefactory.core.fingerprint import digest
from tracefactory.store.requests import RequestStore, compact

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


async def test_a_damaged_line_is_named_not_skipped(tmp_path: Path) -> None:
    store = await fill(tmp_path, range(3))
    store.close()
    (journal,) = (tmp_path / "requests").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:90] + b"#" * (len(lines[1]) - 91) + b"\n" + lines[2])
    with pytest.raises(RunError, match=f"{journal.name}.*byte {len(lines[0])} "):
        RequestStore(tmp_path).get(KEYS)


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
    import asyncio

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
