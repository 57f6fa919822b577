"""Compare teacher and student by the log-probabilities that each gives to the sampled tokens of a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.token_scores import Ints, Span, TokenScores
from tracefactory.students.steps import token_ranges


@dataclass(frozen=True, eq=False)
class TeacherScores:
    """The teacher's log-probability of each sampled token, and the token's characters in the body."""

    logprobs: NDArray[np.float64]
    starts: Ints
    ends: Ints


@dataclass(frozen=True)
class SentenceDivergence:
    """One sentence under both models: summed log-probabilities (nats) and counts of each model's own tokens."""

    start: int
    end: int
    teacher_logprob: float
    teacher_tokens: int
    student_logprob: float
    student_tokens: int

    @property
    def log_ratio(self) -> float:
        """ln(p_teacher / p_student), where p is the geometric mean of a model's token probabilities.

        It is positive when the sentence is more probable for the teacher.
        """
        return self.teacher_logprob / self.teacher_tokens - self.student_logprob / self.student_tokens


def align_teacher(tokens: Sequence[bytes], logprobs: Sequence[float], body: str) -> TeacherScores:
    """Align the teacher's sampled tokens with the trace's reasoning, or its answer when it has no reasoning.

    Args:
        tokens: the bytes of the completion's tokens as the server reported them, in order.
        logprobs: the log-probability of each token.
        body: the text to align with; tokens outside it (thinking tags, the answer) are skipped.

    Returns:
        The tokens that overlap `body`, with their characters in it.

    Raises:
        ValueError: when `body` does not occur exactly once in the tokens, so that they cannot be aligned: for a derived
            trace, a server that changes its text, or token texts that are not the sampled bytes.
    """
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(tokens)} teacher tokens, but {len(logprobs)} log-probabilities")
    whole, wanted = b"".join(tokens), body.encode("utf-8")
    if not wanted or whole.count(wanted) != 1:
        times = whole.count(wanted) if wanted else 0
        raise ValueError(f"the text occurs {times} times in the teacher's tokens; it must occur once")
    first = whole.index(wanted)
    # the number of characters up to each byte; UTF-8 continuation bytes do not start a character
    octets = np.frombuffer(whole, dtype=np.uint8)
    characters = np.concatenate([[0], np.cumsum((octets & 0xC0) != 0x80)])
    borders = np.cumsum([0, *(len(token) for token in tokens)])
    starts, ends = borders[:-1], borders[1:]
    inside = (ends > first) & (starts < first + len(wanted))
    return TeacherScores(
        logprobs=np.asarray(logprobs, dtype=np.float64)[inside],
        starts=(characters[starts[inside]] - characters[first]).astype(np.int32),
        ends=(characters[ends[inside]] - characters[first]).astype(np.int32),
    )


def sentence_divergence(
    student: TokenScores, teacher: TeacherScores, sentences: Sequence[Span]
) -> list[SentenceDivergence]:
    """Compare teacher and student sentence by sentence (divergence-aware sampling, DASD-4B-Thinking report, 2026).

    The score of a sentence is the geometric mean of its token probabilities under each model. It uses only the
    probabilities of the sampled tokens and needs no shared vocabulary, because each model counts its own tokens.

    Args:
        student: the student's token scores of the trace.
        teacher: the teacher's, from `align_teacher`.
        sentences: character ranges of the trace's body, as in `step_curves`.

    Returns:
        The sentences in which both models have a token, in order.
    """
    found = []
    teacher_ranges = token_ranges(teacher.starts, teacher.ends, sentences)
    student_ranges = token_ranges(student.starts - student.body_start, student.ends - student.body_start, sentences)
    for (start, end), (a, b), (c, d) in zip(sentences, teacher_ranges, student_ranges, strict=True):
        if a < b and c < d:
            teacher_sum = float(teacher.logprobs[a:b].sum())
            student_sum = float(student.logprobs[c:d].sum(dtype=np.float64))
            found.append(SentenceDivergence(start, end, teacher_sum, b - a, student_sum, d - c))
    return found


def teacher_sentence_share(sentences: Sequence[SentenceDivergence], ratio: float = 2.0) -> float:
    """Return the share of teacher sentences: those with a ratio of at least `ratio` per token.

    The DASD report prefers responses with many sentences whose p_teacher is far above p_student, but does not give its
    threshold; `ratio` is our parameter.

    Raises:
        ValueError: when there are no sentences.
    """
    if not sentences:
        raise ValueError("no sentences to compare")
    return float(np.mean([sentence.log_ratio >= math.log(ratio) for sentence in sentences]))
