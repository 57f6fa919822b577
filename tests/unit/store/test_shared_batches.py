"""Batches of a shared state: one machine works on each, a lost machine's go to another, and none comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.store.shared.batches import SharedBatches
from tracefactory.store.shared.leases import EXPIRES_S, FREE
from tracefactory.store.shared.objects import Unreachable

ID = "ab" * 16


class Machine:
    """A machine with a state folder of its own."""

    def __init__(self, root: Path, cloud: Cloud) -> None:
        self.cloud, self.folder = cloud, root / "batches"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.completions = 0
        self.batches = SharedBatches(root, cloud, self.put_completions)

    def put_completions(self) -> None:
        self.completions += 1
        if self.cloud.faults.get("completions"):
            raise self.cloud.faults["completions"].pop(0)  # type: ignore[misc]

    def write(self, state: str = "submitted", entry_id: str = ID, **more: Any) -> None:
        (self.folder / f"{entry_id}.requests.jsonl").write_text('{"key": 1}\n')
        temporary = self.folder / ".entry"
        temporary.write_text(json.dumps({"id": entry_id, "state": state, **more}))
        temporary.rename(self.folder / f"{entry_id}.json")

    def begin(self) -> None:
        self.cloud.objects.pop(self.lease, None)
        self.cloud.create(self.lease, b'{"run": "r"}')

    @property
    def lease(self) -> str:
        return f"leases/{self.batches.lease('r')}.json"

    def pull(self) -> int:
        return self.batches.pull(self.cloud.now)

    def entry(self, entry_id: str = ID) -> dict[str, Any] | None:
        path = self.folder / f"{entry_id}.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def machines(tmp_path: Path, cloud: Cloud) -> tuple[Machine, Machine, Machine]:
    one, two, three = (Machine(tmp_path / name, cloud) for name in ("one", "two", "three"))
    one.begin()
    one.write(batch="b1")
    one.batches.push()
    return one, two, three


Machines = tuple[Machine, Machine, Machine]


def test_a_lost_machines_batch_goes_to_one_other_machine_with_its_requests(cloud: Cloud, machines: Machines) -> None:
    _, two, three = machines
    assert two.pull() == 0
    assert two.entry() is None  # its machine may live
    cloud.skew_s = EXPIRES_S
    two.begin()
    assert two.pull() == 1
    assert two.entry() == {"id": ID, "state": "submitted", "batch": "b1"}
    assert (two.folder / f"{ID}.requests.jsonl").read_text() == '{"key": 1}\n'
    assert three.pull() == 0
    assert three.entry() is None
    assert two.pull() == 0


def test_a_run_that_ended_leaves_its_batches_to_any_machine(cloud: Cloud, machines: Machines) -> None:
    one, two, _ = machines
    cloud.replace(one.lease, FREE, cloud.head(one.lease).etag)
    assert two.pull() == 1
    assert one.lease not in cloud.objects


def test_of_two_that_take_a_batch_over_at_once_one_has_it(cloud: Cloud, machines: Machines) -> None:
    _, two, three = machines
    cloud.skew_s = EXPIRES_S
    for each in (two, three):
        each.begin()
    before = three.batches._there(ID)
    assert before is not None
    assert two.pull() == 1
    assert three.batches._take(ID, *before) == 0
    assert three.entry() is None


@pytest.mark.parametrize("finished", [False, True])
def test_a_machine_that_comes_back_leaves_what_another_has_taken_over(
    cloud: Cloud, machines: Machines, finished: bool
) -> None:
    one, two, _ = machines
    cloud.skew_s = EXPIRES_S
    two.begin()
    two.pull()
    if finished:
        two.write("stored")
        two.batches.push()
        assert not [name for name in cloud.objects if name.startswith("batches/")]
    one.write("ended", batch="b1")
    one.batches.push()  # before it looks
    one.begin()
    assert one.pull() == 0
    assert not list(one.folder.glob(f"{ID}*"))
    if not finished:
        assert two.entry() == {"id": ID, "state": "submitted", "batch": "b1"}


def test_a_batch_is_finished_there_only_after_its_completions_were_put(cloud: Cloud, machines: Machines) -> None:
    one, two, _ = machines
    one.write("stored")
    cloud.faults["completions"] = [Unreachable("away")]
    with pytest.raises(Unreachable):
        one.batches.push()
    cloud.skew_s = EXPIRES_S
    assert f"batches/{ID}.json" in cloud.objects
    one.batches.push()
    assert one.completions == 2
    assert two.pull() == 0
    assert one.entry() == {"id": ID, "state": "stored"}  # the receipt stays
    assert one.pull() == 0
    assert one.entry() is not None


def test_what_is_given_up_or_deleted_by_the_user_does_not_come_back(cloud: Cloud, machines: Machines) -> None:
    one, two, _ = machines
    (one.folder / f"{ID}.json").unlink()
    assert one.pull() == 0
    assert one.entry() is None
    one.batches.push()
    cloud.skew_s = EXPIRES_S
    assert two.pull() == 0
    assert not [name for name in cloud.objects if name.startswith("batches/")]


def test_every_change_is_put_and_nothing_else(cloud: Cloud, machines: Machines) -> None:
    one, two, _ = machines
    asked = len(cloud.asked)
    one.batches.push()
    assert len(cloud.asked) == asked
    one.write("ended", batch="b1")
    one.batches.push()
    cloud.skew_s = EXPIRES_S
    assert two.pull() == 1
    assert two.entry() == {"id": ID, "state": "ended", "batch": "b1"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"holder": 5, "entry": 7}', b"[" * 100_000, b"\xff"])
def test_damaged_entries_are_left_alone(cloud: Cloud, machines: Machines, content: bytes) -> None:
    _, two, _ = machines
    cloud.skew_s = EXPIRES_S
    for entry_id in ("cd" * 16, "../../etc"):
        cloud.create(f"batches/{entry_id}.json", content)
    lie = {"holder": "ef" * 16, "entry": {"id": "../../x", "state": "submitted"}}
    cloud.create("batches/../../x.json", json.dumps(lie).encode())
    assert two.pull() == 1
    assert sorted(path.name for path in two.folder.glob("*.json")) == [f"{ID}.json"]
