"""Every shipped file loads, and the counts are asserted, so that none is skipped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.config import check_project, load_pipeline
from tracefactory.config.project import find_project, pipeline_files
from tracefactory.filters import load_filters
from tracefactory.text.prompts import load_prompts

ROOT = Path(__file__).parents[2]
PROJECT = find_project(ROOT)


def test_the_project_checks() -> None:
    assert check_project(PROJECT) == []


def test_every_prompt_and_filter_is_loaded() -> None:
    assert sorted(load_prompts(PROJECT.prompts)) == sorted(file.stem for file in PROJECT.prompts.iterdir())
    assert len(load_prompts(PROJECT.prompts)) >= 9
    assert not [one.name for one in load_prompts(PROJECT.prompts).values() if not one.description]
    files = [file.stem for file in PROJECT.filters.iterdir() if file.name != "__pycache__"]
    assert sorted(load_filters(PROJECT.filters)) == sorted(files)
    assert len(files) >= 10


def test_every_filter_says_what_it_drops_for() -> None:
    for one in load_filters(PROJECT.filters).values():
        assert one.doc, one.name
        assert one.reasons, one.name


@pytest.mark.parametrize("file", pipeline_files(PROJECT), ids=lambda file: file.stem)
def test_a_pipeline_says_what_it_makes_what_it_costs_and_its_command(file: Path) -> None:
    header = file.read_text().split("\nname:")[0]
    for word in ("Makes", "Costs", "Command", f"tracefactory run pipelines/{file.name}"):
        assert word in header, f"{file.name}: the header comment does not say {word!r}"


def test_the_main_job_needs_no_key_no_download_and_no_gpu() -> None:
    pipeline = load_pipeline(ROOT / "pipelines" / "mix_distill.yaml", environ={})
    used = {name for stage in pipeline.stages for name in stage.model_names}
    assert {pipeline.models[name].use for name in used} == {"local"}
    assert all(str(spec.model).startswith("packaged:") for spec in pipeline.models.values())
