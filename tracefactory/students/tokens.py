"""Token counts and renderings with the student's tokenizer, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.serving.encoding import count
from tracefactory.students.render import Renderer


@lru_cache(maxsize=4)
def token_counter(student: Checkpoint) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text in the student's tokenizer; a control token in it is text.

    Raises:
        UserError: when the tokenizer cannot be loaded.
    """
    from tracefactory.serving.loading import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(student)
    return lambda text: count(tokenizer, text)


@lru_cache(maxsize=4)
def renderer(student: Checkpoint) -> Renderer:
    """Return a renderer with the student's tokenizer; no weights are loaded.

    Raises:
        UserError: when the tokenizer cannot be loaded.
    """
    from tracefactory.serving.loading import load_tokenizer  # imports torch

    return Renderer(load_tokenizer(student), student.reasoning)
