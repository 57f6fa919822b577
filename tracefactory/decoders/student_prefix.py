"""The student begins, the teacher goes on."""

from __future__ import annotations

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Turn


@DECODERS.register("student_prefix")
class StudentPrefix(Decoder):
    """The first `tokens` tokens are the student's, the rest the teacher's: a mixed policy.

    What the teacher writes is then conditioned on beginnings that the student really makes, as in the mixed-policy
    training data of ORPO-Distill (NeurIPS 2025 workshop).
    """

    name = "student_prefix"
    version = "1"

    tokens: int = Field(default=64, ge=1, description="Number of first tokens of a trace that the student writes.")

    def turn(self, written: PartialTrace) -> Turn:
        return STUDENT_WRITES if len(written) < self.tokens else TEACHER_WRITES
