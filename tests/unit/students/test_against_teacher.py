from __future__ import annotations

import math

import numpy as np
import pytest

from tracefactory.core.rows import Parent, ParentRole
from tracefactory.core.token_scores import TokenScores
from tracefactory.serving.logprobs import packed
from tracefactory.students.against_teacher import DivergenceParams, divergence_measures, stored_logprobs
from tracefactory.testing import make_trace

BODY = "Half of 84 is 42. So the answer is 42. That is all."
PARAMS = DivergenceParams()


def student(ps: list[float]) -> TokenScores:
    """One token per character and one p per sentence: another tokenizer than the teacher's words."""
    border = [BODY.index(" So"), BODY.index(" That"), len(BODY)]
    p = [ps[sum(index >= edge for edge in border)] for index in range(len(BODY))]
    places = np.arange(len(BODY), dtype=np.int32)
    return TokenScores(
        token_ids=places,
        starts=places + 8,
        ends=places + 9,
        ranks=places + 1,
        logprobs=np.log(np.array(p)).astype(np.float32),
        entropies=np.zeros(len(BODY), np.float32),
        body_start=8,
    )


def teacher(text: str, p: float) -> str:
    tokens = ["<think>\n", *text.replace(" ", "\x00 ").split("\x00"), "\n</think>\n42"]
    stored = packed({"content": [{"token": token, "logprob": math.log(p)} for token in tokens]})
    assert stored is not None
    return stored


def test_sentences_are_compared_across_tokenizers() -> None:
    found = divergence_measures(make_trace(reasoning=BODY), student([0.5, 0.1, 0.5]), teacher(BODY, 0.5), PARAMS)
    assert isinstance(found, dict)
    assert found["sentences"] == 3
    assert found["teacher_sentences_r2"] == pytest.approx(1 / 3)  # the second alone
    assert found["sentence_log_ratio"] == pytest.approx(math.log(5) / 3, abs=0.1)
    strict = divergence_measures(
        make_trace(reasoning=BODY), student([0.5, 0.1, 0.5]), teacher(BODY, 0.5), DivergenceParams(ratio=10)
    )
    assert isinstance(strict, dict)
    assert strict["teacher_sentences_r10"] == 0


def test_a_trace_without_comparison_has_a_reason() -> None:
    scores, spoken = student([0.5] * 3), teacher(BODY, 0.5)
    derived = make_trace(reasoning=BODY, op="prune", parents=(Parent(id="other", role=ParentRole.PRUNED),))
    assert divergence_measures(derived, scores, spoken, PARAMS) == "derived"
    trace = make_trace(reasoning=BODY)
    assert divergence_measures(trace, scores, None, PARAMS) == "no_teacher_logprobs"
    rewritten = teacher(BODY.replace("Half", "A half"), 0.5)
    assert divergence_measures(trace, scores, rewritten.replace(" of", "of"), PARAMS) == "tokens_spell_another_text"


def test_log_probabilities_come_from_the_stored_completion() -> None:
    assert stored_logprobs(None) is None
    assert stored_logprobs({"completion": {"logprobs": None}}) is None
    damaged = [
        "",
        "x",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '{"text": 1}',
        '{"text": "ab", "lengths": [1], "logprobs": []}',
    ]
    damaged += ['{"text": "a", "lengths": ["x"], "logprobs": [0]}', '{"text": "a", "lengths": [9], "logprobs": [0]}']
    for text in damaged:
        assert stored_logprobs({"completion": {"logprobs": text}}) is None
    assert stored_logprobs({"completion": {"logprobs": teacher("a b", 0.5)}}) == teacher("a b", 0.5)
