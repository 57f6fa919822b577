"""The teacher begins, the student continues."""

from __future__ import annotations

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Turn


@DECODERS.register("teacher_prefix")
class TeacherPrefix(Decoder):
    """The teacher writes the first `tokens` tokens, the student the others.

    P-ALIGN (arXiv 2601.10064) trains the student on its continuation of a teacher's beginning and searches the shortest
    sufficient beginning; here its length is a parameter.
    """

    name = "teacher_prefix"
    version = "1"

    tokens: int = Field(default=64, ge=1, description="Number of first tokens of a trace that the teacher writes.")

    def turn(self, written: PartialTrace) -> Turn:
        """Let the teacher write the first `tokens` tokens."""
        return TEACHER_WRITES if len(written) < self.tokens else STUDENT_WRITES
