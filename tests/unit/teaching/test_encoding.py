"""The mask of encoded rows, and what is counted when a row is cut or refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.teaching.conftest import ROWS, row
from tracefactory.core.errors import UserError
from tracefactory.students.render import Renderer
from tracefactory.teaching.encoding import IGNORED, digest_of_rows, encode_rows, mask_lines
from tracefactory.teaching.rows import TrainingRow


def test_only_the_last_turn_of_the_assistant_is_in_the_loss(renderer: Renderer, tokenizer: Any) -> None:
    before = (
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "an earlier turn"},
        {"role": "user", "content": "second"},
    )
    encoded = encode_rows([TrainingRow("a", "p", "", before, ROWS[0].last)], renderer, 256)
    (one,) = encoded.table.to_pylist()
    supervised = [token for token in one["labels"] if token != IGNORED]
    assert tokenizer.decode(supervised) == ROWS[0].last["content"] + "<|im_end|>"
    assert one["tokens"] == len(supervised) == encoded.tokens
    assert "an earlier turn" in tokenizer.decode(one["input_ids"])
    first, second, third = mask_lines(tokenizer, one["input_ids"], one["labels"])
    assert first.startswith("not in the loss") is False
    assert first.startswith("not in it")
    assert second.startswith("in the loss")
    assert "one and one" not in first + third
    assert "<think>" in second
    with pytest.raises(ValueError, match="neither"):
        mask_lines(tokenizer, one["input_ids"], [token + 1 for token in one["input_ids"]])


def test_cut_rows_are_counted_and_so_are_their_answers(renderer: Renderer) -> None:
    whole = encode_rows([ROWS[0]], renderer, 256)
    (one,) = whole.table.to_pylist()
    assert (whole.cut, whole.answers_lost) == (0, 0)
    length = max(at for at, label in enumerate(one["labels"]) if label != IGNORED) + 1  # with the end of the turn
    first = one["labels"].index(one["tokens"] and next(label for label in one["labels"] if label != IGNORED))
    for most, cut, lost, tokens in (
        (length, 0, 0, one["tokens"]),
        (length - 1, 1, 0, one["tokens"] - 1),  # the end of the turn alone
        (length - 2, 1, 1, one["tokens"] - 2),
        (first + 1, 1, 1, 1),
    ):
        found = encode_rows([ROWS[0]], renderer, most)
        assert (found.cut, found.answers_lost, found.tokens) == (cut, lost, tokens)
        assert len(found.table["input_ids"][0]) == min(most, len(one["input_ids"]))
    nothing = encode_rows([ROWS[0]], renderer, first)
    assert nothing.reasons == {"prompt_too_long": 1}
    assert len(nothing.table) == 0


def test_rows_that_cannot_be_rendered_are_counted_by_reason(renderer: Renderer) -> None:
    hostile = TrainingRow("h", "p", "", ({"role": "user", "content": "a<|im_end|>b"},), ROWS[0].last)
    of_user = TrainingRow("u", "p", "", (), {"role": "user", "content": "no answer"})
    field = TrainingRow("f", "p", "", ROWS[0].before, {"role": "assistant", "content": "b", "reasoning_content": "a c"})
    found = encode_rows([*ROWS[:2], hostile, of_user, field, row(7, answer="</think>")], renderer, 256)
    assert found.reasons == {
        "control_token_inside": 1,
        "not_the_assistant": 1,
        "reasoning_not_rendered": 1,
        "think_tag_inside": 1,
    }
    assert found.table["id"].to_pylist() == ["row0", "row1"]
    assert len(encode_rows([], renderer, 256).table) == 0


def test_a_template_that_loses_the_reasoning_is_refused_first(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="cannot render a trace"):
        encode_rows([], Renderer(renderer.tokenizer, "field"), 256)


def test_the_digest_is_of_the_contents(renderer: Renderer) -> None:
    table = encode_rows(ROWS, renderer, 256).table
    assert digest_of_rows(table) == digest_of_rows(encode_rows(ROWS, renderer, 256).table.combine_chunks())
    others = [table.slice(1), table.sort_by([("id", "descending")]), encode_rows(ROWS, renderer, 40).table]
    assert len({digest_of_rows(one) for one in (table, *others)}) == 4
