"""The prompts pruners and the step labels go with render from what the items carry."""

from pathlib import Path

import pytest

from tracefactory.text.prompts import load_prompts

FOLDER = Path(__file__).parents[3] / "prompts"
VALUES = {"question": "What is 6 * 7?", "reasoning": "[0] Take rows.", "answer_text": "It is 42.", "words": "123"}


@pytest.mark.parametrize(
    "name", ["prune_conclude", "prune_sufficient", "prune_rewrite", "prune_continue", "step_types"]
)
def test_a_prompt_shows_what_it_is_given(name: str) -> None:
    prompt = load_prompts(FOLDER)[name]
    text = "\n".join(message["content"] for message in prompt.render(**VALUES))
    assert prompt.variables <= set(VALUES)
    for variable in prompt.variables:
        assert VALUES[variable] in text
    assert {"question", "reasoning"} <= prompt.variables


def test_the_prompts_ask_for_what_is_read_back() -> None:
    prompts = load_prompts(FOLDER)
    assert "[ENOUGH]" in prompts["prune_sufficient"].body
    assert "[NOT_ENOUGH]" in prompts["prune_sufficient"].body
    assert "\\boxed{" in prompts["prune_conclude"].body


def test_a_continuation_begins_where_the_reasoning_ends() -> None:
    prompt = load_prompts(FOLDER)["prune_continue"]
    assert prompt.opened_in_prompt
    assert prompt.render(question="Q", reasoning="So far.\n\n")[-1]["content"].endswith("So far.\n\n")
