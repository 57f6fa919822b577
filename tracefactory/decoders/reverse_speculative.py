"""Reverse speculative decoding: the teacher proposes every token, the student decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, Decoder, PartialTrace, Role, Turn
from tracefactory.sampling.acceptance import Acceptance
from tracefactory.sampling.candidates import Sampling


@DECODERS.register("reverse_speculative")
class ReverseSpeculative(Decoder):
    """Reverse speculative decoding (arXiv 2509.22230) with the values of its authors' code.

    A draw of the teacher is accepted when it is among the student's `top_k` tokens and has a student probability of at
    least `p`; after `draws` rejected draws the student's own draw is taken. Whether the authors compared `p` with the
    student's unmodified (`raw`) or tempered distribution depended on the version of their engine; `tested` selects.
    """

    name = "reverse_speculative"
    version = "1"

    p: float = Field(default=0.01, gt=0, le=1, description="Minimum student probability of an accepted token.")
    draws: int = Field(default=5, ge=1, le=64, description="Teacher samples per position before the student's is used.")
    tested: Literal["raw", "tempered"] = Field(
        default="raw", description="The student distribution that `p` is compared with: before or after temperature."
    )

    def turn(self, written: PartialTrace) -> Turn:
        """Let the teacher propose and the student accept every token."""
        return Turn(Role.TEACHER, Acceptance(p=self.p, draws=self.draws))

    def sampling(self, role: Role) -> Sampling:
        """Return the sampling parameters of a model, with the tested distribution."""
        return replace(super().sampling(role), tested=self.tested)
