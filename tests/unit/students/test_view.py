from __future__ import annotations

import math

import numpy as np
import pytest

from tracefactory.cli.student_text import marked, view_lines
from tracefactory.core.token_scores import TokenScores
from tracefactory.students.view import StudentView, view_of

BODY = "Half of 84 is 42.\n\nWait, is that so? Yes."
TEXT = f"<think>\n{BODY}\n</think>\n\n42<end>"


def scores(ps: dict[str, float], *, words: bool = True) -> TokenScores:
    """Cut TEXT at its spaces into tokens of p = 0.5, but for the tokens that begin with a key of `ps`."""
    starts = [0, *(index for index, sign in enumerate(TEXT) if sign in " \n" and TEXT[index - 1] not in " \n")]
    ends = [*starts[1:], len(TEXT)]
    pieces = [TEXT[a:b] for a, b in zip(starts, ends, strict=True)]
    p = [next((value for key, value in ps.items() if piece.strip().startswith(key)), 0.5) for piece in pieces]
    ranks = [1 if value == 0.5 else round(1 / value) for value in p]
    told = {"text": TEXT, "instead": tuple("other" if rank > 1 else None for rank in ranks)} if words else {}
    return TokenScores(
        token_ids=np.arange(len(p), dtype=np.int32),
        starts=np.array(starts, np.int32),
        ends=np.array(ends, np.int32),
        ranks=np.array(ranks, np.int32),
        logprobs=np.log(np.array(p)).astype(np.float32),
        entropies=np.full(len(p), math.nan, np.float32),
        body_start=TEXT.index(BODY),
        **told,
    )


def test_unlikely_tokens_are_marked_and_joined_where_they_touch() -> None:
    view = view_of("t1", "pupil", scores({"84": 0.001, "is": 0.002, "42<end>": 0.005}), BODY)
    assert [view.text[start:end] for start, end in view.marked] == [" 84 is", " is", "\n\n42<end>"]
    assert view.below == 4
    assert marked(view, colour=False) == (
        "<think>\nHalf of⟪ 84 is⟫ 42.\n\nWait,⟪ is⟫ that so? Yes.\n</think>⟪\n\n42<end>⟫"
    )
    assert "\x1b[31m" in marked(view, colour=True)


def test_least_likely_tokens_are_shown_with_the_students_choice() -> None:
    view = view_of("t1", "pupil", scores({"84": 0.02, "Wait": 0.05, "so": 0.1, "Yes": 0.2}), BODY)
    assert [(one.token.strip(), one.rank, one.instead) for one in view.least] == [
        ("84", 50, "other"),
        ("Wait,", 20, "other"),
        ("so?", 10, "other"),
    ]
    assert view.least[0].p == pytest.approx(0.02)
    assert view.below == 0
    assert len(view.marked) == 3  # none is below the threshold, so these are marked
    lines = "\n".join(view_lines(view, colour=False))
    assert "the student's likeliest token is 'other'" in lines
    assert "p 0.02, rank 50" in lines


def test_without_the_stored_text_the_body_alone_is_marked() -> None:
    view = view_of("t1", "pupil", scores({"84": 0.001, "42<end>": 0.0001}, words=False), BODY)
    assert view.text == BODY
    assert [view.text[start:end] for start, end in view.marked] == [" 84"]
    assert all(one.end <= len(BODY) and one.instead is None for one in view.least)


def test_steps_cover_the_body_and_carry_their_surprisal() -> None:
    view = view_of("t1", "pupil", scores({"Wait": 0.01, "is": 0.5}), BODY)
    assert "".join(step.text for step in view.steps) == BODY
    assert len(view.steps) >= 2
    turn = next(step for step in view.steps if step.text.startswith("Wait"))
    assert turn.surprisal is not None
    assert view.steps[0].surprisal == pytest.approx(math.log(2), abs=1e-5)
    assert turn.surprisal > view.steps[0].surprisal
    assert turn.entropy is None  # a served student tells none
    assert sum(step.tokens for step in view.steps) < view.tokens
    again = StudentView.model_validate_json(view.model_dump_json())
    assert again == view
