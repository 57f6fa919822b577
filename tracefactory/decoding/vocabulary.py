"""Compare two vocabularies by token id, to decide whether their models can decode together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.errors import Mistake, UserError

SAME_FAMILY = 0.99
"""The minimum share of the student's ordinary tokens that the teacher has with the same id and text."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The mapping between the student's and the teacher's tokens.

    `proposable` is a mask over the teacher's ids: only tokens that the student has too are ever proposed. `translated`
    maps each token that only the student has to the teacher's tokens for its text, as the authors of the reverse
    speculative decoding paper do for Qwen3's `<think>`, which is three tokens in Qwen2.5.
    """

    kind: Literal["identical", "family"]
    proposable: NDArray[np.bool_]
    translated: Mapping[int, tuple[int, ...]]

    def sized(self, logits: int) -> Vocabulary:
        """Return a copy for a teacher with that many logits; logits without a token are never proposed."""
        proposable = np.zeros(logits, dtype=np.bool_)
        shared = min(logits, len(self.proposable))
        proposable[:shared] = self.proposable[:shared]
        return replace(self, proposable=proposable)

    def to_teacher(self, token: int) -> tuple[int, ...]:
        """Return the teacher's tokens for a token of the student."""
        return self.translated.get(token, (token,))


def compare(teacher: Any, student: Any, names: tuple[str, str] = ("teacher", "student")) -> Vocabulary:
    """Compare two tokenizers by token id.

    Args:
        teacher: the teacher's tokenizer.
        student: the student's tokenizer.
        names: the names of both models, for the error message.

    Raises:
        UserError: when the vocabularies are unrelated; the hint names an alternative.
    """
    teacher_tokens, student_tokens = (
        {token: text for text, token in tokenizer.get_vocab().items()} for tokenizer in (teacher, student)
    )
    shared = {token for token, text in student_tokens.items() if teacher_tokens.get(token) == text}
    ordinary = student_tokens.keys() - student.added_tokens_decoder.keys()
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
    proposable = np.zeros(max(teacher_tokens) + 1, dtype=np.bool_)
    proposable[list(shared)] = True
    translated = {}
    for token in [token for token in student_tokens if token not in shared]:
        text = student.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        translated[token] = tuple(teacher.encode(text, add_special_tokens=False))
    return Vocabulary("family" if translated else "identical", proposable, translated)
