"""Whether two models can decode together: their tokens compared by id, and what of one the other cannot write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.errors import Mistake, UserError

SAME_FAMILY = 0.99
"""The share of the student's ordinary tokens that must be the teacher's by id and text; the rest is translated."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The student's tokens, and how to tell them to the teacher.

    `proposable` says by id which tokens of the teacher are the student's too; no other is ever proposed. `translated`
    holds, for each token that only the student has, the teacher's tokens for its text: the reverse speculative decoding
    paper's authors do so for Qwen3's `<think>`, which Qwen2.5 writes in three tokens.
    """

    kind: Literal["identical", "family"]
    proposable: NDArray[np.bool_]
    translated: Mapping[int, tuple[int, ...]]

    def sized(self, logits: int) -> Vocabulary:
        """Return the same for a teacher with that many logits: rows without a token are never proposed."""
        proposable = np.zeros(logits, dtype=np.bool_)
        shared = min(logits, len(self.proposable))
        proposable[:shared] = self.proposable[:shared]
        return replace(self, proposable=proposable)

    def to_teacher(self, token: int) -> tuple[int, ...]:
        """Return the teacher's tokens for one of the student's."""
        return self.translated.get(token, (token,))


def compare(teacher: Any, student: Any, names: tuple[str, str] = ("teacher", "student")) -> Vocabulary:
    """Compare two tokenizers by id.

    Raises:
        UserError: when they are unrelated, naming what can be done instead.
    """
    theirs, ours = _tokens(teacher), _tokens(student)
    shared = {token for token, text in ours.items() if theirs.get(token) == text}
    ordinary = ours.keys() - student.added_tokens_decoder.keys()
    if len(shared & ordinary) < SAME_FAMILY * len(ordinary):
        same = f"{len(shared & ordinary):,} of {len(ordinary):,} tokens of {names[1]}"
        raise UserError(
            Mistake(
                f"{names[0]} and {names[1]} have unrelated vocabularies ({same} are the same by id): they cannot "
                "decode together token by token",
                hint=f"sample {names[0]} alone, measure its traces under {names[1]}, and keep those that the filter "
                "`reverse_speculative` accepts; it applies the same rule afterwards",
            )
        )
    proposable = np.zeros(max(theirs) + 1, dtype=np.bool_)
    proposable[list(shared)] = True
    translated = {token: _translated(token, student, teacher) for token in ours if token not in shared}
    return Vocabulary("family" if translated else "identical", proposable, translated)


def _tokens(tokenizer: Any) -> dict[int, str]:
    return {token: text for text, token in tokenizer.get_vocab().items()}


def _translated(token: int, student: Any, teacher: Any) -> tuple[int, ...]:
    text = student.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return tuple(teacher.encode(text, add_special_tokens=False))
