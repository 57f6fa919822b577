"""Stage folders: whole shards or none, digests of rows alone, any layout read in any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tracefactory.core.columns import Column, column_like
from tracefactory.core.decisions import KEEP, Judgement, Made, drop
from tracefactory.core.digests import combined_digest, table_digest
from tracefactory.core.errors import RunError
from tracefactory.core.rows import Kind, Problem, Trace, problem_id_of
from tracefactory.core.spans import Span, shard_of
from tracefactory.core.tables import Table, judged_table, judgement_of, made_table
from tracefactory.store.rows import StageRows
from tracefactory.store.stages import ShardRecord, StageFolder, Tables, stage_digest
from tracefactory.testing import make_trace


@pytest.fixture
def traces() -> list[Trace]:
    """Traces of as many problems, whose ids are spread over all there are."""
    made = []
    for number in range(40):
        trace = make_trace(answer_text=f"answer {number}", measures={"x/y": number / 3} if number % 2 else {})
        problem = trace.problem.model_copy(update={"id": f"{number * 0x0600_0000_0000_0000 + 5:016x}"})
        made.append(trace.model_copy(update={"id": f"{number * 7:016x}", "problem": problem}))
    return made


def judged_of(made: Sequence[Made]) -> tuple[pa.Table, list[Column]]:
    values = [judgement_of(one) for one in made]
    declared = [column_like(name, value) for one in values for name, value in one.values.items()]
    owners = {one.row.id: problem_id_of(one.row) for one in made}
    return judged_table(values, owners, declared), declared


def write(folder: StageFolder, traces: list[Trace], count: int, *, lucky: bool = False) -> list[ShardRecord]:
    """Write traces as a source of traces does; the first one of every shard is dropped, unless it is lucky."""
    folder.reopen(count)
    records = []
    for index in range(count):
        mine = [trace for trace in traces if shard_of(trace.problem_id, count) == index]
        made = [Made(trace, KEEP if at or lucky else drop("unlucky", "it was first")) for at, trace in enumerate(mine)]
        judged, declared = judged_of(made)
        with Tables(folder, index, count) as tables:
            tables.add_made(Table.PROBLEMS, made_table(Table.PROBLEMS, [Made(trace.problem) for trace in mine]))
            tables.add_made(Table.TRACES, made_table(Table.TRACES, made))
            tables.add_judged(judged, declared)
            records.append(folder.write_shard(index, count, tables, "run", {}))
    return records


def rows_of(folder: StageFolder, count: int) -> StageRows:
    return StageRows(folder, count, gives=Kind.TRACES, makes=Kind.TRACES, judges=False)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder(tmp_path, "s", "0" * 64)


def test_a_shard_is_read_back_as_it_was_written(folder: StageFolder, traces: list[Trace]) -> None:
    (record,) = write(folder, traces, 1)
    rows = rows_of(folder, 1)
    assert rows.traces(Span.all()) == sorted(traces[1:], key=lambda trace: (trace.problem_id, trace.id))
    (dropped,) = rows.judged(Span.all()).filter(~pl.col("kept")).iter_rows(named=True)
    assert (dropped["reason"], dropped["detail"], dropped["failed"]) == ("unlucky", "it was first", False)
    assert (dropped["id"], dropped["answer_text"]) == (traces[0].id, traces[0].answer_text)
    tally = record.tally
    assert (tally.rows_in, tally.kept, tally.dropped, tally.errors, tally.owed) == (40, 39, 1, 0, 0)
    assert tally.reasons == {"unlucky": 1}
    assert folder.shard_record(0, 1) == record


@pytest.mark.parametrize(("written", "read"), [(4, 16), (16, 4), (8, 8), (1, 8)])
def test_any_layout_is_read_in_any_other(folder: StageFolder, traces: list[Trace], written: int, read: int) -> None:
    write(folder, traces, written)
    rows = rows_of(folder, written)
    everything = [row.id for row in rows.traces(Span.all())]
    assert len(everything) == 40 - len({shard_of(trace.problem_id, written) for trace in traces})
    shards = [rows.traces(Span.of(index, read)) for index in range(read)]
    assert [row.id for found in shards for row in found] == everything
    assert sum(bool(found) for found in shards) > 1
    for index, found in enumerate(shards):
        assert all(shard_of(row.problem_id, read) == index for row in found)


def test_digests_depend_on_rows_alone(folder: StageFolder, traces: list[Trace]) -> None:
    def digest(rows: Sequence[Trace]) -> str:
        return table_digest(made_table(Table.TRACES, [Made(row) for row in rows]))

    table = made_table(Table.TRACES, [Made(row) for row in traces])
    assert table_digest(table.take(list(reversed(range(40))))) == digest(traces)
    assert combined_digest([digest(traces[:9]), digest(traces[9:])]) == digest(traces)
    other = [traces[0].model_copy(update={"answer_text": "x"}), *traces[1:]]
    assert digest(other) != digest(traces)


def test_the_digest_of_a_stage_does_not_depend_on_its_layout(tmp_path: Path, traces: list[Trace]) -> None:
    found = set()
    for count in (1, 4, 16):
        records = write(StageFolder(tmp_path / str(count), "s", "0" * 64), traces, count, lucky=True)
        found.add(stage_digest((record.digest for record in records), {"above": "ab"}))
    assert len(found) == 1


def test_wall_times_are_not_part_of_a_row(traces: list[Trace]) -> None:
    def digest(seconds: float) -> str:
        assert traces[0].verdict is not None
        timed = traces[0].model_copy(update={"verdict": traces[0].verdict.model_copy(update={"seconds": seconds})})
        judged, _ = judged_of([Made(timed)])
        assert "verdict" in judged.column_names
        return table_digest(judged)

    assert digest(0.1) == digest(9.0)


def test_a_later_value_of_a_column_stands_where_there_is_one(tmp_path: Path, traces: list[Trace]) -> None:
    source, judging = StageFolder(tmp_path, "s", "0" * 64), StageFolder(tmp_path, "j", "1" * 64)
    write(source, traces, 2, lucky=True)
    ordered = rows_of(source, 2).traces(Span.all())
    values: list[dict[str, float]] = [{"x/y": -1.0}, {}, {"new": 2.0}, {"x/y": 0.0, "new": 3.0}]
    output = {trace.id: values[at % 4] for at, trace in enumerate(ordered)}
    declared = [Column(name="x/y"), Column(name="new")]
    judging.reopen(1)
    with Tables(judging, 0, 1) as tables:
        owners = {trace.id: trace.problem_id for trace in ordered}
        tables.add_judged(
            judged_table([Judgement(one, values=output[one]) for one in owners], owners, declared), declared
        )
        judging.write_shard(0, 1, tables, "run", {})
    rows = StageRows(judging, 1, Kind.TRACES, Kind.NONE, judges=True, inputs=(rows_of(source, 2),))
    assert [trace.measures for trace in rows.traces(Span.all())] == [one.measures | output[one.id] for one in ordered]
    assert {tuple(trace.measures) for trace in ordered} == {
        (),
        ("x/y",),
    }  # some have an older value, and some have none
    narrow = rows.frame(Span.all(), ["x/y"])
    assert narrow.columns == ["problem_id", "id", "x/y"]
    assert narrow["x/y"].equals(rows.frame(Span.all())["x/y"])


def test_a_table_that_does_not_fit_its_rows_is_refused(folder: StageFolder, traces: list[Trace]) -> None:
    write(folder, traces[:20], 1)
    foreign = folder.part(Table.JUDGED, 0, 1).read_bytes()
    write(folder, traces[20:], 1)
    folder.part(Table.JUDGED, 0, 1).write_bytes(foreign)
    with pytest.raises(RunError, match="its judged table does not match the rows"):
        rows_of(folder, 1).traces(Span.all())


def test_a_shard_that_was_not_committed_leaves_nothing(folder: StageFolder, traces: list[Trace]) -> None:
    def interrupted() -> None:
        with Tables(folder, 0, 1) as tables:
            tables.add_made(Table.TRACES, made_table(Table.TRACES, [Made(row) for row in traces]))
            raise KeyboardInterrupt

    folder.reopen(1)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(folder.path.iterdir()) == []
    assert folder.shard_record(0, 1) is None


def test_a_problem_without_a_gold_answer_or_with_all_it_can_have_comes_back(folder: StageFolder) -> None:
    bare = Problem.make(question="Why?", answer=None)
    rich = Problem.make(
        question="Which?",
        answer="a",
        answers=("b", "c"),
        context=({"title": "t", "text": "long", "source": "here"},),
        tests=("assert f(1)",),
        tools=({"name": "add", "parameters": '{"type": "object"}'},),
        meta='{"level": 3}',
        fields={"topic": "sums", "tags": ("x", "y")},
        measures={"level": 3.0},
    )
    problems = sorted((bare, rich), key=lambda one: one.id)
    judged, declared = judged_of([Made(one) for one in problems])
    folder.reopen(1)
    with Tables(folder, 0, 1) as tables:
        tables.add_made(Table.PROBLEMS, made_table(Table.PROBLEMS, [Made(one) for one in problems]))
        tables.add_judged(judged, declared)
        folder.write_shard(0, 1, tables, "run", {})
    rows = StageRows(folder, 1, gives=Kind.PROBLEMS, makes=Kind.PROBLEMS, judges=False)
    assert list(rows.rows()) == problems


def test_reopening_removes_torn_files_and_other_layouts(folder: StageFolder, traces: list[Trace]) -> None:
    write(folder, traces, 2)
    (folder.path / ".tmp-dead-traces-00000-of-00004.parquet").write_bytes(b"PAR1 torn")
    folder.reopen(4)
    assert [path for path in folder.path.iterdir() if path.is_file()] == []
    write(folder, traces, 4)
    for table in Table:
        folder.part(table, 2, 4).unlink()
    folder.reopen(4)
    assert folder.finished_shards() == [(index, 4) for index in (0, 1, 3)]  # finished shards of this layout stay
    assert len(list(folder.path.iterdir())) == 9
