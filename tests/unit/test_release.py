"""The release folder: whole or not at all, the same bytes for the same rows, never another content for a version."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.fingerprint import canonical, digest_all, digest_file
from tracefactory.core.rows import Problem, Thinking, Trace
from tracefactory.publish import release
from tracefactory.publish.card import CardInputs, ModelLine
from tracefactory.publish.release import Manifest, read_manifest, verify_release, write_release
from tracefactory.publish.views import VIEWS, tables

CARD = CardInputs(title="Math mix", licence="mit", models=(ModelLine(name="long", role="teacher", model="org/big"),))


def traces(count: int, *, size: int = 20, seed: int = 0) -> list[Trace]:
    """Return traces whose text does not compress, in random order."""
    chance = random.Random(seed)
    made = [
        Trace(
            id=f"{number:05d}",
            problem=Problem.make(question=f"What is {number % 7} + {number}?", answer=str(number), verifier="math"),
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


def view_tables(view: str, rows: Sequence[Trace]) -> Iterator[pa.Table]:
    def refuse(trace: Trace, error: Exception) -> None:
        raise AssertionError(f"{trace.id}: {error}")

    return tables(VIEWS.get(view), rows, refuse)


def write(
    folder: Path, rows: Sequence[Trace], *, views: Sequence[str] = ("sft", "raw"), card: CardInputs = CARD
) -> Manifest:
    configs = {view: view_tables(view, rows) for view in views}
    return write_release(
        folder, name="mix", version=folder.name, configs=configs, card=card, stages={"mixed": "ab" * 32}
    )


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
    assert manifest.models == CARD.models
    assert [p.name for p in folder.parent.iterdir()] == ["1.0"]


def test_rows_are_sorted_and_the_digest_is_of_the_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path / "1.0", traces(50))
    table = pq.read_table(tmp_path / "1.0/data/sft/train-00000.parquet")
    rows = table.to_pylist()
    keys = [(row["problem_id"], row["id"]) for row in rows]
    assert keys == sorted(keys)
    assert manifest.configs["sft"].digest == digest_all(map(canonical, rows))


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    rows = traces(40)
    first = write(tmp_path / "a" / "1.0", rows)
    second = write(tmp_path / "b" / "1.0", list(reversed(rows)))
    assert first.content == second.content
    assert first.files == second.files


def test_writing_again_is_a_no_op_and_other_content_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    first = write(folder, traces(10))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write(folder, traces(10)) == first
    with pytest.raises(UserError, match="raise `version:`"):
        write(folder, traces(11))
    with pytest.raises(UserError, match="raise `version:`"):
        write(folder, traces(10), card=CARD.model_copy(update={"licence": "cc-by-4.0"}))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["1.0"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.Table]:
        yield from view_tables("sft", traces(5))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_release(tmp_path / "1.0", name="m", version="1.0", configs={"sft": failing()}, card=CARD, stages={})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".1.0.tmp-dead" / "release" / "data"
    leftover.mkdir(parents=True)
    (leftover / "half.parquet").write_bytes(b"PAR1")
    write(tmp_path / "1.0", traces(3))
    assert [p.name for p in tmp_path.iterdir()] == ["1.0"]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    with release._scratch(folder) as busy:
        (busy / "kept").touch()
        write(folder, traces(3))
        assert (busy / "kept").exists()


@pytest.mark.parametrize("version", ["", "../1", "1/2", "1..2", "1.lock", "1.", "v 1", "-1", "1\n"])
def test_a_version_that_cannot_be_a_tag_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        write_release(tmp_path / "x", name="m", version=version, configs={}, card=CARD, stages={})


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    rows = traces(4)
    with pytest.raises(RunError, match=f"row {rows[0].id} .* twice"):
        write(tmp_path / "1.0", [*rows, rows[0]])
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    write(folder, traces(4))
    verify_release(folder)
    data = folder / "data/sft/train-00000.parquet"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match="changed after it was written"):
        verify_release(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold a release"):
        verify_release(folder)


def test_files_and_row_groups_are_cut_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = traces(60, size=2000)  # about 4.4 kB of text a row
    whole = write(tmp_path / "whole" / "1.0", rows, views=["sft"])
    monkeypatch.setattr(release, "_GROUP_BYTES", 20_000)
    monkeypatch.setattr(release, "_FILE_BYTES", 50_000)
    manifest = write(tmp_path / "cut" / "1.0", rows, views=["sft"])
    assert manifest.configs == whole.configs
    assert manifest.content == whole.content
    data = [line for line in manifest.files if line.rows is not None]
    assert len(data) > 3
    assert sum(line.rows or 0 for line in data) == 60
    for line in data:
        parquet = pq.ParquetFile(tmp_path / "cut/1.0" / line.path)
        assert line.bytes < 60_000
        for index in range(parquet.num_row_groups):
            assert parquet.metadata.row_group(index).total_byte_size < 21_000
    loaded = load_dataset(str(tmp_path / "cut/1.0"), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == pq.read_table(tmp_path / "whole/1.0/data/sft")["id"].to_pylist()


def test_many_rows_are_sorted_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = traces(1000)
    expected = write(tmp_path / "memory" / "1.0", rows)
    monkeypatch.setattr(release, "_RUN_BYTES", 10_000)
    spilled: list[Path] = []
    spill = release._spilled
    monkeypatch.setattr(release, "_spilled", lambda run, path: (spilled.append(path), spill(run, path))[1])
    assert write(tmp_path / "disk" / "1.0", rows).configs == expected.configs
    assert len(spilled) > 3
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["1.0"]


def test_parquet_settings(tmp_path: Path) -> None:
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
    assert loaded.features.arrow_schema.remove_metadata() == VIEWS.get(view).schema
    by_id = {trace.id: trace for trace in rows}
    for row in loaded:
        assert row == VIEWS.get(view).rows(by_id[row["id"]])


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
                    id=f"{name}-{number}",
                    problem=Problem.make(question=row["problem"], answer=str(row["gold"]), verifier="math"),
                    model=row["model"],
                    reasoning=row["thinking"] or "",
                    answer_text=row["response"],
                    thinking=Thinking.CLOSED if row["thinking"] else Thinking.NONE,
                )
            )
    return made


def test_real_traces_come_back_as_they_were(tmp_path: Path) -> None:
    rows = real_traces()
    refused: list[str] = []
    configs = {
        name: tables(VIEWS.get(name), rows, lambda _, error: refused.append(error.reason)) for name in ("chat", "raw")
    }
    write_release(tmp_path / "1.0", name="mix", version="1.0", configs=configs, card=CARD, stages={})
    chat = load_dataset(str(tmp_path / "1.0"), "chat", split="train", cache_dir=str(tmp_path / "cache"))
    raw = load_dataset(str(tmp_path / "1.0"), "raw", split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["id"]: (row["reasoning"], row["answer_text"]) for row in raw} == {
        trace.id: (trace.reasoning, trace.answer_text) for trace in rows
    }
    assert chat.num_rows + len(refused) == len(rows)
    assert set(refused) <= {"answer_empty", "think_tag_inside"}
    answers = {trace.id: trace.answer_text for trace in rows}
    assert all(row["messages"][-1]["content"] == answers[row["id"]] for row in chat)


def test_a_view_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no row is left for the view 'sft'"):
        write(tmp_path / "1.0", [])
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"]})
    with pytest.raises(ValueError, match="schema of the view"):
        write_release(tmp_path / "1", name="m", version="1", configs={"sft": [table]}, card=CARD, stages={})


def test_the_digest_of_known_rows_stays(tmp_path: Path) -> None:
    """A change here changes what every published version is compared with."""
    trace = Trace(id="t", problem=Problem(id="p", question="1+1?", answer="2", verifier="math"), answer_text="2 é")
    manifest = write(tmp_path / "1.0", [trace], views=["sft"])
    expected = {
        "id": "t",
        "problem_id": "p",
        "style": "",
        "teacher": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "prompt": [{"role": "user", "content": "1+1?"}],
        "completion": [{"role": "assistant", "content": "2 é"}],
    }
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifest.configs["sft"].digest == digest_all([text])
    assert manifest.content == "c517f4de5599fb541062f3306112dc4d9a64f1b905df88113ffe75b3363c0c4d"
