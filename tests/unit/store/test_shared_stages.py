"""Folders of stages, what was spent and records of runs in a shared state: whole, and never from two writers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.budget import Cap
from tracefactory.core.errors import RunError
from tracefactory.store.leases import RunLock
from tracefactory.store.records import write_record
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.runs import pull_runs, push_run
from tracefactory.store.shared.spend import pull_spend, push_spend
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.spend import Amount, Ledger, Refusal, Writer

SHARDS = 3


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


def part(table: str, index: int) -> str:
    return f"{table}-{index:05d}-of-{SHARDS:05d}.parquet"


def write(folder: Path, *shards: int, by: str = "one", owed: int | None = None) -> None:
    """Write finished shards, and the record of the stage if `owed` rows are given."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in shards:
        for table in ("traces", "judged"):
            (folder / part(table, index)).write_text(f"{table} {index} by {by}")
    if owed is not None:
        write_record(folder / "record.json", {"stage": by, "tally": {"owed": owed}})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_finished_shards_and_then_the_whole_stage_are_had_by_another_machine(tmp_path: Path, cloud: Cloud) -> None:
    one, two = tmp_path / "one" / "s-1", tmp_path / "two" / "s-1"
    write(one, 0)
    (one / part("traces", 1)).write_text("of a shard that is not finished")
    (one / "lease.json").write_text("of this machine")
    (one / ".tmp-x").write_text("half a file")
    sender, receiver = SharedStage(one, cloud), SharedStage(two, cloud)
    assert sender.push() == 2
    assert receiver.pull() == 2
    assert sorted(content(two)) == [part("judged", 0), part("traces", 0)]
    write(one, 1, 2, owed=0)
    assert sender.is_ahead()
    assert sender.push() == 5
    assert sender.push() == 0
    assert not sender.is_ahead()
    assert receiver.pull() == 5
    assert content(two) == {name: one for name, one in content(one).items() if name[0] not in ".l"}
    assert receiver.pull() == 0
    assert SharedStage(tmp_path / "three" / "s-2", cloud).pull() == 0


def test_the_side_that_is_further_counts(tmp_path: Path, cloud: Cloud) -> None:
    one, two = tmp_path / "one" / "s-1", tmp_path / "two" / "s-1"
    write(one, 0, 1, by="one")
    write(two, 1, 2, by="two")
    SharedStage(one, cloud).push()
    receiver = SharedStage(two, cloud)
    receiver.pull()  # both are in the middle: their shards add up
    assert [content(two)[part("judged", index)].decode()[-3:] for index in range(SHARDS)] == ["one", "two", "two"]
    write(two, owed=4, by="two")
    receiver.push()
    sender = SharedStage(one, cloud)
    sender.pull()  # finished there, not here
    assert content(one) == content(two)
    write(one, 0, owed=1, by="again")  # tried again here: fewer rows are owed
    sender.pull()
    assert b"again" in content(one)["record.json"]
    sender.push()
    receiver.pull()
    assert content(two) == content(one)


def test_of_two_that_write_at_once_the_one_without_the_lease_is_refused(tmp_path: Path, cloud: Cloud) -> None:
    one, two = tmp_path / "one" / "s-1", tmp_path / "two" / "s-1"
    first, second = SharedStage(one, cloud), SharedStage(two, cloud)
    first.pull()
    second.pull()
    write(one, 0, by="one")
    write(two, 0, by="two")
    second.push()
    with pytest.raises(RunError, match=r"stages/s-1/manifest\.json was written by another run.*nothing is paid again"):
        first.push()
    third = SharedStage(tmp_path / "three" / "s-1", cloud)
    third.pull()
    assert content(third.folder) == content(two)


def test_a_lost_answer_is_no_other_writer(tmp_path: Path, cloud: Cloud) -> None:
    folder = tmp_path / "one" / "s-1"
    write(folder, 0)
    stage = SharedStage(folder, cloud)
    cloud.faults["create"] = ["", "", "lost"]
    stage.push()
    write(folder, 1)
    cloud.faults["replace"] = ["lost"]
    stage.push()
    write(folder, 2, owed=0)
    assert stage.push() == 3


def test_a_refusal_that_passes_is_no_other_writer(tmp_path: Path, cloud: Cloud) -> None:
    folder = tmp_path / "one" / "s-1"
    write(folder, 0)
    stage = SharedStage(folder, cloud)
    cloud.faults["create"] = ["", "", "refused"]  # S3 answers 409 while another request goes on
    assert stage.push() == 2
    write(folder, 1)
    cloud.faults["replace"] = ["refused", "refused"]
    assert stage.push() == 2
    write(folder, 2, owed=0)
    cloud.faults["replace"] = ["refused"] * 100
    with pytest.raises(Unreachable, match=r"manifest\.json: could not be replaced in 20 attempts"):
        stage.push()
    cloud.faults["replace"] = []
    assert stage.push() == 3
    receiver = SharedStage(tmp_path / "two" / "s-1", cloud)
    receiver.pull()
    assert content(receiver.folder) == content(folder)


@pytest.mark.parametrize("torn", ["manifest.json", "data", "missing"])
def test_what_is_torn_is_not_trusted_and_put_again(tmp_path: Path, cloud: Cloud, torn: str) -> None:
    one, two, three = (tmp_path / name / "s-1" for name in ("one", "two", "three"))
    write(one, 0, 1, 2, owed=0)
    SharedStage(one, cloud).push()
    for name in [name for name in cloud.objects if (torn == "manifest.json") == name.endswith("manifest.json")]:
        found, head = cloud.objects[name]
        if torn == "missing":
            del cloud.objects[name]
        else:
            cloud.objects[name] = (found[:-3], head)
    receiver = SharedStage(two, cloud)
    assert receiver.pull() == 0
    assert not (two / "record.json").exists()
    assert not list(two.glob("judged-*"))
    write(two, 0, 1, 2, owed=0)  # made again
    receiver.push()
    last = SharedStage(three, cloud)
    assert last.pull() == 7
    assert content(three) == content(two)


