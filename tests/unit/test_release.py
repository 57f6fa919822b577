"""The release folder: the same bytes for the same rows, in files of bounded size, put in place whole."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tracefactory.core.columns import column_like
from tracefactory.core.digests import table_digest
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.fingerprint import digest, digest_file
from tracefactory.core.rows import Problem, Thinking, Trace
from tracefactory.core.spans import Span
from tracefactory.core.stage import Batch
from tracefactory.publish import dataset, writing
from tracefactory.publish.card import CardInputs, ModelLine
from tracefactory.publish.dataset import PublishDataset
from tracefactory.publish.release import (
    Manifest,
    assemble,
    check_version,
    put_in_place,
    read_manifest,
    verify_release,
)
from tracefactory.publish.views import VIEWS, Group
from tracefactory.publish.writing import RangePart, write_range

CARD = CardInputs(title="Math mix", licence="mit", models=(ModelLine(name="long", role="teacher", model="org/big"),))
COLUMNS = [column_like("tokens", 1.0)]


def row_id(number: int) -> str:
    return digest(["trace", number])[:16]


def traces(count: int, *, size: int = 20, seed: int = 0) -> list[Trace]:
    """Return traces whose text does not compress, two for each problem, in random order."""
    chance = random.Random(seed)
    made = [
        Trace(
            id=row_id(number),
            problem=Problem.make(question=f"What is {number // 2} + 1?", answer=str(number // 2 + 1), verifier="math"),
            reasoning=chance.randbytes(size).hex(),
            answer_text=f"It is {number}.",
            thinking=Thinking.CLOSED,
            style="long" if number % 2 else "short",
            measures={"tokens": float(number)},
        )
        for number in range(count)
    ]
    chance.shuffle(made)
    return made


def ranges(folder: Path, rows: Sequence[Trace], views: Sequence[str], count: int = 1) -> Iterator[RangePart]:
    """Write rows as `count` ranges, the problems in order as the store gives them."""
    ordered = sorted(rows, key=lambda trace: trace.problem_id)
    for number in range(count):
        span = Span.of(number, count)
        mine = [trace for trace in ordered if span.first <= trace.problem_id <= span.last]
        yield write_range(folder, number, views, [Batch(traces=mine)], COLUMNS)


def write(
    folder: Path,
    rows: Sequence[Trace],
    *,
    views: Sequence[str] = ("sft", "raw"),
    card: CardInputs = CARD,
    name: str = "mix",
    count: int = 1,
) -> Manifest:
    """Write a release and put it in place."""
    scratch = folder.with_name(f".{folder.name}.tmp-test")
    parts = list(ranges(scratch, rows, views, count))
    keys, recipe = {"mixed": "ab" * 32}, {"mixed": {"op": "mix:long_short"}}
    told = {"name": name, "version": folder.name, "pipeline": "sums"}
    manifest = assemble(scratch, parts, **told, card=card, recipe=recipe, keys=keys)
    put_in_place(scratch, folder)
    return manifest


def test_manifest_describes_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "1.0"
    manifest = write(folder, traces(20))
    assert read_manifest(folder) == manifest
    listed = {line.path: line for line in manifest.files}
    held = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert listed.keys() == held == {"README.md", "data/raw/train-00000.parquet", "data/sft/train-00000.parquet"}
    for path, line in listed.items():
        assert line.sha256 == digest_file(folder / path)
        assert line.bytes == (folder / path).stat().st_size
    assert {view: found.rows for view, found in manifest.configs.items()} == {"sft": 20, "raw": 20}
    assert manifest.stages == {"mixed": "ab" * 32}
    assert manifest.recipe == {"mixed": {"op": "mix:long_short"}}
    assert manifest.models == CARD.models
    assert [p.name for p in folder.parent.iterdir()] == ["1.0"]


def test_rows_are_sorted_and_the_digest_is_of_the_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path / "1.0", traces(50))
    table = pq.read_table(tmp_path / "1.0/data/sft/train-00000.parquet")
    keys = [(row["problem_id"], row["id"]) for row in table.to_pylist()]
    assert keys == sorted(keys)
    assert manifest.configs["sft"].digest == table_digest(table)


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    rows = traces(40)
    first = write(tmp_path / "a" / "1.0", rows)
    second = write(tmp_path / "b" / "1.0", list(reversed(rows)))
    assert first.content == second.content
    assert first.files == second.files


def test_a_changed_row_or_licence_changes_the_content_digest(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "1.0", traces(10))
    assert write(tmp_path / "b" / "1.0", traces(10)).content == first.content
    assert write(tmp_path / "c" / "1.0", traces(11)).content != first.content
    licensed = CARD.model_copy(update={"licence": "cc-by-4.0"})
    assert write(tmp_path / "d" / "1.0", traces(10), card=licensed).content != first.content


@pytest.mark.parametrize("version", ["", "../1", "1/2", "1..2", "1.lock", "1.", "v 1", "-1", "1\n"])
def test_a_version_that_cannot_be_a_tag_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        check_version(version)
    with pytest.raises(UserError, match="cannot be a tag"):
        assemble(tmp_path / "x", [], name="m", version=version, pipeline="m", card=CARD, recipe={}, keys={})


def test_a_duplicate_row_is_refused(tmp_path: Path) -> None:
    rows = traces(4)
    with pytest.raises(RunError, match=f"row {rows[0].id} .* twice"):
        write(tmp_path / "1.0", [*rows, rows[0]])
    assert not (tmp_path / "1.0").exists()


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    write(folder, traces(4))
    verify_release(folder)
    data = folder / "data/sft/train-00000.parquet"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match="changed after it was written"):
        verify_release(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a release"):
        verify_release(folder)


def test_row_groups_are_cut_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = traces(60, size=2000)  # about 4.2 kB of text a row
    whole = write(tmp_path / "whole" / "1.0", rows, views=["sft"])
    monkeypatch.setattr(writing, "_GROUP_BYTES", 16_000)
    monkeypatch.setattr(writing, "_BATCH_ROWS", 1)
    manifest = write(tmp_path / "cut" / "1.0", rows, views=["sft"])
    assert manifest.configs == whole.configs
    assert manifest.content == whole.content
    (file,) = (tmp_path / "cut/1.0/data/sft").iterdir()
    parquet = pq.ParquetFile(file)
    assert parquet.num_row_groups > 3
    for index in range(parquet.num_row_groups):
        assert parquet.metadata.row_group(index).total_byte_size < 22_000


def test_the_number_of_ranges_does_not_change_the_content_digest(tmp_path: Path) -> None:
    rows = traces(60, size=2000)
    whole = write(tmp_path / "whole" / "1.0", rows, views=["sft"])
    manifest = write(tmp_path / "cut" / "1.0", rows, views=["sft"], count=8)
    assert manifest.configs == whole.configs
    assert manifest.content == whole.content
    data = [line for line in manifest.files if line.rows is not None]
    assert [line.path for line in data] == [f"data/sft/train-{number:05d}.parquet" for number in range(len(data))]
    assert len(data) > 3
    assert sum(line.rows or 0 for line in data) == 60
    loaded = load_dataset(str(tmp_path / "cut/1.0"), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == pq.read_table(tmp_path / "whole/1.0/data/sft")["id"].to_pylist()


def test_a_range_without_rows_has_no_file(tmp_path: Path) -> None:
    manifest = write(tmp_path / "1.0", traces(2), count=8)
    assert [line.path for line in manifest.files] == [
        "data/sft/train-00000.parquet",
        "data/raw/train-00000.parquet",
        "README.md",
    ]


@pytest.mark.parametrize(("characters", "count"), [(0, 1), (999, 1), (1000, 1), (1001, 2), (2001, 4), (4000, 4)])
def test_the_number_of_ranges_depends_on_the_characters(
    monkeypatch: pytest.MonkeyPatch, characters: int, count: int
) -> None:
    class Rows:
        def frame(self, span: Span, wanted: Sequence[str]) -> pl.DataFrame:
            half = characters // 2
            return pl.DataFrame({wanted[0]: [half], wanted[1]: [characters - half]})

    monkeypatch.setattr(dataset, "FILE_CHARACTERS", 1000)
    spans = PublishDataset().ranges(None, Rows())  # type: ignore[arg-type]
    assert spans == [Span.of(number, count) for number in range(count)]


def test_files_have_the_declared_parquet_settings(tmp_path: Path) -> None:
    write(tmp_path / "1.0", traces(5))
    column = pq.ParquetFile(tmp_path / "1.0/data/raw/train-00000.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert column.has_offset_index
    assert column.has_column_index


@pytest.mark.parametrize("view", [name for name in VIEWS if not VIEWS.get(name).partial])
def test_datasets_loads_every_view_with_its_declared_types(tmp_path: Path, view: str) -> None:
    rows = traces(6)
    write(tmp_path / "1.0", rows, views=[view])
    loaded = load_dataset(str(tmp_path / "1.0"), view, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 6
    assert loaded.features.arrow_schema.remove_metadata() == VIEWS.get(view).schema(COLUMNS)
    by_id = {trace.id: trace for trace in rows}
    for row in loaded:
        trace = by_id[row["id"]]
        (expected,) = VIEWS.get(view).rows(Group(trace.problem, [trace])).rows
        expected.pop("fields", None)  # no stage declared one
        assert row == expected


def real_traces() -> list[Trace]:
    """Return long traces of real models: reasoning of up to 160,000 characters, in many scripts and notations."""
    for folder in Path(__file__).parents:
        data = folder.parent / "shared" / "data" / "traces"
        if (folder / "pyproject.toml").exists() and data.is_dir():
            break
    else:
        pytest.skip("the real traces are not here")
    made = []
    for name in ("misguided_attention_open_models", "aime25_long_cot"):
        for number, line in enumerate((data / f"{name}.jsonl").read_text("utf-8").splitlines()):
            row = json.loads(line)
            made.append(
                Trace(
                    id=digest([name, number])[:16],
                    problem=Problem.make(question=row["problem"], answer=str(row["gold"]), verifier="math"),
                    model=row["model"],
                    reasoning=row["thinking"] or "",
                    answer_text=row["response"],
                    thinking=Thinking.CLOSED if row["thinking"] else Thinking.NONE,
                )
            )
    return made


def test_real_traces_are_read_back_unchanged(tmp_path: Path) -> None:
    rows = real_traces()
    (part,) = ranges(tmp_path / "refused", rows, ["chat"])
    assert {reason for reason, _ in part.refused.values()} <= {"answer_empty", "think_tag_inside"}
    published = [trace for trace in rows if trace.id not in part.refused]
    for view, expected in (("chat", published), ("raw", rows)):
        write(tmp_path / view / "1.0", rows, views=[view])
        loaded = load_dataset(str(tmp_path / view / "1.0"), view, split="train", cache_dir=str(tmp_path / "cache"))
        found = {
            row["id"]: (row["reasoning"], row["answer_text"])
            if view == "raw"
            else (row["messages"][-1]["reasoning_content"] or "", row["messages"][-1]["content"])
            for row in loaded
        }
        assert found == {trace.id: (trace.reasoning, trace.answer_text) for trace in expected}


def test_a_trace_that_one_view_refuses_is_in_no_view_but_a_partial_view_omits_only_its_own(tmp_path: Path) -> None:
    rows = traces(6)
    rows[0] = rows[0].model_copy(update={"answer_text": " "})
    (part,) = ranges(tmp_path, rows, ["sft", "raw", "preference"])
    assert part.refused == {rows[0].id: ("answer_empty", "there is no answer text after the reasoning")}
    assert {name: found.rows for name, found in part.views.items()} == {"sft": 5, "raw": 5, "preference": 0}
    assert part.views["preference"].left_out == {"not_verified": 5}
    assert part.views["preference"].file is None
    (alone,) = ranges(tmp_path / "raw", rows, ["raw"])
    assert (alone.refused, alone.views["raw"].rows) == ({}, 6)


def test_a_view_without_rows_is_refused_unless_it_is_partial(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no row is left for the view 'sft'"):
        write(tmp_path / "1.0", [])
    assert not (tmp_path / "1.0").exists()
    assert list(write(tmp_path / "1.1", traces(3), views=("preference", "sft")).configs) == ["sft"]


def test_the_digest_of_known_rows_does_not_change(tmp_path: Path) -> None:
    """A change here changes what every published version is compared with."""
    problem = Problem(id="00000000000000ab", question="1+1?", answer="2", verifier="math")
    trace = Trace(id="0123456789abcdef", problem=problem, answer_text="2 é")
    manifest = write(tmp_path / "1.0", [trace], views=["sft"])
    expected: dict[str, Any] = {
        "id": "0123456789abcdef",
        "problem_id": "00000000000000ab",
        "style": "",
        "teacher": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "prompt": [{"role": "user", "content": "1+1?"}],
        "completion": [{"role": "assistant", "content": "2 é"}],
    }
    assert pq.read_table(tmp_path / "1.0" / "data" / "sft" / "train-00000.parquet").to_pylist() == [expected]
    assert manifest.configs["sft"].digest == "777795bc39972622c5e479a1ec60bec6"
    assert manifest.content == "dc089a5aea305a10418278bc037ffc4bec79874b0d8a3bddbba70f72d054d277"
