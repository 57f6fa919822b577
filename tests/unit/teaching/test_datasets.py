"""The datasets of a comparison: rows of releases, and controls that differ from them in one way alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import TOKEN, HubServer
from tests.unit.teaching.conftest import ROWS, row
from tracefactory.core.errors import UserError
from tracefactory.core.teach import Teach
from tracefactory.students.render import Renderer
from tracefactory.teaching.datasets import datasets_of, means, truncated
from tracefactory.teaching.encoding import IGNORED, encode_rows
from tracefactory.teaching.hub import release_folder
from tracefactory.teaching.rows import TrainingRow, drawn, read_measures, read_rows, shuffled

CONFIG = {"view_version": "1", "rows": 1, "digest": "d"}


def release(folder: Path, rows: Sequence[TrainingRow], view: str = "messages", **measures: float) -> Path:
    """Write a release of one view, as far as a comparison reads it."""
    tracked = {"prompt_tokens": 1, "completion_tokens": 1, "teacher": "t"}
    lines = []
    for one in rows:
        line: dict[str, Any] = {"id": one.id, "problem_id": one.problem_id, "style": one.style, **tracked}
        turns = [dict(message) for message in (*one.before, one.last)]
        parts = {"prompt": turns[:-1], "completion": turns[-1:]} if view == "sft" else {"messages": turns}
        lines.append(line | parts)
    raw = [{"id": one.id, "measures": measures} for one in rows]
    files = []
    for name, content in ((view, lines), *([("raw", raw)] if measures else [])):
        path = folder / "data" / name / "train-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(content), path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append({"path": f"data/{name}/train-00000.parquet", "sha256": sha256, "bytes": path.stat().st_size})
    manifest = {
        "name": folder.name,
        "version": "1",
        "content": f"content of {folder.name}",
        "licence": None,
        "tracefactory": "0.2.0",
        "created": "2026-01-01T00:00:00",
        "configs": {view: CONFIG},
        "files": files,
        "stages": {},
        "models": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def teach(**named: Any) -> Teach:
    return Teach.model_validate({"student": "s", "answers": "a", "tokens": 100, **named})


@pytest.mark.parametrize("view", ["messages", "sft"])
def test_rows_of_a_release_are_read_with_their_digests(tmp_path: Path, view: str) -> None:
    folder = release(tmp_path / "r", ROWS, view, pass_rate=0.5)
    assert read_rows(folder) == sorted(ROWS, key=lambda one: one.id)
    assert read_measures(folder)["row1"] == {"pass_rate": 0.5}
    with pytest.raises(UserError, match="no row of style 'long'"):
        read_rows(folder, style="long")
    with pytest.raises(UserError, match="no view 'chat'"):
        read_rows(folder, view="chat")
    file = folder / f"data/{view}/train-00000.parquet"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match="was changed"):
        read_rows(folder)


def test_rows_at_random_do_not_depend_on_the_order_of_the_input() -> None:
    assert drawn(ROWS, 4) == drawn(ROWS[::-1], 4)
    assert drawn(ROWS, 4) != drawn(ROWS, 4, seed=1)
    assert len(drawn(ROWS, 100)) == len(ROWS)


@pytest.mark.parametrize("rows", [ROWS, [row(0), row(2)], [row(0), row(1), row(2)], [*ROWS, row(40), row(41)]])
def test_a_shuffled_target_is_never_under_a_question_of_its_problem(rows: list[TrainingRow]) -> None:
    rows = [replace(one, last={**one.last, "of": one.problem_id}) for one in rows]
    made = shuffled(rows)
    assert made == shuffled(rows[::-1])
    assert {one.id for one in made} <= {one.id for one in rows}
    assert all(one.last["of"] != one.problem_id for one in made)
    most = max(sum(one.problem_id == problem for one in rows) for problem in {one.problem_id for one in rows})
    assert len(made) >= min(len(rows), 2 * (len(rows) - most))


def test_targets_of_one_problem_cannot_be_shuffled() -> None:
    with pytest.raises(UserError, match="all rows are about one problem"):
        shuffled([row(0), row(1)])
    with pytest.raises(UserError, match="all rows are about one problem"):
        shuffled([])


def test_a_truncated_target_keeps_the_first_tokens_of_the_loss_and_counts_what_it_lost(renderer: Renderer) -> None:
    whole = encode_rows(ROWS, renderer, 128)
    half = truncated(whole, 0.5)
    for before, after in zip(whole.table.to_pylist(), half.table.to_pylist(), strict=True):
        kept = [token for token in after["labels"] if token != IGNORED]
        assert kept == [token for token in before["labels"] if token != IGNORED][: len(kept)]
        assert after["tokens"] == len(kept) == round(0.5 * before["tokens"])
        assert after["input_ids"] == before["input_ids"][: len(after["input_ids"])]
        assert after["labels"][-1] != IGNORED
        assert (after["cut"], after["answer_lost"]) == (True, True)
    assert truncated(whole, 1e-9).tokens == len(ROWS)  # a token each
    assert truncated(whole, 1.0).table["tokens"].equals(whole.table["tokens"])
    assert (truncated(whole, 1.0).cut, truncated(whole, 1.0).answers_lost) == (0, 0)


def test_the_controls_are_made_of_the_datasets_of_the_file(tmp_path: Path, renderer: Renderer) -> None:
    long = [TrainingRow(f"long{n}", f"problem{n}", "long", row(n).before, row(n, "one " * 30).last) for n in range(9)]
    release(tmp_path / "short", ROWS, pass_rate=0.5)
    release(tmp_path / "long", long, pass_rate=0.25)
    found = datasets_of(
        teach(arms={"short": {"release": "short"}, "long": {"release": "long"}}), tmp_path, tmp_path, renderer
    )
    assert list(found) == ["short", "long", "truncated", "random", "shuffled"]
    assert found["short"].release == "content of short"
    assert abs(found["truncated"].mean_tokens - found["short"].mean_tokens) < 1
    assert "of each target of long" in found["truncated"].about
    assert len(found["random"].rows) == len(ROWS)
    assert {one.style for one in found["random"].rows} == {"short", "long"}
    assert len(found["shuffled"].rows) == len(ROWS)
    assert found["short"].measures == {"pass_rate": 0.5}
    assert 0.25 < found["random"].measures["pass_rate"] < 0.5
    assert found["shuffled"].measures == found["truncated"].measures == {}


def test_random_rows_of_one_dataset_are_no_control(tmp_path: Path, renderer: Renderer) -> None:
    release(tmp_path / "short", ROWS)
    found = datasets_of(teach(arms={"short": {"release": "short"}}), tmp_path, tmp_path, renderer)
    assert list(found) == ["short", "truncated", "shuffled"]
    assert "first 50%" in found["truncated"].about


def test_arms_are_made_of_each_other(tmp_path: Path, renderer: Renderer) -> None:
    release(tmp_path / "r", ROWS)
    arms = {
        "few": {"random": "all", "like": "half"},
        "cut": {"truncate": "all", "share": 0.25},
        "half": {"random": "all", "like": "all"},
        "other": {"shuffle": "all"},
        "all": {"release": "r"},
    }
    found = datasets_of(teach(arms=arms, controls=[]), tmp_path, tmp_path, renderer)
    assert list(found) == list(arms)
    assert found["cut"].mean_tokens == pytest.approx(found["all"].mean_tokens / 4, abs=1)


def test_a_template_that_refuses_many_rows_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    broken = [row(n, answer="<|im_end|>") for n in range(9)]
    release(tmp_path / "r", broken)
    with pytest.raises(UserError, match=r"all: 9 of 9 rows cannot be trained on \(control_token_inside 9\)"):
        datasets_of(teach(arms={"all": {"release": "r"}}), tmp_path, tmp_path, renderer)


def test_measures_that_most_rows_lack_are_left_out() -> None:
    measured = {"row0": {"a": 1.0, "b": float("nan")}, "row1": {"a": 3.0}, "row2": {"c": 1.0}}
    assert means(measured, [row(0), row(1), row(2)]) == {"a": 2.0}
    assert means({}, []) == {}


@pytest.mark.filterwarnings("default:Use 'content")
def test_a_release_is_a_folder_or_a_tag_of_the_hub(
    tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    made = release(tmp_path / "r", ROWS)
    assert release_folder("r", tmp_path, tmp_path / "cache") == made
    with pytest.raises(UserError, match="there is no release here"):
        release_folder("data", tmp_path, tmp_path / "cache")
    api = HfApi(endpoint=server.url, token=TOKEN)
    api.create_repo("org/sums", repo_type="dataset")
    api.upload_folder(repo_id="org/sums", repo_type="dataset", folder_path=made)
    api.create_tag("org/sums", tag="1", repo_type="dataset")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    fetched = release_folder("org/sums@1", tmp_path, tmp_path / "cache")
    assert read_rows(fetched) == read_rows(made)
    with pytest.raises(UserError, match="no such repository or tag"):
        release_folder("org/sums@2", tmp_path, tmp_path / "cache")
