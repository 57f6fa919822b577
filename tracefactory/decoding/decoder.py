"""What a decoder is to the engine: at every position, which model writes, and whether the other must agree."""

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
    """The two models of a decoder."""

    STUDENT = 0
    TEACHER = 1

    @property
    def other(self) -> Role:
        return Role.STUDENT if self is Role.TEACHER else Role.TEACHER


@dataclass(frozen=True)
class Turn:
    """Who writes the next token. With a `rule` the teacher proposes and the student decides by it."""

    writer: Role
    rule: Acceptance | None = None


STUDENT_WRITES, TEACHER_WRITES = Turn(Role.STUDENT), Turn(Role.TEACHER)


@dataclass
class Written:
    """What a trace holds so far: the text each token completed (often empty inside of a character), and who wrote it.

    `key` is the trace's randomness.
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
    """A way for a teacher and a student to write one trace together.

    Subclasses are registered in `DECODERS`, hold their parameters as fields, and say who writes next from nothing but
    what is written: the engine may ask for a position more than once.
    """

    name: ClassVar[str]
    version: ClassVar[str]

    teacher_temperature: float = Field(default=0.7, ge=0)
    student_temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=20, ge=1)

    @abstractmethod
    def turn(self, written: Written) -> Turn:
        """Return who writes the next token."""

    def sampling(self, role: Role) -> Sampling:
        """Return how a model's tokens are drawn."""
        heat = self.teacher_temperature if role is Role.TEACHER else self.student_temperature
        return Sampling(temperature=heat, top_p=self.top_p, top_k=self.top_k)


DECODERS: Registry[type[Decoder]] = registry("decoder")
"""Every decoder by name."""