@pytest.mark.parametrize(
    "name", ["../../evil", "lease.json", "/etc/x", "judged-00000-of-00001.parquet/..", ".tmp-x", ""]
)
def test_a_manifest_writes_nothing_but_files_of_a_stage(tmp_path: Path, cloud: Cloud, name: str) -> None:
    folder = tmp_path / "one" / "s-1"
    write_record(tmp_path / "manifest", {"files": {name: "ab" * 32}})
    cloud.create("stages/s-1/manifest.json", (tmp_path / "manifest").read_bytes())
    cloud.create(f"stages/s-1/{'ab' * 32}", b"evil")
    assert SharedStage(folder, cloud).pull() == 0
    assert not folder.exists()
    assert not (tmp_path / "evil").exists()


def test_a_torn_upload_of_a_part_is_seen_at_once(tmp_path: Path, cloud: Cloud) -> None:
    one, two = tmp_path / "one" / "s-1", tmp_path / "two" / "s-1"
    write(one, 0)
    cloud.faults["create"] = ["torn"]
    SharedStage(one, cloud).push()
    assert SharedStage(two, cloud).pull() == 2
    assert content(two) == content(one)


def spend(root: Path, run: str, usd: float, *, reserve: float = 0.0) -> None:
    lock = RunLock(root, run)
    ledger = Ledger(root, "p@1", Writer(f"{run}-writer", run, lambda writer: False))
    ledger.charge("teacher", Amount(requests=1, usd=usd))
    if reserve:
        ledger.reserve("teacher", Amount(requests=1, usd=reserve))
    ledger.close()
    lock.close()


def total(root: Path) -> float:
    ledger = Ledger(root, "p@1")
    found = sum(amount.usd for amount in ledger.totals().values())
    ledger.close()
    return found


def test_caps_count_what_other_machines_have_spent(tmp_path: Path, cloud: Cloud) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    spend(one, "a", 3.0, reserve=4.0)  # killed with a request in flight
    push_spend(one, "p@1", cloud)
    for _ in range(2):
        pull_spend(two, "p@1", cloud)
        assert total(two) == pytest.approx(7.0)
    lock = RunLock(two, "b")
    ledger = Ledger(two, "p@1", Writer("w", "b", lambda writer: True))
    cap = Cap("usd", 10.0, "")
    assert isinstance(ledger.reserve("teacher", Amount(requests=1, usd=3.5), [cap]), Refusal)
    number = ledger.reserve("teacher", Amount(requests=1, usd=2.0), [cap])
    assert isinstance(number, int)
    ledger.settle(number, Amount(requests=1, usd=1.0))
    ledger.close()
    lock.close()
    push_spend(two, "p@1", cloud)
    spend(one, "c", 0.5)
    push_spend(one, "p@1", cloud)
    for root in (one, two):
        pull_spend(root, "p@1", cloud)
        assert total(root) == pytest.approx(8.5)
    asked = len(cloud.asked)
    push_spend(two, "p@1", cloud)
    assert [how for how, _ in cloud.asked[asked:]] == ["get"]


def test_sums_written_by_several_at_once_all_stay(tmp_path: Path, cloud: Cloud) -> None:
    spend(tmp_path / "one", "a", 1.0)
    spend(tmp_path / "two", "b", 2.0)
    push_spend(tmp_path / "two", "p@1", cloud)
    cloud.faults["replace"] = ["lost"] * 3
    push_spend(tmp_path / "one", "p@1", cloud)
    pull_spend(tmp_path / "three", "p@1", cloud)
    assert total(tmp_path / "three") == pytest.approx(3.0)


def test_damaged_sums_are_an_error(tmp_path: Path, cloud: Cloud) -> None:
    spend(tmp_path / "one", "a", 1.0)
    push_spend(tmp_path / "one", "p@1", cloud)
    found, head = cloud.objects["spend/p@1.json"]
    for wrong in (b"", b"[]", found[:-5], found.replace(b"1.0", b"0.0")):
        cloud.objects["spend/p@1.json"] = (wrong, head)
        for ask in (pull_spend, push_spend):
            with pytest.raises(RunError, match=r"spend/p@1\.json is damaged"):
                ask(tmp_path / "one", "p@1", cloud)


def test_records_of_runs_are_had_by_other_machines(tmp_path: Path, cloud: Cloud) -> None:
    run = tmp_path / "one" / "runs" / "20261122-080000-000000-sums"
    run.mkdir(parents=True)
    for name in ("resolved.yaml", "plan.json", "outcome.json", "log.jsonl", "alive"):
        (run / name).write_text(name)
    push_run(run, cloud)
    cloud.create("runs/../evil", b"evil")
    cloud.create("runs/x/outcome.json", b"evil")
    cloud.faults["get"] = [Unreachable("away")]
    with pytest.raises(Unreachable):
        pull_runs(tmp_path / "two", cloud)
    pull_runs(tmp_path / "two", cloud)
    assert sorted(content(tmp_path / "two" / "runs" / run.name)) == ["outcome.json", "plan.json", "resolved.yaml"]
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["runs"]
    assert len(list((tmp_path / "two" / "runs").iterdir())) == 1
