"""The teacher begins, the student goes on."""

from __future__ import annotations

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Turn


@DECODERS.register("teacher_prefix")
class TeacherPrefix(Decoder):
    """The first `tokens` tokens are the teacher's, the rest the student's.

    Training the student on its own continuation of a teacher's beginning is what P-ALIGN (arXiv 2601.10064) does,
    which looks for the shortest sufficient beginning; here its length is given.
    """

    name = "teacher_prefix"
    version = "1"

    tokens: int = Field(default=64, ge=1, description="Number of first tokens of a trace that the teacher writes.")

    def turn(self, written: PartialTrace) -> Turn:
        return TEACHER_WRITES if len(written) < self.tokens else STUDENT_WRITES
