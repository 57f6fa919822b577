"""The student begins, the teacher continues."""

from __future__ import annotations

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Turn


@DECODERS.register("student_prefix")
class StudentPrefix(Decoder):
    """The student writes the first `tokens` tokens, the teacher the others: a mixed policy.

    The teacher's text is then conditioned on beginnings that the student samples, as in the mixed-policy training data
    of ORPO-Distill (NeurIPS 2025 workshop).
    """

    name = "student_prefix"
    version = "1"

    tokens: int = Field(default=64, ge=1, description="Number of first tokens of a trace that the student writes.")

    def turn(self, written: PartialTrace) -> Turn:
        """Let the student write the first `tokens` tokens."""
        return STUDENT_WRITES if len(written) < self.tokens else TEACHER_WRITES
