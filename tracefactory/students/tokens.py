"""Lengths in the student's own tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tracefactory.students.spec import StudentSpec


@lru_cache(maxsize=4)
def token_counter(weights: Path) -> Callable[[str], int]:
    """Return what counts the tokens of a text, without control tokens, by the tokenizer in a GGUF file.

    Raises:
        UserError: when the file holds no tokenizer that can be read.
    """
    from tracefactory.students.load import load_tokenizer  # here, because it imports torch

    tokenizer = load_tokenizer(StudentSpec(model=str(weights)))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
