"""Measures that compare the stored log-probabilities of teacher and student, sentence by sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.rows import Frozen, Trace
from tracefactory.core.token_scores import TokenScores
from tracefactory.serving.logprobs import unpacked
from tracefactory.students.divergence import align_teacher, sentence_divergence, teacher_sentence_share
from tracefactory.text.steps import Granularity, segment


class DivergenceParams(Frozen):
    """A teacher sentence is at least `ratio` times as probable per token for the teacher as for the student."""

    ratio: float = Field(default=2.0, gt=1, description="How much likelier per token a teacher's sentence is.")


def divergence_names(params: DivergenceParams) -> tuple[str, str, str]:
    """Return the names of the measures: the share of teacher sentences, the mean log ratio, the number of sentences."""
    return f"teacher_sentences_r{params.ratio:g}", "sentence_log_ratio", "sentences"


def divergence_columns(student: str, params: DivergenceParams) -> list[Column]:
    """Return the columns of `divergence_measures` under a student."""
    share, ratio, count = divergence_names(params)
    return [
        Column(
            name=f"{student}/{share}",
            description="Share of sentences that the teacher finds far likelier per token than the student.",
            unit="share",
        ),
        Column(
            name=f"{student}/{ratio}",
            description="Mean over sentences of ln(teacher's mean probability / student's).",
            unit="nats",
        ),
        Column(name=f"{student}/{count}", description="Sentences that were compared.", unit="sentences"),
    ]


def divergence_measures(
    trace: Trace, scores: TokenScores, logprobs: str | None, params: DivergenceParams
) -> dict[str, float] | str:
    """Return the measures of a trace, or the reason why it has none as a snake_case word.

    Teacher and student may have different tokenizers: each sentence is averaged over each model's own tokens
    (DASD-4B-Thinking report, 2026).

    Args:
        trace: the trace.
        scores: the student's token scores of it.
        logprobs: the log-probabilities that the teacher's server reported (see `packed`), None when there are none.
        params: the ratio that makes a sentence a teacher sentence.

    Returns:
        The measures, or the reason: `derived` (the trace was made from another one, so the teacher did not sample its
        text), `no_teacher_logprobs`, `tokens_spell_another_text` (the server changed the sampled text) or
        `no_sentence`.
    """
    if trace.op != "sample" or trace.parents:
        return "derived"
    if logprobs is None:
        return "no_teacher_logprobs"
    body = trace.reasoning or trace.answer_text
    try:
        teacher = align_teacher(*unpacked(logprobs), body)
    except ValueError:
        return "tokens_spell_another_text"
    steps = segment(body, Granularity.SENTENCE)
    sentences = sentence_divergence(scores, teacher, [(step.start, step.end) for step in steps])
    if not sentences:
        return "no_sentence"
    share = teacher_sentence_share(sentences, params.ratio)
    mean = float(np.mean([sentence.log_ratio for sentence in sentences]))
    return dict(zip(divergence_names(params), (share, mean, float(len(sentences))), strict=True))


def stored_logprobs(record: Mapping[str, Any] | None) -> str | None:
    """Return the teacher's log-probabilities of a stored completion, None when it has none in a readable format."""
    logprobs: str | None = record["completion"].get("logprobs") if record else None
    try:
        return logprobs if logprobs is not None and unpacked(logprobs) else None
    except ValueError:
        return None
