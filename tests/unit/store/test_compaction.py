"""Merging segments of a shared state: whatever is killed, doubled, damaged or late, every completion is readable."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.engine import compacting as engine
from tracefactory.store import requests
from tracefactory.store.requests import RequestStore
from tracefactory.store.shared import compaction, reading
from tracefactory.store.shared.compaction import GRACE_S, Compaction
from tracefactory.store.shared.completions import SharedCompletions
from tracefactory.store.shared.leases import clock_of
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.reading import SharedSegment
from tracefactory.store.shared.retired import Merge, decoded

KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(12)]
LATER_S = GRACE_S + 2 * 3600


class Killed(BaseException):
    """The process ends here."""


class Machine:
    """A machine with a state folder of its own."""

    def __init__(self, root: Path, cloud: Cloud) -> None:
        (root / "requests").mkdir(parents=True)
        self.root, self.cloud = root, cloud
        self.store, self.shared = RequestStore(root, free=0), SharedCompletions(root, cloud)

    def put(self, *numbers: int) -> None:
        """Pay for completions, and put them as one segment."""

        async def pay() -> None:
            for number in numbers:
                await self.store.put(KEYS[number], {"number": number}, near=f"p{number}")

        asyncio.run(pay())
        self.shared.push(flush=True)

    def numbers(self) -> list[int]:
        return sorted(record["number"] for record in self.store.get(KEYS).values())

    def compaction(self, **options: Any) -> Compaction:
        self.shared.pull()
        return Compaction(self.shared.folder, self.cloud, **options)

    def merge(self) -> int:
        return self.compaction().merge(clock_of(self.cloud, "run"))

    def delete(self) -> int:
        return self.compaction().delete(clock_of(self.cloud, "run"))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    one = Cloud()
    monkeypatch.setattr(reading, "_objects_of", lambda folder: one)
    monkeypatch.setattr(compaction, "FEWEST", 3)
    return one


@pytest.fixture
def machine(tmp_path: Path, cloud: Cloud) -> Iterator[Callable[[], Machine]]:
    made: list[Machine] = []

    def make() -> Machine:
        made.append(Machine(tmp_path / str(len(made)), cloud))
        return made[-1]

    yield make
    for one in made:
        one.shared.close()
        one.store.close()


@pytest.fixture
def six(cloud: Cloud, machine: Callable[[], Machine]) -> Cloud:
    """Six segments of two completions, put by a machine that is gone."""
    one = machine()
    for number in range(0, 12, 2):
        one.put(number, number + 1)
    return cloud


def names(cloud: Cloud, folder: str) -> list[str]:
    return sorted(name for name in cloud.objects if name.startswith(f"{folder}/"))


def test_small_segments_become_one_and_are_deleted_after_the_grace_period(
    six: Cloud, machine: Callable[[], Machine]
) -> None:
    one, old = machine(), machine()
    assert old.shared.pull() == 6
    assert old.store.present(KEYS) == set(KEYS)  # it has the list of before, and read nothing yet
    small = names(six, "segments")
    assert one.merge() == 6
    assert one.merge() == 0
    assert machine().delete() == 0  # nothing but the merge tells that this is too early
    assert set(small) < set(names(six, "segments"))
    late = machine()
    assert late.shared.pull() == 1  # the merged one alone
    assert late.numbers() == list(range(12))
    six.skew_s = LATER_S
    assert machine().delete() == 6
    assert len(names(six, "segments")) == len(names(six, "indexes")) == 1
    assert old.numbers() == list(range(12))
    assert not old.store.damage
    assert old.shared.pull() == 0
    assert [path.stem for path in old.shared.folder.glob("*.index")] == [names(six, "segments")[0][12:-8]]
    assert machine().delete() == 0


def test_what_is_merged_is_neither_put_nor_merged_again(six: Cloud, machine: Callable[[], Machine]) -> None:
    one, again = machine(), machine()
    one.merge()
    again.put(*range(12))  # the same completions, which it did not know
    again.shared.pull()
    objects = set(six.objects)
    fresh = machine()
    fresh.shared.pull()
    fresh.put(*range(12))
    assert names(six, "indexes") == sorted(name for name in objects if name.startswith("indexes/"))


@pytest.mark.parametrize(("most_bytes", "at_once"), [(1, {1}), (1 << 30, {2, 3, 4, 5, 6})])
def test_few_bytes_are_in_memory_while_segments_are_fetched(
    six: Cloud, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch, most_bytes: int, at_once: set[int]
) -> None:
    monkeypatch.setattr(reading, "FETCH_BYTES", most_bytes)
    reader, going, most = machine(), set(), 0
    reader.shared.pull()
    get = six.get

    def slow(name: str) -> Any:
        nonlocal most
        going.add(name)
        most = max(most, len(going))
        time.sleep(0.05)
        going.discard(name)
        return get(name)

    monkeypatch.setattr(six, "get", slow)
    assert reader.numbers() == list(range(12))
    assert most in at_once


def test_a_process_that_opens_indexes_while_another_removes_them_misses_nothing(
    six: Cloud, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine()
    one.shared.pull()
    machine().merge()
    opened = []

    def opening(path: Path, met: Any) -> SharedSegment:
        opened.append(path)
        if len(opened) == 1:
            assert one.shared.pull() == 1
            assert one.shared.pull() == 0
        return SharedSegment(path, met)

    monkeypatch.setattr(requests, "SharedSegment", opening)
    assert one.store.present(KEYS) == set(KEYS)
    assert len(opened) == 2  # the second one is the merged one
    assert one.numbers() == list(range(12))
    assert not one.store.damage


def copy_of(cloud: Cloud) -> Cloud:
    one = Cloud()
    one.objects = dict(cloud.objects)
    one._etags = cloud._etags
    return one


class Mortal(Cloud):
    """Kills who asks for the n-th change of an object, before or after it is made."""

    def __init__(self, cloud: Cloud, at: int, *, after: bool) -> None:
        super().__init__()
        self.objects, self._etags, self.skew_s = cloud.objects, cloud._etags, cloud.skew_s
        self._left, self._after = at, after

    def _change(self, change: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == -1 and not self._after:
            raise Killed
        found = change()
        if self._left == -1:
            raise Killed
        return found

    def create(self, name: str, content: bytes) -> str | None:
        return self._change(lambda: super(Mortal, self).create(name, content))  # type: ignore[no-any-return]

    def delete(self, name: str) -> None:
        self._change(lambda: super(Mortal, self).delete(name))


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_loses_nothing_and_the_next_machine_goes_on(
    cloud: Cloud, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    for number in range(3):
        machine().put(number)
    given, numbers = cloud, [0, 1, 2]
    steps = killed = 0
    finished = False
    while not finished:
        cloud = copy_of(given)
        monkeypatch.setattr(reading, "_objects_of", lambda folder, cloud=cloud: cloud)
        old, victim = machine(), machine()
        for one in (old, victim):
            one.cloud = one.shared.objects = one.shared._listed.objects = one.shared._retired.objects = cloud
        old.shared.pull()
        mortal = Mortal(cloud, steps, after=after)
        try:
            victim.shared.pull()
            Compaction(victim.shared.folder, mortal).merge(mortal.now())
            mortal.skew_s = LATER_S
            Compaction(victim.shared.folder, mortal).delete(mortal.now())
            finished = True
        except Killed:
            killed += 1
        readers = [old, victim]
        for skew_s in (0.0, LATER_S):
            cloud.skew_s = skew_s
            other = machine()
            other.cloud = other.shared.objects = other.shared._listed.objects = other.shared._retired.objects = cloud
            other.merge()
            other.delete()
            readers.append(other)
            for reader in readers:
                assert reader.numbers() == numbers, (steps, skew_s)
                assert not reader.store.damage
        cloud.skew_s = 2 * LATER_S
        other.delete()
        assert len(names(cloud, "indexes")) == 1, steps
        steps += 1
    assert killed == 3 + 6  # a segment, an index, a merge, and what is deleted


def test_two_that_merge_at_once_lose_nothing(six: Cloud, machine: Callable[[], Machine]) -> None:
    one, two = machine(), machine()
    first = one.compaction()
    one.put()  # nothing
    second = two.compaction()
    first._look()
    six.faults = {}
    last = machine()
    last.shared.pull()
    extra = hashlib.sha256(b"extra").hexdigest()

    async def pay() -> None:
        await last.store.put(extra, {"number": 99})

    asyncio.run(pay())
    last.shared.push(flush=True)
    two.shared.pull()
    assert first.merge(six.now()) == 6
    second._retired.pull = lambda: None  # type: ignore[method-assign]  # as if its list were older
    assert second.merge(six.now()) >= 6
    six.skew_s = LATER_S
    machine().delete()
    for _ in range(2):
        fresh = machine()
        fresh.shared.pull()
        assert fresh.numbers() == list(range(12))
        assert fresh.store.get([extra])[extra]["number"] == 99
        fresh.merge()
        fresh.delete()


def test_what_replaces_is_read_before_anything_is_deleted(six: Cloud, machine: Callable[[], Machine]) -> None:
    small = set(names(six, "segments"))
    one = machine()
    one.merge()
    (merged,) = set(names(six, "segments")) - small
    content, head = six.objects[merged]
    for damaged in (content[:-5], content[:100] + b"x" + content[101:], b""):
        six.objects[merged] = (damaged, head)
        six.skew_s = LATER_S
        assert machine().delete() == 0
    assert small < set(names(six, "segments"))
    six.objects[merged] = (content, head)
    assert machine().delete() == 6


def test_a_merge_that_says_too_much_deletes_nothing_else(six: Cloud, machine: Callable[[], Machine]) -> None:
    first, *others = [name[12:-8] for name in names(six, "segments")]
    lie = Merge(first, tuple(others))
    six.create(f"retired/20200101T00/{lie.name}.json", lie.encoded())
    assert machine().delete() == 0
    assert len(names(six, "segments")) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"into": "x", "segments": ["y"]}',
        b'{"into": "%s", "segments": ["%s"]}' % (b"a" * 64, b"a" * 64),
        b'{"into": "%s", "segments": ["../%s"]}' % (b"a" * 64, b"a" * 61),
        b'{"into": "%s", "segments": "%s"}' % (b"a" * 64, b"b" * 64),
        b'{"into": 5, "segments": [7]}',
    ],
)
def test_a_damaged_merge_changes_nothing(six: Cloud, machine: Callable[[], Machine], content: bytes) -> None:
    stem = hashlib.sha256(content).hexdigest()
    with pytest.raises((ValueError, RecursionError)):
        decoded(content, stem)
    six.create(f"retired/20200101T00/{stem}.json", content)
    six.create(f"retired/20200101T00/{'0' * 64}.json", Merge("a" * 64, ("b" * 64,)).encoded())
    one = machine()
    assert one.shared.pull() == 6
    assert one.delete() == 0
    assert one.numbers() == list(range(12))


def test_segments_that_replace_each_other_are_both_kept(six: Cloud, machine: Callable[[], Machine]) -> None:
    first, second = (name[12:-8] for name in names(six, "segments")[:2])
    for merge in (Merge(first, (second,)), Merge(second, (first,))):
        six.create(f"retired/20200101T00/{merge.name}.json", merge.encoded())
    one = machine()
    assert one.shared.pull() == 6
    assert one.delete() == 0
    assert one.numbers() == list(range(12))


def test_merges_of_merges_are_followed_by_who_was_away(six: Cloud, machine: Callable[[], Machine]) -> None:
    old = machine()
    old.shared.pull()
    machine().merge()
    for number in range(3):
        machine().put(number)  # known to others, not to it: put again in other segments
    machine().merge()
    six.skew_s = LATER_S
    machine().delete()
    assert len(names(six, "segments")) == 1
    assert old.numbers() == list(range(12))


def test_damaged_segments_are_left_out(six: Cloud, machine: Callable[[], Machine]) -> None:
    name = names(six, "segments")[0]
    six.objects[name] = (b"nonsense", six.objects[name][1])
    one = machine()
    assert one.merge() == 5
    six.skew_s = LATER_S
    assert machine().delete() == 5
    assert name in six.objects
    assert len(machine().numbers()) == 0
    fresh = machine()
    fresh.shared.pull()
    assert len(fresh.numbers()) == 10


def test_who_lost_the_lease_says_nothing_to_others(six: Cloud, machine: Callable[[], Machine]) -> None:
    one = machine()
    for steps in range(9):
        assert not names(six, "retired")
        left = iter(range(steps))
        merged = one.compaction(is_held=lambda left=left: next(left, None) is not None).merge(six.now())
        assert not merged
    # The last one put its segment, which is small too and has nothing new.
    assert one.merge() == 6
    six.skew_s = LATER_S
    assert one.compaction(is_held=lambda: False).delete(six.now()) == 0


async def test_a_run_merges_under_a_lease_and_tells_what_fails(
    six: Cloud, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FIRST_S", 0.0)
    monkeypatch.setattr(engine, "EVERY_S", 0.02)
    logged: list[tuple[str, dict[str, Any]]] = []
    merged = asyncio.Event()

    def log(event: str, **what: Any) -> None:
        logged.append((event, what))
        if event == "shared_segments":
            merged.set()

    one = machine()
    one.shared.pull()
    six.faults = {"create": [Unreachable("the store is away")]}
    async with asyncio.timeout(20), engine.compacting(one.shared.folder, six, "run", log):
        await merged.wait()
    assert logged[0] == ("shared_state", {"text": "segments were not merged: the store is away"})
    assert logged[1] == ("shared_segments", {"merged": 6, "deleted": 0})
    assert six.get("leases/compaction.json")[0] == b"{}"  # given back
