"""The teacher writes the first tokens of each sentence, the student the rest."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Turn
from tracefactory.sampling.noise import GATE, Noise

_STOPS = (".", "!", "?", "。", "！", "？")


@DECODERS.register("foreal")
class Foreal(Decoder):
    """The teacher writes the first `lead` tokens of a sentence with probability `gate`, the student all other tokens.

    FoReaL-Decoding (arXiv 2506.06998): models disagree most at the first tokens of a sentence. A sentence ends with
    the token that completes ". ", "!", "?" (also in Chinese) or a line; the full stop of an abbreviation or a
    decimal also counts, which gives the teacher a few more tokens. We could not find the paper's gate and number of
    tokens; both are parameters.
    """

    name = "foreal"
    version = "1"

    lead: int = Field(default=10, ge=1, description="Number of first tokens of a sentence that the teacher writes.")
    gate: float = Field(default=1.0, ge=0, le=1, description="Probability that the teacher leads a sentence.")

    def turn(self, written: PartialTrace) -> Turn:
        """Let the teacher write in the first tokens of a sentence, if the gate is open for the sentence."""
        start = len(written)
        while start > 0 and not _ends_sentence(written.pieces[start - 1]):
            start -= 1
        if len(written) - start >= self.lead:
            return STUDENT_WRITES
        place = Noise(np.array([written.key], dtype=np.uint64), np.array([start], dtype=np.int64))
        opened = place.uniform(GATE, np.zeros((1, 1), dtype=np.int64))[0, 0] < self.gate
        return TEACHER_WRITES if opened else STUDENT_WRITES


def _ends_sentence(piece: str) -> bool:
    """Return whether the text of a token ends with a full stop, which brackets or quotes may follow, or a line."""
    text = piece.rstrip()
    return "\n" in piece[len(text) :] or text.rstrip("'\")]").endswith(_STOPS)
