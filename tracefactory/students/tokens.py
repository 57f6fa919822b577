"""Texts in the student's own tokens, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.students.render import Renderer


@lru_cache(maxsize=4)
def token_counter(student: Checkpoint) -> Callable[[str], int]:
    """Return what counts the tokens of a text, without control tokens, by the student's tokenizer.

    Raises:
        UserError: when it cannot be read.
    """
    from tracefactory.serving.loading import load_tokenizer  # here, because it imports torch

    tokenizer = load_tokenizer(student)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=4)
def renderer(student: Checkpoint) -> Renderer:
    """Return what writes traces in the student's tokens, as it is trained on them; no weights are loaded.

    Raises:
        UserError: when the tokenizer cannot be read.
    """
    from tracefactory.serving.loading import load_tokenizer  # here, because it imports torch

    return Renderer(load_tokenizer(student), student.reasoning)
