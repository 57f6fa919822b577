"""The student writes, and the teacher continues where the student reflects."""

from __future__ import annotations

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Role, Turn

_LOOK_BACK = 24  # tokens; a cue is at the beginning of a paragraph


@DECODERS.register("speculative_thinking")
class SpeculativeThinking(Decoder):
    """The student writes; when it begins a paragraph with one of `cues`, the teacher writes the next `tokens` tokens.

    Speculative Thinking (its authors' code): the trigger is a blank line followed by words of verification, of doubt or
    of a new attempt; the larger model then writes about 20 tokens, and also the first 100 of the trace. The default
    cues are not from the authors.
    """

    name = "speculative_thinking"
    version = "1"

    opening: int = Field(default=100, ge=0, description="Number of first tokens of a trace that the teacher writes.")
    tokens: int = Field(default=20, ge=1, description="Number of tokens that the teacher writes after a cue.")
    cues: tuple[str, ...] = Field(
        default=("wait", "hmm", "alternatively", "however", "but", "let me check", "let me verify", "double-check"),
        min_length=1,
        description="Words at the start of a paragraph of the student after which the teacher writes.",
    )

    def turn(self, written: PartialTrace) -> Turn:
        """Let the teacher write in the opening and in the tokens after a cue of the student."""
        if len(written) < self.opening:
            return TEACHER_WRITES
        writers = reversed(written.writers)
        teacher_run = next((n for n, writer in enumerate(writers) if writer is Role.STUDENT), len(written))
        if teacher_run:
            after_cue = teacher_run < len(written)  # and not the first tokens of the trace
            return TEACHER_WRITES if after_cue and teacher_run < self.tokens else STUDENT_WRITES
        return TEACHER_WRITES if self._reflects(written) else STUDENT_WRITES

    def _reflects(self, written: PartialTrace) -> bool:
        """Return whether the student's text ends with the first words of a paragraph, and they begin with a cue."""
        recent = reversed(written.writers[-_LOOK_BACK:])
        own = next((n for n, writer in enumerate(recent) if writer is Role.TEACHER), min(len(written), _LOOK_BACK))
        _, blank, paragraph = written.text(len(written) - own).rpartition("\n\n")
        start = paragraph.lstrip().lower()
        return bool(blank) and any(start.startswith(cue.lower()) for cue in self.cues)
