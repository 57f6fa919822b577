"""Which tokens of a trace its measures are over: the words alone, or everything that is supervised in training.

Tags, the whitespace around them and the end of turn are tokens of the format. A student not trained on it finds
them unlikely: under SmolLM2-135M the same 240 tokens of words have a rank-surprisal ratio of 3.14 with tags and 2.76
without, so that a ranking over all tokens favours prompts without thinking. Over the words the two are 2.80 and 2.76.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np

from tracefactory.core.token_scores import TokenScores


class Over(StrEnum):
    """The tokens that measures are over."""

    TEXT = "text"
    ALL = "all"

    @property
    def about(self) -> str:
        """The tokens in words, for the descriptions of columns."""
        return {
            "text": "the tokens of reasoning and answer, without think tags, whitespace around them and end of turn",
            "all": "all supervised tokens, with think tags and end of turn",
        }[self.value]


def of_text(scores: TokenScores, text: str, reasoning: str, answer: str) -> TokenScores:
    """Return the scores of the tokens that have a character of the reasoning or the answer.

    Whitespace at the ends of both is not theirs, because chat templates add and trim it.

    Args:
        scores: the scores of all supervised tokens.
        text: the supervised text; the characters of `scores` are its own.
        reasoning: the reasoning of the trace; may be empty.
        answer: the answer of the trace.

    Raises:
        ValueError: when the text does not have both, in this order.
    """
    kept, after = np.zeros(len(scores), dtype=bool), 0
    for part in filter(None, (reasoning.strip(), answer.strip())):
        start = text.index(part, after)
        after = start + len(part)
        kept |= (scores.ends > start) & (scores.starts < after)
    chosen = np.flatnonzero(kept)
    return replace(
        scores,
        token_ids=scores.token_ids[chosen],
        starts=scores.starts[chosen],
        ends=scores.ends[chosen],
        ranks=scores.ranks[chosen],
        logprobs=scores.logprobs[chosen],
        entropies=scores.entropies[chosen],
        instead=None if scores.instead is None else tuple(scores.instead[index] for index in chosen),
    )
