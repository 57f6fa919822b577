"""The manifest of a stage that several machines write: no finished shard is lost, and none undoes another's work."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import RunError
from tracefactory.store.records import with_checksum, write_record
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import FOOTER_KEY, ShardRecord, Tally

COUNT = 4
MANIFEST = "stages/s-1/manifest.json"


def part(table: str, index: int, count: int = COUNT) -> str:
    return f"{table}-{index:05d}-of-{count:05d}.parquet"


class Machine:
    """A machine with a folder of the stage, on which it works with others."""

    def __init__(self, root: Path, name: str, cloud: Cloud, count: int = COUNT) -> None:
        self.name, self.count = name, count
        self.folder = root / name / "s-1"
        self.put: list[int] = []
        self.stage = SharedStage(self.folder, cloud, lambda: self.put.append(len(cloud.asked)))
        self.finished: dict[int, str | None] = {}

    def write(self, index: int, *, rows: str = "rows", owed: int = 0) -> None:
        """Finish a shard, after what is known of it in the shared state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished[index] = self.stage.version(index, self.count)
        record = ShardRecord(run=self.name, inputs={}, digest=rows, token=rows, tally=Tally(owed=owed))
        footer = {FOOTER_KEY: json.dumps(with_checksum(record.model_dump(mode="json"))).encode()}
        (self.folder / part("traces", index, self.count)).write_text(f"traces {index} by {self.name}")
        pq.write_table(pa.table({}).replace_schema_metadata(footer), self.folder / part("judged", index, self.count))

    def finish(self, *, finished: float = 1.0, owed: int = 0) -> None:
        record = {"digest": "d", "tally": {"owed": owed}, "finished": finished}
        write_record(self.folder / "record.json", record)

    def push(self) -> None:
        self.finished |= self.stage.push_shards(self.count, dict(self.finished))

    def fetch(self, index: int) -> bool:
        self.stage.refresh()
        return self.stage.fetch(index, self.count, lambda record: True)

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def one(tmp_path: Path, cloud: Cloud) -> Machine:
    return Machine(tmp_path, "one", cloud)


@pytest.fixture
def two(tmp_path: Path, cloud: Cloud) -> Machine:
    return Machine(tmp_path, "two", cloud)


def there(cloud: Cloud) -> dict[str, str]:
    files: dict[str, str] = json.loads(cloud.get(MANIFEST)[0])["files"]
    return files


def finished_by(cloud: Cloud, tmp_path: Path) -> list[str]:
    """Return which machine has made each shard, as a machine sees it that comes later."""
    late = Machine(tmp_path, "late", cloud)
    late.stage.pull()
    return [(late.folder / part("traces", index)).read_text().rpartition(" ")[2] for index in range(COUNT)]


def divide(one: Machine, two: Machine) -> None:
    """Let each do every other shard and put it without knowing of the other's, and fetch the others in the end."""
    for machine in (one, two):
        machine.stage.refresh()
    for index in range(COUNT):
        machine = (one, two)[index % 2]
        machine.write(index)
        machine.push()
    for index in range(COUNT):
        assert (two, one)[index % 2].fetch(index)


def test_shards_of_both_are_there_and_both_have_the_same(
    tmp_path: Path, cloud: Cloud, one: Machine, two: Machine
) -> None:
    divide(one, two)
    assert one.content() == two.content()
    for number, machine in enumerate((one, two)):
        machine.finish(finished=number)
        machine.push()
    assert one.content() == two.content()  # the record that was put first
    assert finished_by(cloud, tmp_path) == ["one", "two", "one", "two"]
    asked = len(cloud.asked)
    one.push()
    assert cloud.asked[asked:] == [("head", MANIFEST)]
    assert one.stage.is_whole_there()


def test_a_record_is_put_only_with_the_shards_that_it_counts(cloud: Cloud, one: Machine, two: Machine) -> None:
    divide(one, two)
    one.write(0, rows="others")  # tried again
    two.finish()
    two.push()
    assert "record.json" in there(cloud)
    one.push()
    assert "record.json" not in there(cloud)
    two.push()
    assert "record.json" not in there(cloud)
    assert two.fetch(0)
    two.push()
    assert "record.json" in there(cloud)


@pytest.mark.parametrize(
    "answers", [["lost"], ["refused"], [Unreachable("away")], ["lost", Unreachable("away"), "lost"]]
)
@pytest.mark.parametrize("how", ["create", "replace", "head", "get"])
def test_after_any_fault_the_next_attempt_puts_everything(
    tmp_path: Path, cloud: Cloud, one: Machine, two: Machine, how: str, answers: list[Exception | str]
) -> None:
    for index in range(COUNT):
        machine = (one, two)[index % 2]
        machine.write(index)
        cloud.faults[how] = list(answers)
        for _ in range(5):
            try:
                machine.push()
            except Unreachable:
                continue
    cloud.faults.clear()
    assert finished_by(cloud, tmp_path) == ["one", "two", "one", "two"]


def test_a_torn_manifest_is_written_anew_by_those_that_work_on_the_stage(
    tmp_path: Path, cloud: Cloud, one: Machine, two: Machine
) -> None:
    divide(one, two)
    content, head = cloud.get(MANIFEST)
    cloud.objects[MANIFEST] = (content[:-40], head._replace(etag='"torn"'))
    for machine in (one, two):
        machine.push()
    assert finished_by(cloud, tmp_path) == ["one", "two", "one", "two"]
    cloud.delete(MANIFEST)
    for machine in (one, two):
        machine.push()
    assert finished_by(cloud, tmp_path) == ["one", "two", "one", "two"]


