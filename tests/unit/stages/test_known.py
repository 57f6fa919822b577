"""A filter or a selection by a measure that no trace will have is refused where it is written, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.config import load_pipeline
from tracefactory.core.columns import VERDICT
from tracefactory.core.errors import UserError
from tracefactory.core.tables import Table, schema_of
from tracefactory.filters import load_filters
from tracefactory.stages.measure.student import MeasureStudentParams
from tracefactory.students.measures import MeasureParams, measure_names

ROOT = Path(__file__).parents[3]
HEAD = """\
name: t
version: "1"
models:
  teacher: {use: fake}
  pupil: {use: transformers, model: "packaged:smollm2-135m"}
  other: {use: transformers, model: "packaged:smollm2-135m"}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long}}
"""
CHECKED = "  - {id: checked, verify: auto}\n"
FITTED = "  - {id: fitted, measure: student, with: {student: pupil, window: 3}}\n"
BOTH = CHECKED + FITTED


@pytest.fixture
def told(tmp_path: Path):  # type: ignore[no-untyped-def]
    for shipped in ("prompts", "filters"):
        (tmp_path / shipped).symlink_to(ROOT / shipped)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "problems.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')

    def load(stages: str, head: str = HEAD) -> list[str]:
        file = tmp_path / "pipelines" / "t.yaml"
        file.write_text(head + stages)
        try:
            load_pipeline(file)
        except UserError as error:
            return [str(mistake).replace(f"{tmp_path}/", "") for mistake in error.mistakes]
        return []

    return load


@pytest.mark.parametrize(
    "stages",
    [
        BOTH + "  - {id: clean, filter: [rank_surprisal: {student: pupil, max: 5}]}",
        BOTH + "  - {id: clean, filter: [local_naturalness: {student: pupil, window: 3, max: 5}]}",
        BOTH + "  - {id: clean, filter: [pass_rate: {max: 0.9}, pass_rate: {model: teacher, min: 0.1}]}",
        BOTH + "  - {id: cut, prune: after_answer, with: {check: answer}}\n"
        "  - {id: clean, filter: [student_tokens: {student: pupil, max: 5}]}",
        BOTH + "  - {id: best, select: best, with: {measure: pupil/p_q0.05, best: highest}}",
        BOTH + "  - {id: cut, prune: after_answer, with: {check: answer}}\n"
        "  - {id: best, select: best, with: {measure: prune_kept_share, best: lowest}}",
    ],
)
def test_what_a_stage_above_measures_can_be_decided_on(told, stages: str) -> None:  # type: ignore[no-untyped-def]
    assert told(stages) == []


@pytest.mark.parametrize(
    ("stages", "line", "message"),
    [
        (
            BOTH + "  - id: clean\n    filter:\n      - verdict\n      - rank_surprisal: {student: pupl, max: 5}",
            15,
            "stage 'clean': filter 'rank_surprisal': there is no model 'pupl' (did you mean 'pupil'?)",
        ),
        (
            BOTH + "  - {id: clean, filter: [student_surprise: {student: other, max: 5}]}",
            12,
            "stage 'clean': filter 'student_surprise': no stage above measures 'mean_surprisal' of 'other' "
            "(measured are: pupil)",
        ),
        (
            CHECKED + "  - {id: clean, filter: [student_surprise: {student: pupil, max: 5}]}\n" + FITTED,
            11,
            "stage 'clean': filter 'student_surprise': no stage above measures 'mean_surprisal' of 'pupil' "
            "(a `measure:` or `verify:` stage before it does)",
        ),
        (
            BOTH + "  - {id: clean, filter: [local_naturalness: {student: pupil, max: 5}]}",
            12,
            "stage 'clean': filter 'local_naturalness': no stage above measures 'pupil/local_naturalness_w4' "
            "(did you mean 'pupil/local_naturalness_w3'?)",
        ),
        (
            BOTH + "  - {id: clean, filter: [reverse_speculative: {student: pupil, top_k: 10}]}",
            12,
            "stage 'clean': filter 'reverse_speculative': no stage above measures 'pupil/acceptance_p0.01_top10' "
            "(did you mean 'pupil/acceptance_p0.01_top20'?)",
        ),
        (
            FITTED + "  - {id: clean, filter: [pass_rate: {max: 0.9}]}",
            11,
            "stage 'clean': filter 'pass_rate': no stage above measures 'pass_rate' (`verify:` does)",
        ),
        (
            BOTH + "  - {id: clean, filter: [pass_rate: {model: pupil, max: 0.9}]}",
            12,
            "stage 'clean': filter 'pass_rate': no stage above measures 'pass_rate' of 'pupil' (measured are: teacher)",
        ),
        (
            BOTH + "  - {id: best, select: best, with: {measure: pupil/rank_suprisal, best: lowest}}",
            12,
            "stage 'best': measure: no stage above measures 'pupil/rank_suprisal' "
            "(did you mean 'pupil/rank_surprisal'?)",
        ),
        (
            BOTH + "  - {id: best, select: best, with: {measure: rank_surprisal, best: lowest}}",
            12,
            "stage 'best': measure: no stage above measures 'rank_surprisal' (did you mean 'pupil/rank_surprisal'?)",
        ),
    ],
)
def test_a_measure_that_no_trace_will_have_is_refused_where_it_is_written(  # type: ignore[no-untyped-def]
    told, stages: str, line: int, message: str
) -> None:
    assert told(stages) == [f"pipelines/t.yaml:{line}: {message}"]


def test_a_mistake_above_is_told_once(told) -> None:  # type: ignore[no-untyped-def]
    broken = CHECKED + FITTED.replace("pupil", "pupl")
    (only,) = told(broken + "  - {id: clean, filter: [rank_surprisal: {student: pupil, max: 5}]}")
    assert "unknown model 'pupl'" in only


def test_every_shipped_filter_reads_columns_that_rows_can_have() -> None:
    """What a filter looks at is a column of the rows themselves, or a measure that a stage can file."""
    measured = {f"s/{name}" for name in measure_names(MeasureParams(), entropies=True)}
    measured |= {"s/local_naturalness_w4", "pass_rate", "s/any"}
    assert MeasureStudentParams.model_fields["measures"].default == MeasureParams()
    reading = set()
    for name, one in load_filters(ROOT / "filters").items():
        fields = one.params_model.model_fields
        given = {"student": "s", "column": "s/any"} | {field: 1 for field in fields if field.startswith("max")}
        params = one.params_model.model_construct(**{field: given[field] for field in fields if field in given})
        found = set(params.reads_measures())
        if one.on_columns:
            expressions = [part for rule in one.rules(params) for part in (rule.when, rule.detail)]
            found = {column for part in expressions for column in part.meta.root_names()}
            assert found, name
        else:
            assert bool(found) == ("trace.measures" in one.source), name
        found -= {*schema_of(Table.TRACES).names, VERDICT.name}
        assert found <= measured, name
        if found:
            reading.add(name)
    of_students = {"local_naturalness", "rank_surprisal", "reverse_speculative", "student_surprise", "student_tokens"}
    assert reading == {*of_students, "pass_rate", "band"}


def test_a_divergence_from_teachers_that_report_nothing_is_refused(told) -> None:  # type: ignore[no-untyped-def]
    against = FITTED.replace("window: 3", "divergence: {}")
    (only,) = told(CHECKED + against)
    assert only.startswith(
        "pipelines/t.yaml:11: stage 'fitted': divergence: no stage above samples with `logprobs: true`"
    )
    spoken = HEAD.replace("prompt: math_long", "prompt: math_long, logprobs: true")
    assert spoken != HEAD
    best = "  - {id: best, select: best, with: {measure: pupil/teacher_sentences_r2, best: highest}}"
    assert told(CHECKED + against + best, spoken) == []


def test_steps_are_measured_where_they_are_asked_for(told) -> None:  # type: ignore[no-untyped-def]
    best = "  - {id: best, select: best, with: {measure: pupil/steps, best: lowest}}"
    with_steps = CHECKED + FITTED.replace("window: 3", "steps: sentence")
    assert told(with_steps + best) == []
    (only,) = told(CHECKED + FITTED + best)
    assert "no stage above measures 'pupil/steps'" in only
