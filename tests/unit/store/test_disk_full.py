"""A full disk: no paid answer is thrown away, nothing more is sent, and the run goes on when there is space."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from tracefactory.core.errors import Interrupted, RunError
from tracefactory.core.fingerprint import digest
from tracefactory.store import appending, journals
from tracefactory.store.requests import RequestStore, compact

KEYS = [digest(["full", number]) for number in range(4000)]
MB = 1_000_000


def record(number: int) -> dict[str, object]:
    return {"completion": {"content": f"answer {number} " + "word " * 200}, "cost": number / 7}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "RETRY_S", 0.02)
    monkeypatch.setattr(appending, "_LOOK_S", 0.01)
    monkeypatch.setattr(appending, "_MEASURE_EVERY_S", 0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system of 2 MB can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # also while a failed test has files open there


def stored_keys(root: Path) -> Counter[str]:
    """Return the keys of all lines of all journals, each of which must be whole."""
    lines = [line for path in (root / "requests").glob("journal-*") for line in path.read_bytes().splitlines()]
    return Counter(orjson.loads(line)["key"] for line in lines)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)


class Disk:
    """Replaces `os.write` for journals: after `left` bytes a write is short, and the next one fails with `code`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int, code: int = errno.ENOSPC) -> None:
        self.left, self.code, self.real = left, code, os.write
        monkeypatch.setattr(journals.os, "write", self.write)

    def write(self, descriptor: int, content: bytes) -> int:
        if self.left <= 0:
            raise OSError(self.code, os.strerror(self.code))
        done = self.real(descriptor, bytes(content)[: self.left])
        self.left -= done
        return done


async def test_4000_answers_on_a_disk_that_fills_up_are_stored_once_each(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writing fails although there seems to be space, as with a quota.
    monkeypatch.setattr(appending._Space, "has", lambda self, size: True)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    store = RequestStore(small_disk, free=0)
    sent = Counter[str]()

    async def pay(number: int) -> None:
        async with limit, store.reserve(100):
            sent[KEYS[number]] += 1
            await asyncio.sleep(0)
            await store.put(KEYS[number], record(number))

    limit = asyncio.Semaphore(64)
    running = [asyncio.create_task(pay(number)) for number in range(4000)]
    await until(lambda: store.blocked)
    paid = sum(sent.values())
    assert 100 < paid < 2000
    await asyncio.sleep(0.1)
    assert sum(sent.values()) == paid  # nothing more is sent
    assert "No space left on device" in store.blocked
    assert str(small_disk / "requests") in store.blocked
    assert "paid answers wait in memory" in store.blocked
    assert RequestStore(small_disk).damage == []  # no half line is left
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=16m", small_disk], check=True)
    await asyncio.gather(*running)
    assert store.blocked == ""
    store.close()
    assert sent == Counter(KEYS)
    assert stored_keys(small_disk) == Counter(KEYS)
    assert RequestStore(small_disk).get(KEYS) == {key: record(number) for number, key in enumerate(KEYS)}


async def test_with_reservations_a_full_disk_stops_sending_before_writing_fails(small_disk: Path) -> None:
    store = RequestStore(small_disk, free=100_000)
    sent: list[int] = []

    async def pay(number: int) -> None:
        async with store.reserve(1500):
            sent.append(number)
            await asyncio.sleep(0)
            await store.put(KEYS[number], record(number))

    running = [asyncio.create_task(pay(number)) for number in range(4000)]
    await until(lambda: store.blocked)
    await until(lambda: len(stored_keys(small_disk)) == len(sent))
    assert len(sent) > 500
    assert "left for completions" in store.blocked
    assert os.statvfs(small_disk).f_bavail * 4096 > 90_000  # the margin was left
    store.draining = True
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert sum(isinstance(one, Interrupted) for one in outcomes) == 4000 - len(sent)
    assert store.blocked == ""
    store.close()
    assert stored_keys(small_disk) == Counter(KEYS[number] for number in sent)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("left", [0, 1, 100, 5000])
async def test_a_short_write_is_taken_back_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, code: int
) -> None:
    store = RequestStore(tmp_path)
    await store.put(KEYS[0], record(0))
    disk = Disk(monkeypatch, left, code)
    running = [asyncio.create_task(store.put(KEYS[number], record(number))) for number in range(1, 50)]
    await until(lambda: store.blocked)
    assert os.strerror(code) in store.blocked
    (journal,) = (tmp_path / "requests").iterdir()
    assert journal.read_bytes().endswith(b"\n")
    done = sum(task.done() for task in running)
    assert f"{49 - done} paid answers wait in memory" in store.blocked
    assert set(RequestStore(tmp_path).get(KEYS)) == set(KEYS[: 1 + done]) == store.present(KEYS)
    disk.left = 1 << 30
    await asyncio.gather(*running)
    store.close()
    assert stored_keys(tmp_path) == Counter(KEYS[:50])


