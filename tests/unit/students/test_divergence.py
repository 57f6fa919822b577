from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tracefactory.students.divergence import (
    SentenceDivergence,
    align_teacher,
    sentence_divergence,
    teacher_sentence_share,
)
from tracefactory.students.student import Student

BODY = "半分は42個。 So the answer is 42."
SENTENCES = [(0, 8), (8, len(BODY))]


def test_tokens_cut_inside_a_character_are_placed_by_bytes() -> None:
    raw = BODY.encode()
    cuts = [0, 2, 3, 7, 12, 20, 25, len(raw)]
    tokens = [b"<think>\n", *(raw[a:b] for a, b in pairwise(cuts)), b"\n</think>", b"42"]
    found = align_teacher(tokens, [-9.0, *(-0.5 * k for k in range(7)), -9.0, -9.0], BODY)
    assert found.logprobs.tolist() == [-0.5 * k for k in range(7)]
    assert found.ends[-1] == len(BODY)
    assert found.starts[0] == 0
    assert found.ends[0] == found.ends[1] == 1  # two pieces of one character
    assert (found.ends >= found.starts).all()


@pytest.mark.parametrize(
    ("tokens", "body", "times"), [([b"a b"], "a c", 0), ([b"a", b" b a", b" b"], "a b", 2), ([b"a"], "", 0)]
)
def test_tokens_that_do_not_spell_the_trace_once_are_refused(tokens: list[bytes], body: str, times: int) -> None:
    with pytest.raises(ValueError, match=f"{times} times"):
        align_teacher(tokens, [-1.0] * len(tokens), body)


def test_a_missing_log_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="2 teacher tokens, but 1"):
        align_teacher([b"a", b"b"], [-1.0], "ab")


def test_sentences_compare_across_tokenizers(smollm: Student) -> None:
    """The teacher's tokens are single words here, the student's its own; each side is averaged over its own tokens."""
    [student] = smollm.score([smollm.render("Half of 84?", BODY, "\\boxed{42}")])
    words = [b"<think>\n", *BODY.replace(" ", "\x00 ").encode().split(b"\x00"), b"\n</think>\n\n"]
    logprobs = [-7.0, -0.25, *[-1.0, -2.0] * ((len(words) - 3) // 2), *[-1.0] * ((len(words) - 3) % 2), -7.0]
    first, second = sentence_divergence(student, align_teacher(words, logprobs, BODY), SENTENCES)
    assert (first.start, first.end, first.teacher_tokens) == (0, 8, 1)
    assert first.teacher_logprob == pytest.approx(-0.25)
    assert second.teacher_tokens == len(BODY.split()) - 1
    body = (student.ends > student.body_start) & (student.starts < student.body_start + len(BODY))
    assert first.student_tokens + second.student_tokens == body.sum()
    whole = float(student.logprobs[body].sum())
    assert first.student_logprob + second.student_logprob == pytest.approx(whole, rel=1e-5)
    assert first.log_ratio == pytest.approx(-0.25 - first.student_logprob / first.student_tokens)


def test_teacher_sentence_share_counts_sentences_above_the_ratio() -> None:
    pairs = [(-1.0, -1.0), (-1.0, -9.0), (-9.0, -1.0), (-1.0, -1.0 - 2 * math.log(2))]
    sentences = [SentenceDivergence(0, 1, teacher, 2, student, 2) for teacher, student in pairs]
    assert teacher_sentence_share(sentences) == 0.5
    assert teacher_sentence_share(sentences, ratio=3.0) == 0.25
    assert np.sign([s.log_ratio for s in sentences]).tolist() == [0, 1, -1, 1]
    with pytest.raises(ValueError, match="no sentences"):
        teacher_sentence_share([])
