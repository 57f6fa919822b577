"""The contrast of an expert and an amateur, against values worked by hand from the paper's definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.stages.conftest import RunStages, run_stages  # noqa: F401
from tests.unit.stages.test_measure import PUPIL
from tests.unit.students.test_measures import scores
from tracefactory.core.errors import UserError
from tracefactory.students.contrast import (
    Contrast,
    ContrastParams,
    contrast_columns,
    contrast_key,
    contrast_measures,
    contrast_of,
)
from tracefactory.students.over import Over
from tracefactory.students.student import Student

torch = pytest.importorskip("torch")

EXPERT = [[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]]
AMATEUR = [[0.2, 0.3, 0.5], [0.5, 0.25, 0.25]]


def contrast(support: float, tokens: list[int]) -> tuple[list[float], list[float]]:
    logits = (torch.tensor(p).log() + 3.0 for p in (EXPERT, AMATEUR))  # logits are logarithms plus any constant
    divergence, weight = contrast_of(*logits, torch.tensor(tokens), support)
    return divergence.tolist(), weight.exp().tolist()


def test_divergence_and_label_worked_by_hand() -> None:
    # KL = 0.6 ln(0.6 / 0.2) + 0.3 ln(0.3 / 0.3) + 0.1 ln(0.1 / 0.5) = 0.6 ln 3 - 0.1 ln 5, and 0 for equal ones
    kl = 0.6 * math.log(3) - 0.1 * math.log(5)
    # Support 0.2: tokens with P_E >= 0.2 * 0.6 = 0.12 are the first two. Their label is P_E / P_A = 3 and 1, over 4.
    divergence, weight = contrast(0.2, [0, 1])
    assert divergence == pytest.approx([kl, 0.0], abs=1e-6)
    assert weight == pytest.approx([3 / 4, 1 / 3])  # at the second position all three ratios are 1
    assert contrast(0.2, [1, 0])[1] == pytest.approx([1 / 4, 1 / 3])
    assert contrast(0.2, [2, 2])[1] == pytest.approx([0.0, 1 / 3])  # 0.1 < 0.12: outside of the support
    # Support 0: all tokens, with the ratios 3, 1 and 1/5.
    assert contrast(0.0, [0, 0])[1] == pytest.approx([3 / 4.2, 1 / 3])
    assert contrast(1.0, [0, 0])[1] == pytest.approx([1.0, 1.0])  # the likeliest token alone


def test_measures_are_over_the_tokens_at_or_above_the_cut_off() -> None:
    found = replace(
        scores([0.75, 1.0, 0.25, 0.5]), entropies=np.array([0.4, 0.1, 0.9, 0.2], dtype=np.float32)
    )  # weights and divergences
    params = ContrastParams(amateur="small", kl=0.4)
    assert contrast_measures(found, params) == pytest.approx(
        {"contrast_kl": 0.4, "contrast_share_kl0.4": 0.5, "contrast_agreement_kl0.4": 0.5}
    )
    none = contrast_measures(found, ContrastParams(amateur="small", kl=2.0))
    assert none == pytest.approx({"contrast_kl": 0.4, "contrast_share_kl2": 0.0})
    names = {one.name for one in contrast_columns("s", params, Over.TEXT)}
    assert names == {f"s/{name}" for name in contrast_measures(found, params)}


def test_only_the_support_is_in_the_key_of_stored_scores() -> None:
    keys = [contrast_key("e", "a", ContrastParams(amateur="m", **more)) for more in ({}, {"kl": 1}, {"support": 0.1})]
    assert keys[0] == keys[1] != keys[2]


class Doubled(Student):
    """A student whose logits are another's times two: the same order of tokens, at half the temperature."""

    def __init__(self, student: Student) -> None:
        self.__dict__.update(student.__dict__)

    def logits(self, states: Any) -> Any:
        return 2.0 * super().logits(states)


def test_a_real_trace_is_scored_against_itself_and_against_a_surer_model(smollm: Student) -> None:
    rendered = smollm.render("What is half of 84?", "Half of 84 is 42.", "It is 42.")
    params = ContrastParams(amateur="small")
    [same] = Contrast(smollm, smollm, params).score([rendered])
    assert np.allclose(same.entropies, 0, atol=1e-4)
    [other] = Contrast(Doubled(smollm), smollm, params).score([rendered])
    assert (other.entropies > 0).all()
    assert (other.logprobs <= 1e-6).all()
    assert np.array_equal(other.token_ids, rendered.ids[rendered.first : rendered.stop])


STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 1}}
  - {id: fitted, measure: student, with: {student: pupil, contrast: {amateur: AMATEUR, kl: KL}}}
"""
SMALL = PUPIL + PUPIL.replace("pupil", "small")


@pytest.mark.slow
async def test_a_stage_files_the_contrast_and_stores_it(run_stages: RunStages) -> None:  # noqa: F811
    problems = '{"q": "What is 1 + 3?", "a": "4"}\n'
    for kl, scored_now in (("0.4", 2.0), ("0", 0.0)):  # the student's own scores and the pair's
        stages = STAGES.replace("AMATEUR", "small").replace("KL", kl)
        made = await run_stages(stages, problems, more_models=SMALL, teacher={})
        (trace,) = made.traces("fitted")
        assert made.stage("fitted").tally.numbers == {"scored": 1.0, "scored_now": scored_now}
        assert trace.measures["pupil/contrast_kl"] == pytest.approx(0, abs=1e-4)  # the same weights twice
        assert f"pupil/contrast_share_kl{kl}" in trace.measures
    with pytest.raises(UserError, match=r"t.yaml:\d+: .*contrast: 'teacher' is `use: openai`.*`use: transformers`"):
        await run_stages(
            STAGES.replace("AMATEUR", "teacher").replace("KL", "1"), problems, more_models=SMALL, teacher={}
        )


def test_models_of_two_vocabularies_are_refused() -> None:
    one, other = (
        SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda names=names: dict.fromkeys(names, 0)))
        for names in ("ab", "ac")
    )
    with pytest.raises(UserError, match=r"another vocabulary.*of the same family"):
        Contrast(one, other, ContrastParams(amateur="small"))  # type: ignore[arg-type]
