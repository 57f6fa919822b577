"""Stage folders: whole shards or none, digests of rows alone, any layout read in any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracefactory.filters.testing import make_trace

from tracefactory.core.rows import Trace
from tracefactory.core.stage import Rows, ShardResult
from tracefactory.store.stages import (
    StageFolder,
    combined_digest,
    dropped_row,
    part_name,
    problem_id_of,
    rows_digest,
    shard_of,
)


@pytest.fixture
def traces() -> list[Trace]:
    made = []
    for number in range(40):
        trace = make_trace(answer_text=f"answer {number}", measures={"x/y": number / 3} if number % 2 else {})
        problem = trace.problem.model_copy(update={"id": f"{number:016x}"})
        made.append(trace.model_copy(update={"id": f"{number * 7:016x}", "problem": problem}))
    return made


def write(folder: StageFolder, traces: list[Trace], count: int) -> list[str]:
    folder.reopen(count)
    digests = []
    for index in range(count):
        mine = [trace for trace in traces if shard_of(problem_id_of(trace), count) == index]
        kept, dropped = mine[1:], [dropped_row(trace, "s", "unlucky") for trace in mine[:1]]
        result = ShardResult(rows_in=len(mine), kept=kept, dropped=dropped)
        digests.append(folder.write_shard("run", index, count, {}, result).digest)
    return digests


def test_a_shard_is_read_back_as_it_was_written(tmp_path: Path, traces: list[Trace]) -> None:
    folder = StageFolder(tmp_path, "s", "0" * 64, Rows.TRACES)
    write(folder, traces, 1)
    assert folder.read_shard(0, 1) == sorted(traces[1:], key=lambda trace: trace.id)
    (dropped,) = folder.read_dropped()
    assert dropped.reason == "unlucky"
    assert Trace.model_validate_json(dropped.row) == traces[0]


@pytest.mark.parametrize(("written", "read"), [(4, 16), (16, 4), (8, 8), (1, 8)])
def test_any_layout_is_read_in_any_other(tmp_path: Path, traces: list[Trace], written: int, read: int) -> None:
    folder = StageFolder(tmp_path, "s", "0" * 64, Rows.TRACES)
    write(folder, traces, written)
    everything = {row.id for index in range(written) for row in folder.read_shard(index, written)}
    shards = [folder.read_shard(index, read) for index in range(read)]
    assert sorted(row.id for rows in shards for row in rows) == sorted(everything)
    for index, rows in enumerate(shards):
        assert all(shard_of(problem_id_of(row), read) == index for row in rows)


def test_digests_depend_on_rows_alone(tmp_path: Path, traces: list[Trace]) -> None:
    assert rows_digest(traces) == rows_digest(reversed(traces))
    assert combined_digest([rows_digest(traces[:9]), rows_digest(traces[9:])]) == rows_digest(traces)
    other = [traces[0].model_copy(update={"answer_text": "x"}), *traces[1:]]
    assert rows_digest(other) != rows_digest(traces)


def test_wall_times_are_not_part_of_a_row(traces: list[Trace]) -> None:
    def timed(seconds: float) -> Trace:
        assert traces[0].verdict is not None
        return traces[0].model_copy(update={"verdict": traces[0].verdict.model_copy(update={"seconds": seconds})})

    assert rows_digest([timed(0.1)]) == rows_digest([timed(9.0)])


def test_lost_rows_are_refused(tmp_path: Path, traces: list[Trace]) -> None:
    folder = StageFolder(tmp_path, "s", "0" * 64, Rows.TRACES)
    with pytest.raises(AssertionError, match="rows were lost"):
        folder.write_shard("run", 0, 1, {}, ShardResult(rows_in=3, kept=traces[:2]))
    assert folder.parts() == []


def test_reopening_removes_torn_files_and_other_layouts(tmp_path: Path, traces: list[Trace]) -> None:
    folder = StageFolder(tmp_path, "s", "0" * 64, Rows.TRACES)
    write(folder, traces, 2)
    (folder.path / ".tmp-dead-part-00000-of-00004.parquet").write_bytes(b"PAR1 torn")
    folder.reopen(4)
    assert [path for path in folder.path.iterdir() if path.is_file()] == []
    write(folder, traces, 4)
    (folder.path / part_name(2, 4)).unlink()
    folder.reopen(4)
    assert len(folder.parts()) == 3  # finished shards of this layout stay
