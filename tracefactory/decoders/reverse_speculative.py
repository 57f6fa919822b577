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

    A draw of the teacher stands when the student has it among its `top_k` and gives it a probability of `p` or more;
    after `draws` refused draws the student's own draw stands. Whether the authors held `p` against the student's
    untouched (`raw`) or its tempered distribution depended on their engine's version; `tested` chooses.
    """

    name = "reverse_speculative"
    version = "1"

    p: float = Field(default=0.01, gt=0, le=1, description="Minimum student probability of an accepted token.")
    draws: int = Field(default=5, ge=1, le=64, description="Teacher samples per position before the student's is used.")
    tested: Literal["raw", "tempered"] = Field(
        default="raw", description="The student distribution that `p` is compared with: before or after temperature."
    )

    def turn(self, written: PartialTrace) -> Turn:
        return Turn(Role.TEACHER, Acceptance(p=self.p, draws=self.draws))

    def sampling(self, role: Role) -> Sampling:
        return replace(super().sampling(role), tested=self.tested)
