"""The student thinks, the teacher takes over where it reflects."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field

from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, TEACHER_WRITES, Decoder, PartialTrace, Role, Turn

_LOOK_BACK = 24  # tokens: a cue stands at the beginning of a paragraph


@DECODERS.register("speculative_thinking")
class SpeculativeThinking(Decoder):
    """The student writes; when it begins a paragraph with one of `cues`, the teacher writes the next `tokens` tokens.

    Speculative Thinking (its authors' code): the trigger is a blank line followed by words of verification, of doubt or
    of a new attempt; the larger model then writes about 20 tokens, and the first 100 of the trace. The cues here are
    our own.
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

    @cached_property
    def _lowered(self) -> tuple[str, ...]:
        return tuple(cue.lower() for cue in self.cues)

    def turn(self, written: PartialTrace) -> Turn:
        if len(written) < self.opening:
            return TEACHER_WRITES
        stint = next((n for n, writer in enumerate(reversed(written.writers)) if writer is Role.STUDENT), len(written))
        if stint:
            began = len(written) - stint
            return TEACHER_WRITES if began and stint < self.tokens else STUDENT_WRITES
        return TEACHER_WRITES if self._reflects(written) else STUDENT_WRITES

    def _reflects(self, written: PartialTrace) -> bool:
        """Tell whether the student has just completed a cue at the beginning of a paragraph of its own."""
        recent = reversed(written.writers[-_LOOK_BACK:])
        own = next((n for n, writer in enumerate(recent) if writer is Role.TEACHER), min(len(written), _LOOK_BACK))
        _, blank, paragraph = written.text(len(written) - own).rpartition("\n\n")
        begun = paragraph.lstrip().lower()
        return bool(blank) and any(begun.startswith(cue) for cue in self._lowered)
