"""Damage in the folder of a stage: named, and its stage or shard is not done."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tracefactory.core.columns import column_like
from tracefactory.core.decisions import Made
from tracefactory.core.errors import RunError
from tracefactory.core.rows import Kind
from tracefactory.core.spans import Span
from tracefactory.core.tables import Table, judged_table, judgement_of, made_table
from tracefactory.core.token_scores import TokenScores
from tracefactory.store import leases
from tracefactory.store.leases import Lease
from tracefactory.store.records import checked, with_checksum
from tracefactory.store.rows import StageRows, stored_rows
from tracefactory.store.scores import ScoreStore
from tracefactory.store.stages import ShardRecord, StageFolder, StageRecord, Tables, stage_digest
from tracefactory.testing import make_trace

IDENTITY: dict[str, Any] = {"id": "s", "op": "x", "version": "1", "with": {}, "uses": {}, "inputs": {}}


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    """The folder of a finished stage of traces with one shard."""
    found = StageFolder(tmp_path, "s", "0" * 64)
    made = [Made(make_trace(answer_text=f"answer {number}")) for number in range(5)]
    made.sort(key=lambda one: (one.row.problem_id, one.row.id))
    found.write_identity(IDENTITY)
    with Tables(found, 0, 1) as tables:
        tables.add_made(Table.PROBLEMS, made_table(Table.PROBLEMS, [Made(made[0].row.problem)]))
        tables.add_made(Table.TRACES, made_table(Table.TRACES, made))
        owners = {one.row.id: one.row.problem_id for one in made}
        judgements = [judgement_of(one) for one in made]
        declared = [column_like(name, value) for one in judgements for name, value in one.values.items()]
        tables.add_judged(judged_table(judgements, owners, declared), declared)
        shard = found.write_shard(0, 1, tables, "run", {})
    found.write_record(record_of(shard))
    return StageFolder(tmp_path, "s", "0" * 64)


def record_of(shard: ShardRecord) -> StageRecord:
    return StageRecord(
        stage="s",
        key="0" * 64,
        gives=Kind.TRACES,
        makes=Kind.TRACES,
        judges=False,
        shards=1,
        inputs={},
        digest=stage_digest([shard.digest], {}),
        tally=shard.tally,
        finished=1.5,
    )


def same(folder: StageFolder) -> StageFolder:
    """Return the folder as another process opens it."""
    return StageFolder(folder.path.parents[1], folder.stage_id, folder.key)


@pytest.mark.parametrize("name", ["record.json", "identity.json"])
def test_a_record_changed_or_cut_off_anywhere_is_named_and_counts_as_missing(folder: StageFolder, name: str) -> None:
    path = folder.path / name
    whole = path.read_bytes()

    def read() -> tuple[Any, StageFolder]:
        opened = same(folder)
        return (opened.record() if name == "record.json" else opened.identity()), opened

    expected, opened = read()
    assert expected is not None
    assert opened.damage == []
    for end in range(len(whole) - 1):  # without the last newline it is whole
        path.write_bytes(whole[:end])
        found, opened = read()
        assert found is None, end
        assert [one.path for one in opened.damage] == [path]
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found, opened = read()
        # A changed space between values, or name of the checksum, changes nothing that is used.
        intact = found is not None and dict(expected).items() <= dict(found).items()
        assert intact or (found is None and [one.path for one in opened.damage] == [path]), at
    for garbage in (b"[]", b"null", b"{}", os.urandom(100)):
        path.write_bytes(garbage)
        found, opened = read()
        assert found is None
        assert str(path) in str(opened.damage[0])


def test_a_damaged_identity_is_written_again(folder: StageFolder) -> None:
    (folder.path / "identity.json").write_text("{")
    folder.write_identity(IDENTITY)
    assert same(folder).identity() == IDENTITY


def test_records_without_a_checksum_are_those_of_earlier_versions(folder: StageFolder) -> None:
    path = folder.path / "record.json"
    expected = folder.record()
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert same(folder).record() == expected


def test_any_number_has_a_checksum() -> None:
    content = {"a": float("nan"), "b": [1e300, -0.0, 2**70], "c": "½\ud800"}
    assert str(checked(json.dumps(with_checksum(content)).encode())) == str(content)


def test_a_judged_part_cut_off_anywhere_is_a_shard_that_is_not_done(folder: StageFolder) -> None:
    path = folder.part(Table.JUDGED, 0, 1)
    whole = path.read_bytes()
    expected = folder.shard_record(0, 1)
    assert expected is not None
    for end in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:end])
        opened = same(folder)
        assert opened.shard_record(0, 1) is None
        (damage,) = opened.damage
        assert damage.path == path
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        opened = same(folder)
        found = opened.shard_record(0, 1)
        assert found == expected or (found is None and opened.damage), at


@pytest.mark.parametrize("table", ["traces", "judged"])
@pytest.mark.parametrize("damage", ["cut off", "garbage", "missing"])
def test_reading_a_damaged_part_names_the_file_and_the_repair(folder: StageFolder, table: str, damage: str) -> None:
    path = folder.part(Table(table), 0, 1)
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-30] if damage == "cut off" else os.urandom(500))
    with pytest.raises(RunError) as caught:
        StageRows(same(folder), 1, Kind.TRACES, Kind.TRACES, judges=False).frame(Span.all())
    assert str(path) in str(caught.value)
    assert "`tracefactory fsck --repair`" in str(caught.value)


def test_parts_have_page_checksums(folder: StageFolder) -> None:
    path = folder.part(Table.TRACES, 0, 1)
    column = pq.read_metadata(path).row_group(0).column(0)
    whole = bytearray(path.read_bytes())
    whole[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_rows_of_a_stage_with_a_damaged_record_name_it(folder: StageFolder) -> None:
    path = folder.path / "record.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match=r"record\.json, line"):
        stored_rows(folder.path.parents[1], "s", folder.key)


def test_a_full_disk_fails_a_shard_with_a_sentence_and_leaves_no_file(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(folder.path.iterdir())
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    message = r"traces-00001-of-00002.*No space left.*nothing is paid again"

    def write() -> None:
        with Tables(folder, 1, 2) as tables:
            tables.add_made(Table.TRACES, made_table(Table.TRACES, [Made(make_trace())]))
            tables.commit()

    with pytest.raises(RunError, match=message):
        write()
    assert sorted(folder.path.iterdir()) == before


@pytest.mark.parametrize("content", [b"garbage", b"\xff\xfe", b'{"run": "a"}', b"[1]", b'{"run": "a", "host'])
async def test_a_lease_of_garbage_is_waited_for_until_it_is_stale_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    folder = tmp_path / "stages" / "s-1"
    folder.mkdir(parents=True)
    (folder / "lease.json").write_bytes(content)
    monkeypatch.setattr(leases, "STALE_S", 0.5)
    told: list[str] = []
    async with asyncio.timeout(20), Lease(tmp_path, folder, "mine", told.append):
        assert json.loads((folder / "lease.json").read_text())["run"] == "mine"
    assert len(told) == 1
    assert str(folder / "lease.json") in told[0]
    assert (folder / "lease.json").read_bytes() == b""


def test_a_damaged_file_of_scores_is_left_out_and_named(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "ab" * 32)
    ids = np.arange(500, dtype=np.int32)
    floats = np.zeros(500, np.float32)
    scores = TokenScores(
        token_ids=ids, starts=ids, ends=ids, ranks=ids, logprobs=floats, entropies=floats, body_start=0
    )
    store.put({"whole": scores})
    (whole,) = store.folder.iterdir()
    store.put({"changed": scores})
    (changed,) = set(store.folder.iterdir()) - {whole}
    group = pq.read_metadata(changed).row_group(0)
    column = max((group.column(n) for n in range(group.num_columns)), key=lambda one: one.total_compressed_size)
    content = bytearray(changed.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    changed.write_bytes(content)
    (store.folder / "part-garbage.parquet").write_bytes(os.urandom(100))
    assert store.get(["whole", "changed"]).keys() == {"whole"}
    assert store.get(["changed"]) == {}
    assert {one.path for one in store.damage} == {changed, store.folder / "part-garbage.parquet"}