def test_who_lost_a_lease_takes_the_successors_shard_and_stops_if_its_rows_are_others(
    tmp_path: Path, cloud: Cloud, one: Machine, two: Machine
) -> None:
    for machine in (one, two):
        for index in (0, 1):
            machine.write(index, rows="rows" if index == 0 else machine.name)
    kept = one.finished.pop(1)
    two.push()
    one.push()
    assert (one.folder / part("traces", 0)).read_text() == "traces 0 by two"
    one.finished[1] = kept
    with pytest.raises(RunError, match=r"manifest\.json was written by another run.*nothing is paid again"):
        one.push()
    assert two.content() == {name: content for name, content in one.content().items() if "00001" not in name} | {
        name: content for name, content in two.content().items() if "00001" in name
    }
    late = Machine(tmp_path, "late", cloud)
    late.stage.pull()
    assert late.content() == two.content()


def test_a_retry_wins_over_what_was_there_when_it_began(cloud: Cloud, one: Machine, two: Machine) -> None:
    one.write(0, owed=3)
    one.push()
    two.stage.refresh()
    two.write(0, rows="more", owed=0)
    one.push()  # knows nothing of it
    two.push()
    one.push()  # knows, and leaves it alone
    one.write(1)
    one.push()
    assert sorted(there(cloud)) == [part(table, index) for table in ("judged", "traces") for index in (0, 1)]
    assert one.fetch(0)
    assert (one.folder / part("traces", 0)).read_text() == "traces 0 by two"


def test_a_damaged_shard_is_not_used_and_the_others_are(
    tmp_path: Path, cloud: Cloud, one: Machine, two: Machine
) -> None:
    divide(one, two)
    one.finish()
    one.push()
    bad = there(cloud)[part("traces", 2)]
    found, head = cloud.get(f"stages/s-1/{bad}")
    cloud.objects[f"stages/s-1/{bad}"] = (b"x" * len(found), head)
    late = Machine(tmp_path, "late", cloud)
    late.stage.pull()
    expected = sorted(part(table, index) for table in ("judged", "traces") for index in (0, 1, 3))
    assert sorted(late.content()) == expected
    assert late.stage.version(2, COUNT) is None
    assert not late.fetch(2)
    late.write(2)
    late.finish()
    late.push()
    assert finished_by(cloud, tmp_path / "later") == ["one", "two", "late", "two"]


def test_a_shard_that_is_no_use_leaves_what_is_here(cloud: Cloud, one: Machine, two: Machine) -> None:
    one.write(0)
    one.push()
    two.write(0)
    before = two.content()
    two.stage.refresh()
    assert not two.stage.fetch(0, COUNT, lambda record: record.run != "one")
    assert not two.stage.fetch(1, COUNT, lambda record: True)
    assert two.content() == before
    cloud.faults["get"] = [Unreachable("away")]
    with pytest.raises(Unreachable):
        two.stage.fetch(0, COUNT, lambda record: True)
    assert two.content() == before


def test_nothing_is_put_before_the_completions_it_was_made_from(cloud: Cloud, one: Machine) -> None:
    one.write(0)
    one.push()
    first = next(number for number, (how, name) in enumerate(cloud.asked) if how in ("create", "replace"))
    assert one.put == [first]

    def away() -> None:
        raise Unreachable("away")

    one.stage.put_completions = away
    one.write(1)
    asked = len(cloud.asked)
    with pytest.raises(Unreachable):
        one.push()
    assert {how for how, _ in cloud.asked[asked:]} == {"head"}


def test_parts_of_another_layout_stay_until_a_shard_of_this_one_is_finished(
    tmp_path: Path, cloud: Cloud, one: Machine
) -> None:
    other = Machine(tmp_path, "other", cloud, count=2)
    other.write(0)
    other.push()
    before = there(cloud)
    one.push()
    assert there(cloud) == before
    assert one.stage.version(0, COUNT) is None
    one.write(3)
    one.push()
    assert sorted(there(cloud)) == [part("judged", 3), part("traces", 3)]


@pytest.mark.parametrize(
    "files", [{}, {"x": 1}, {part("judged", 0): "ab" * 32}, {part("traces", 0): "ab" * 32}, [], None]
)
def test_a_hostile_manifest_is_no_shard(tmp_path: Path, cloud: Cloud, one: Machine, files: object) -> None:
    cloud.create(MANIFEST, json.dumps(with_checksum({"files": files})).encode())
    cloud.create(f"stages/s-1/{'ab' * 32}", b"evil")
    assert not one.fetch(0)
    for index in range(COUNT):
        one.write(index)
    one.push()
    assert finished_by(cloud, tmp_path) == ["one"] * COUNT


def test_files_are_put_once_however_often_others_are_first(cloud: Cloud, one: Machine, two: Machine) -> None:
    for machine, index in ((one, 0), (two, 1)):
        machine.stage.refresh()
        machine.write(index)
    cloud.faults["create"] = ["", "", "refused"]
    cloud.faults["replace"] = ["refused"] * 3
    for machine in (one, two):
        machine.push()
    puts = [name for how, name in cloud.asked if how == "create" and name != MANIFEST]
    assert len(puts) == len(set(puts)) == 4
    assert len(there(cloud)) == 4


def test_a_manifest_that_others_write_all_the_time_is_given_up_for_now(cloud: Cloud, one: Machine) -> None:
    one.write(0)
    replace, number = cloud.replace, 0

    def others_first(name: str, content: bytes, etag: str) -> str | None:
        nonlocal number
        number += 1
        replace(name, f"{number}".encode(), etag)
        return replace(name, content, etag)

    cloud.create(MANIFEST, b"0")
    cloud.replace = others_first  # type: ignore[method-assign]
    with pytest.raises(Unreachable, match="other runs wrote it during each of 20 attempts"):
        one.push()
    cloud.replace = replace  # type: ignore[method-assign]
    one.push()
    assert part("judged", 0) in there(cloud)
