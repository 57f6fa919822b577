"""Every shipped file loads, and the counts are asserted, so that none is skipped in silence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tracefactory.config import check_project, load_pipeline
from tracefactory.config.project import find_project, pipeline_files
from tracefactory.core.stage import stage_of
from tracefactory.engine.plan import make_plan
from tracefactory.filters import load_filters
from tracefactory.models import vllm
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
    header, _, rest = file.read_text().partition("\nname:")
    command = "teach" if "\nteach:" in rest else "run"
    for word in ("Makes", "Costs", "Command", f"tracefactory {command} pipelines/{file.name}"):
        assert word in header, f"{file.name}: the header comment does not say {word!r}"


def test_the_main_job_needs_no_key_no_download_and_no_gpu() -> None:
    pipeline = load_pipeline(ROOT / "pipelines" / "mix_distill.yaml", environ={})
    used = {name for stage in pipeline.stages for name in stage.model_names}
    assert {pipeline.models[name].use for name in used} == {"local"}
    assert all(str(spec.model).startswith("packaged:") for spec in pipeline.models.values())


@pytest.mark.parametrize(
    ("name", "teachers", "shares"),
    [
        ("mix_long", {"Qwen/QwQ-32B-Preview", "Qwen/Qwen2.5-32B-Instruct"}, {"long": 0.2, "short": 0.8}),
        (
            "mix_large",
            {"Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-3B-Instruct"},
            {"large_teacher": 0.2, "small_teacher": 0.8},
        ),
    ],
)
def test_the_mixes_of_the_paper_are_its_teachers_problems_and_shares(
    name: str, teachers: set[str], shares: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mix Distillation, arXiv 2502.12143: what its released data sets say."""
    monkeypatch.setattr(vllm, "_has_vllm", lambda python: True)
    file = ROOT / "pipelines" / f"{name}.yaml"
    pipeline = load_pipeline(file, environ={"TRACEFACTORY_VLLM": sys.executable})
    assert {str(model.model) for model in pipeline.models.values()} == teachers
    source = pipeline.stage("problems")
    assert (source.op, source.params.split, source.params.answer_from) == ("source:hub_dataset", "train", "boxed")
    mixed = pipeline.stage("mixed")
    assert dict(stage_of(mixed).facts(mixed, {}).shares) == shares
    assert all(stage.params.samples == 1 for stage in pipeline.stages if stage.verb == "sample")
    plan = make_plan(pipeline, pipeline.project.state_dir)  # offline: it cannot say how many problems there are
    assert [stage.id for stage in plan.stages] == [stage.id for stage in pipeline.stages]
    assert plan.stages[1].to_pay is None
    laptop = load_pipeline(file, profile="laptop", environ={})
    assert {str(model.model) for model in laptop.models.values()} == {"packaged:smollm2-135m"}


def test_efficient_long_cot_publishes_its_pairs_and_its_raw_traces() -> None:
    pipeline = load_pipeline(ROOT / "pipelines" / "efficient_long_cot.yaml", profile="laptop", environ={})
    pruned, raw = (pipeline.stage(name).params for name in ("dataset", "raw"))
    assert {"preference", "ranking"} < set(pruned.views)
    assert (pruned.sft_weight, raw.name) == (0.3, "efficient-long-cot-raw")
