"""The filter control_tokens, on problems and on traces."""

from pathlib import Path
from typing import Any

import pytest

from tracefactory.core.rows import Row
from tracefactory.filters import Decision, apply, load_filters
from tracefactory.testing import make_problem, make_trace

LOADED = load_filters(Path(__file__).parents[2] / "filters")["control_tokens"]


def decide(row: Row, **params: Any) -> Decision:
    return apply(LOADED, row, LOADED.params_model.model_validate(params))


@pytest.mark.parametrize(
    "row",
    [
        make_problem("What does <|im_end|> do?"),
        make_problem("Think in <think> tags."),
        make_trace(reasoning="So.<|endoftext|>"),
        make_trace(answer_text="[INST] 42 [/INST]"),
        make_trace(answer_text="<|im_end|>" * 10_000),
    ],
)
def test_a_row_that_spells_a_control_token_is_dropped_by_name(row: Row) -> None:
    decision = decide(row)
    assert decision.reason == "control_token_inside"
    assert decision.detail is not None
    assert len(decision.detail) < 100


@pytest.mark.parametrize("text", ["[inst] is no mark", "|x| < 3", "<|im\u200b_end|>", "<b>4</b>", ""])
def test_other_rows_are_kept(text: str) -> None:
    assert decide(make_trace(answer_text=text)).keep
    assert decide(make_problem(text)).keep


def test_further_tokens_are_named() -> None:
    assert decide(make_trace(answer_text="<filename>")).keep
    assert decide(make_trace(answer_text="<filename>"), also=["<filename>"]).reason == "control_token_inside"


def test_it_works_on_rows_of_both_kinds() -> None:
    assert LOADED.kind is None
    assert LOADED.reasons == ("control_token_inside",)
