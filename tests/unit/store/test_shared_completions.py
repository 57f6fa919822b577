"""Completions of a shared state: put once, read by other machines, never lost or trusted when something goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import BUCKET, S3Server, environment, running
from tracefactory.core.errors import Interrupted
from tracefactory.store import appending
from tracefactory.store.requests import RequestStore, compact
from tracefactory.store.segments import write_segment
from tracefactory.store.shared import cloud, completions, reading
from tracefactory.store.shared.cloud import connect
from tracefactory.store.shared.completions import SharedCompletions
from tracefactory.store.shared.objects import Unreachable

URL = f"s3://{BUCKET}/state"
KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(40)]
Machine = Callable[[str], "_Machine"]


class _Machine:
    """A machine with a state folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "requests").mkdir(parents=True, exist_ok=True)
        self.store = RequestStore(root, free=0)
        self.shared = SharedCompletions(root, connect(URL))

    def pay(self, *numbers: int, size: int = 100) -> None:
        async def put() -> None:
            for number in numbers:
                await self.store.put(KEYS[number], {"number": number, "text": "x" * size}, near=f"p{number // 4}")

        asyncio.run(put())

    def numbers(self) -> list[int]:
        """Read everything back."""
        return sorted(record["number"] for record in self.store.get(KEYS).values())

    def close(self) -> None:
        self.shared.close()
        self.store.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    backoff: Any = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(cloud, "_RETRY", {**cloud._RETRY, "max_retries": 2, "backoff": backoff})
    monkeypatch.setattr(completions, "RETRY_S", 0.0)
    with running(S3Server(page=3)) as one:
        for name, value in environment(one).items():
            monkeypatch.setenv(name, value)
        yield one
    reading._objects_of.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, server: S3Server) -> Iterator[Machine]:
    made: list[_Machine] = []

    def make(name: str) -> _Machine:
        made.append(_Machine(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def named(server: S3Server, folder: str) -> list[str]:
    return sorted(name for name in server.objects if name.startswith(f"state/{folder}/"))


def test_another_machine_has_the_index_at_once_and_the_records_when_it_reads(
    machine: Machine, server: S3Server
) -> None:
    one, two = machine("one"), machine("two")
    one.pay(*range(10))
    one.shared.push(flush=True)
    assert two.shared.pull() == 1
    before = server.asked["GET"]
    assert two.store.present(KEYS) == set(KEYS[:10])
    assert server.asked["GET"] == before
    assert two.numbers() == list(range(10))
    assert two.numbers() == list(range(10))
    assert server.asked["GET"] == before + 1
    assert two.shared.pull() == 0


def test_what_waits_is_put_when_it_is_much_or_old_and_never_twice(
    machine: Machine, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "SEGMENT_BYTES", 2000)
    one = machine("one")
    one.pay(0, 1)
    one.shared.push()
    assert not named(server, "segments")
    monkeypatch.setattr(completions, "SEGMENT_S", 0.0)
    one.shared.push()
    assert len(named(server, "segments")) == 1
    monkeypatch.setattr(completions, "SEGMENT_S", 1000.0)
    one.pay(*range(2, 12), size=500)
    one.shared.push()
    assert 2 <= len(named(server, "segments")) <= 5
    one.shared.push(flush=True)
    found = named(server, "segments")
    one.store.close()
    compact(one.root, at_least=1)  # the same completions, in another segment
    one.shared.push(flush=True)
    again = machine("one")
    again.shared.push(flush=True)
    assert named(server, "segments") == found


def test_a_folder_that_never_shared_shares_what_it_has(machine: Machine, server: S3Server) -> None:
    one, two = machine("one"), machine("two")
    one.pay(*range(10))
    one.store.close()
    compact(one.root, at_least=1)
    again = machine("one")
    again.pay(10)
    again.shared.push(flush=True)
    two.shared.pull()
    assert two.numbers() == list(range(11))


def test_two_machines_that_paid_for_the_same_keep_one_object_each(machine: Machine, server: S3Server) -> None:
    one, two = machine("one"), machine("two")
    for each in (one, two):
        each.pay(*range(5))
        each.shared.push(flush=True)
    assert len(named(server, "segments")) == 1  # named by its content
    three = machine("three")
    assert three.shared.pull() == 1
    assert three.numbers() == list(range(5))


@pytest.mark.parametrize("fault", [409, 412, 503, "torn", "lost", "slow"])
def test_a_fault_of_one_request_loses_nothing(machine: Machine, server: S3Server, fault: int | str) -> None:
    one, two = machine("one"), machine("two")
    one.pay(*range(10))
    server.faults = {"PUT": [fault, fault], "HEAD": [503] if fault == 503 else []}
    one.shared.push(flush=True)
    server.faults = {"GET": [503], "LIST": ["slow", 503]}
    two.shared.pull()
    assert two.numbers() == list(range(10))


def test_a_torn_segment_or_index_is_never_trusted_and_put_again_by_who_has_it(
    machine: Machine, server: S3Server
) -> None:
    one, two, three = machine("one"), machine("two"), machine("three")
    one.pay(*range(10))
    one.shared.push(flush=True)
    (segment,), (index,) = named(server, "segments"), named(server, "indexes")
    whole = server.objects[segment]
    for content in (whole.content[:50], b"", b"PAR1" * 100, whole.content[:-9] + b"x" * 9):
        server.objects[segment] = whole._replace(content=content)
        fresh = machine(f"with-{len(content)}-{content[:3]!r}")
        fresh.shared.pull()
        assert len(fresh.store.present(KEYS)) == 10
        assert fresh.numbers() == []  # owed again, and named
        assert not fresh.store.present(KEYS)
        assert any(segment.removeprefix("state/") in one.what for one in fresh.store.damage)
        assert fresh.shared.pull() == 0
    fresh.pay(*range(10))  # the same completions: paid again, and put again
    fresh.shared.push(flush=True)
    two.shared.pull()
    assert two.numbers() == list(range(10))

    server.objects[index] = server.objects[index]._replace(content=b"tfindex4 nonsense")
    assert three.shared.pull() == 0
    assert three.store.present(KEYS) == set()
    three.shared.push(flush=True)
    shutil.rmtree(one.shared.folder)
    again = machine("one")
    again.shared.pull()
    again.shared.push(flush=True)
    assert three.shared.pull() == 1
    assert three.numbers() == list(range(10))


def test_a_store_that_stays_away_holds_requests_back_and_loses_nothing(
    machine: Machine, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "HOLD_BYTES", 3000)
    monkeypatch.setattr(completions, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(appending, "_MEASURE_EVERY_S", 0.0)
    one, two = machine("one"), machine("two")

    async def may_send() -> bool:
        async with asyncio.timeout(10):
            waiting = asyncio.create_task(one.store.reserve(10).__aenter__())
            await asyncio.sleep(0.05)
            if not waiting.done():
                assert "only on this machine" in one.store.blocked
                assert URL in one.store.blocked
                one.store.draining = True
            try:
                await waiting
            except Interrupted:
                return False
            finally:
                one.store.draining = False
            return True

    assert asyncio.run(may_send())
    server.faults = {"PUT": [503] * 1000}
    one.pay(*range(10))
    one.shared.push()
    assert asyncio.run(may_send())  # little is at stake yet
    one.pay(*range(10, 40))
    one.shared.push()
    assert not asyncio.run(may_send())
    with pytest.raises(Unreachable):
        one.shared.push(flush=True)
    server.faults = {}
    one.shared.push(flush=True)
    assert asyncio.run(may_send())
    two.shared.pull()
    assert two.numbers() == list(range(40))


def test_reading_from_a_store_that_stays_away_owes_nothing_again(machine: Machine, server: S3Server) -> None:
    one, two = machine("one"), machine("two")
    one.pay(*range(10))
    one.shared.push(flush=True)
    two.shared.pull()
    server.faults = {"GET": [503] * 100}
    with pytest.raises(Unreachable):
        two.numbers()
    assert two.store.present(KEYS) == set(KEYS[:10])
    server.faults = {}
    assert two.numbers() == list(range(10))


def test_later_pulls_list_only_what_may_be_new(machine: Machine, server: S3Server) -> None:
    one, two = machine("one"), machine("two")
    server.after = -7 * 3600.0  # the clock of the store names the hours, whatever it says
    for number in range(6):
        one.pay(number)
        one.shared.push(flush=True)
    server.after = 0.0
    one.pay(6)
    one.shared.push(flush=True)
    assert two.shared.pull() == 7
    before = server.asked["LIST"]
    one.pay(7)
    one.shared.push(flush=True)
    assert two.shared.pull() == 1
    assert server.asked["LIST"] == before + 2  # one of merges, and one of indexes: all 8 would be 3 pages
    assert two.numbers() == list(range(8))


def test_more_segments_than_a_process_may_have_files_open(machine: Machine, tmp_path: Path) -> None:
    one = machine("one")
    for number, key in enumerate(KEYS):
        path = write_segment(tmp_path, [("", key, b'{"number": %d}' % number)], {2})
        path.with_suffix(".index").rename(one.shared.folder / path.with_suffix(".index").name)
    open_now, (soft, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
    try:
        assert one.store.present(KEYS) == set(KEYS)
        one.shared.push(flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
