"""How many files a run makes, and what `check` and `plan` say when `run: {shards: N}` makes very many."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tracefactory.cli import app
from tracefactory.config import load_pipeline
from tracefactory.engine.file_count import MANY_FILES, many_files, stage_files
from tracefactory.engine.sources import shards_for
from tracefactory.store.garbage import plan_of

ARCHIVE = Path(__file__).parents[1] / "e2e" / "stored" / "project-0.2.tar.xz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "v2"


def test_the_files_of_stages_are_those_that_a_run_left(root: Path) -> None:
    state = root / ".tracefactory"
    for name, run in (("sums", "20261121-161117-455996-sums"), ("wide", "20261121-161127-331191-wide")):
        planned = plan_of(state, run)
        assert planned is not None
        made = sum(len(list((state / "stages" / folder).iterdir())) for folder in planned.stages.values())
        # Both have 2 shards, because they have one source.
        assert made == stage_files(load_pipeline(root / "pipelines" / f"{name}.yaml"), 2), name


@pytest.mark.parametrize("problems", [10**6, 10**9])
def test_seven_stages_over_any_number_of_problems_have_a_few_thousand_files(root: Path, problems: int) -> None:
    file = root / "pipelines" / "sums.yaml"
    lines = [line for line in file.read_text().splitlines() if "id: judged" not in line]
    file.write_text("\n".join(lines) + "\n")
    pipeline = load_pipeline(file)
    assert len(pipeline.stages) == 7
    assert stage_files(pipeline, shards_for(problems)) <= 2_500


def test_shards_that_make_very_many_files_are_told(root: Path) -> None:
    file = root / "pipelines" / "sums.yaml"
    text = file.read_text()
    assert many_files(load_pipeline(file)) == ""
    file.write_text(text.replace("shards: 2", "shards: 1024"))
    assert stage_files(load_pipeline(file), 1024) < MANY_FILES
    assert "makes" not in CliRunner().invoke(app, ["check", str(file)]).output
    file.write_text(text.replace("shards: 2", "shards: 4096"))
    for command in ("check", "plan"):
        told = " ".join(CliRunner().invoke(app, [command, str(file)]).output.split())
        assert "`run: {shards: 4096}` makes 36,890 files" in told
        assert "at most 2,330" in told
