"""The interface of decoders: which model writes the next token, and whether the other model must accept it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from pydantic import Field

from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen
from tracefactory.sampling.acceptance import Acceptance
from tracefactory.sampling.candidates import Sampling


class Role(IntEnum):
    """The role of a model in decoding."""

    STUDENT = 0
    TEACHER = 1

    @property
    def other(self) -> Role:
        """The role of the other model."""
        return Role.STUDENT if self is Role.TEACHER else Role.TEACHER


@dataclass(frozen=True)
class Turn:
    """Which model writes the next token. With a `rule`, the teacher proposes tokens and the student accepts by it."""

    writer: Role
    rule: Acceptance | None = None


STUDENT_WRITES, TEACHER_WRITES = Turn(Role.STUDENT), Turn(Role.TEACHER)


@dataclass
class PartialTrace:
    """An unfinished trace: the text that each token completed (often empty inside a character), and who wrote it.

    `key` is the key of the trace's random numbers.
    """

    key: int
    pieces: list[str] = field(default_factory=list)
    writers: list[Role] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pieces)

    def text(self, start: int = 0) -> str:
        """Return the text from token `start` on."""
        return "".join(self.pieces[start:])


class Decoder(Frozen):
    """A method by which a teacher and a student write one trace together.

    Subclasses are registered in `DECODERS` and have their parameters as fields. `turn` must depend only on the partial
    trace, because the engine may call it more than once for a position.
    """

    name: ClassVar[str]
    version: ClassVar[str]

    teacher_temperature: float = Field(default=0.7, ge=0, description="Sampling temperature of the teacher.")
    student_temperature: float = Field(default=0.7, ge=0, description="Sampling temperature of the student.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus sampling of both models.")
    top_k: int = Field(default=20, ge=1, description="Number of most likely tokens that both models sample from.")

    @abstractmethod
    def turn(self, written: PartialTrace) -> Turn:
        """Return which model writes the next token."""

    def sampling(self, role: Role) -> Sampling:
        """Return the sampling parameters of a model."""
        temperature = self.teacher_temperature if role is Role.TEACHER else self.student_temperature
        return Sampling(temperature=temperature, top_p=self.top_p, top_k=self.top_k)


DECODERS: Registry[type[Decoder]] = registry("decoder")
"""Every decoder by name."""