async def test_a_journal_that_cannot_be_truncated_is_left_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = RequestStore(tmp_path)
    await store.put(KEYS[0], record(0))
    disk = Disk(monkeypatch, 500)
    monkeypatch.setattr(journals.os, "ftruncate", fail)
    running = asyncio.create_task(store.put(KEYS[1], record(1)))
    await until(lambda: store.blocked)
    disk.left = 1 << 30
    await running
    await store.put(KEYS[2], record(2))
    store.close()
    assert len(list((tmp_path / "requests").iterdir())) == 2
    expected = {KEYS[number]: record(number) for number in range(3)}
    assert RequestStore(tmp_path).get(KEYS) == expected
    # A sync that is still running keeps its journal locked for a moment.
    await until(lambda: compact(tmp_path, at_least=1) >= 0 and not list((tmp_path / "requests").glob("journal-*")))
    assert RequestStore(tmp_path).get(KEYS) == expected
    (aside,) = (tmp_path / "requests" / "damaged").iterdir()
    assert len(aside.read_bytes()) == 500  # the half line


async def test_what_is_lost_by_a_failed_sync_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = True

    def sync(descriptor: int) -> None:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journals.os, "fdatasync", sync)
    store = RequestStore(tmp_path)
    await store.put(KEYS[0], record(0))
    assert "1 paid answers wait in memory" in store.blocked
    (first,) = (tmp_path / "requests").iterdir()
    first.unlink()  # the disk has lost it
    failing = False
    await until(lambda: not store.blocked)
    await store.put(KEYS[1], record(1))
    store.close()
    assert stored_keys(tmp_path) == Counter(KEYS[:2])


async def test_an_answer_whose_put_is_cancelled_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RequestStore(tmp_path)
    disk = Disk(monkeypatch, 0)
    running = [asyncio.create_task(store.put(KEYS[number], record(number))) for number in range(3)]
    await until(lambda: store.blocked)
    running[1].cancel()
    await asyncio.sleep(0.05)
    assert running[1].cancelled()
    disk.left = 1 << 30
    await asyncio.gather(running[0], running[2])
    assert store.present(KEYS) == set(KEYS[:3])
    store.close()
    assert stored_keys(tmp_path) == Counter(KEYS[:3])


async def test_closing_writes_what_waits_or_says_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root, left in ((tmp_path / "freed", 1 << 30), (tmp_path / "full", 0)):
        store = RequestStore(root)
        disk = Disk(monkeypatch, 0)
        task = asyncio.create_task(store.put(KEYS[0], record(0)))
        await until(lambda store=store: store.blocked)
        task.cancel()
        disk.left = left
        if left:
            store.close()
            assert stored_keys(root) == Counter(KEYS[:1])
        else:
            with pytest.raises(RunError, match="1 paid answers in memory are lost"):
                store.close()
        monkeypatch.undo()


async def test_putting_goes_on_while_draining_and_reserving_does_not(tmp_path: Path) -> None:
    store = RequestStore(tmp_path)
    store.draining = True
    await store.put(KEYS[0], record(0))
    with pytest.raises(Interrupted):
        async with store.reserve(1):
            pytest.fail("it may not be sent")
    store.close()
    assert stored_keys(tmp_path) == Counter(KEYS[:1])


async def test_reservations_count_and_are_released(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    store = RequestStore(tmp_path, free=space - 500 * MB)
    async with store.reserve(400 * MB):
        waiting = asyncio.create_task(store.reserve(400 * MB).__aenter__())
        await until(lambda: store.blocked)
        assert "may need 800.0 MB" in store.blocked
    await waiting
    assert store.blocked == ""


async def test_a_compaction_without_space_leaves_the_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RequestStore(tmp_path)
    await store.put(KEYS[0], record(0))
    store.close()
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert compact(tmp_path, at_least=1) == 0
    assert [path.suffix for path in (tmp_path / "requests").iterdir()] == [".jsonl"]
    monkeypatch.setattr(os, "fsync", real)
    assert compact(tmp_path, at_least=1) == 1
    assert RequestStore(tmp_path).get(KEYS) == {KEYS[0]: record(0)}
