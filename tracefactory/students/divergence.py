"""Where teacher and student disagree about a sentence, from the log-probabilities each gave to the sampled tokens."""

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
    """The teacher's log-probability of each token it sampled, and the characters of the body it spells."""

    logprobs: NDArray[np.float64]
    starts: Ints
    ends: Ints


@dataclass(frozen=True)
class SentenceDivergence:
    """One sentence under both models: summed log-probabilities (nats) and token counts, each in its own tokens."""

    start: int
    end: int
    teacher_logprob: float
    teacher_tokens: int
    student_logprob: float
    student_tokens: int

    @property
    def teacher_p(self) -> float:
        """The geometric mean of the teacher's token probabilities."""
        return math.exp(self.teacher_logprob / self.teacher_tokens)

    @property
    def student_p(self) -> float:
        """The geometric mean of the student's token probabilities."""
        return math.exp(self.student_logprob / self.student_tokens)

    @property
    def log_ratio(self) -> float:
        """ln(teacher_p / student_p): positive where the teacher is the surer of the two."""
        return self.teacher_logprob / self.teacher_tokens - self.student_logprob / self.student_tokens


def align_teacher(tokens: Sequence[bytes], logprobs: Sequence[float], body: str) -> TeacherScores:
    """Place the teacher's sampled tokens on `body`: the trace's reasoning, or its answer when it has no reasoning.

    `tokens` are the bytes of the completion's tokens as the server reported them, in order; what they spell outside
    `body` (thinking tags, the answer) is left aside.

    Raises:
        ValueError: when the tokens do not spell `body` exactly once, so that it cannot be said which token is where: a
            derived trace, a server that rewrites its text, or token texts that are not the bytes sampled.
    """
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(tokens)} teacher tokens, but {len(logprobs)} log-probabilities")
    whole, wanted = b"".join(tokens), body.encode("utf-8")
    if not wanted or whole.count(wanted) != 1:
        raise ValueError(f"the teacher's tokens spell the text {whole.count(wanted) if wanted else 0} times, not once")
    first = whole.index(wanted)
    # characters up to and with each byte: UTF-8 continuation bytes begin no character
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

    The score of a sentence is the geometric mean of its token probabilities under each model. It asks only for the
    probabilities of the sampled tokens and needs no shared vocabulary: each model counts its own tokens. Comparing
    token by token would need one, and is not offered. `sentences` are characters of the trace's body, as in
    `step_curves`; one in which either model has no token of its own is left out.
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
    """Return the share of "teacher sentences": those the teacher finds at least `ratio` times as probable per token.

    The DASD report prefers responses rich in sentences with p_teacher far above p_student and does not give its
    threshold; `ratio` is a parameter of ours.

    Raises:
        ValueError: for no sentences.
    """
    if not sentences:
        raise ValueError("no sentences to compare")
    return float(np.mean([sentence.log_ratio >= math.log(ratio) for sentence in sentences]))
