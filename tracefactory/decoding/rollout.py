"""One trace on its way: its tokens as each model has them, and who wrote what."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

from tracefactory.decoding.decoder import Decoder, Role, Written
from tracefactory.decoding.vocabulary import Vocabulary


@dataclass(frozen=True)
class Script:
    """What decides a trace: its prompt in the student's tokens, its decoder, its randomness (64 bits), its budget."""

    prompt: tuple[int, ...]
    decoder: Decoder
    key: int
    max_tokens: int


@dataclass(eq=False)
class Run:
    """A trace while it is written.

    `tokens` are the student's; `teacher_p` and `student_p` are natural logarithms of the probability that each model
    itself (temperature 1, whole vocabulary) gave to them, NaN where a model was not asked; `draws` says by which of the
    teacher's draws a token came, 0 for a token of the student. `sequences` hold prompt and tokens as each model has
    them, drafts included.
    """

    script: Script
    vocabulary: Vocabulary
    tokenizer: Any
    row: int = -1
    finish: str = ""
    tokens: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    logprobs: dict[Role, list[float]] = field(default_factory=lambda: {role: [] for role in Role})

    def __post_init__(self) -> None:
        self.written = Written(self.script.key)
        self.sequences: dict[Role, list[int]] = {role: [] for role in Role}
        self._stream = DecodeStream(skip_special_tokens=False)
        self.push(self.script.prompt)

    def push(self, tokens: Iterable[int]) -> None:
        """Append tokens, not yet decided on, to both models' sequences."""
        for token in tokens:
            self.sequences[Role.STUDENT].append(token)
            self.sequences[Role.TEACHER].extend(self.vocabulary.to_teacher(token))

    def write(
        self, token: int, writer: Role, *, draw: int, logprobs: Mapping[Role, float], stops: Container[int]
    ) -> None:
        """Decide on the next token, and on whether it was the last; the text of a stop token is not part of the trace.

        What the teacher thinks of a token that only the student has is left out: it has no one number for it.
        """
        self.tokens.append(token)
        self.draws.append(draw)
        for role in Role:
            untold = role is Role.TEACHER and token in self.vocabulary.translated
            self.logprobs[role].append(float("nan") if untold else logprobs.get(role, float("nan")))
        # the stream gives text only at the end of a character, so that no half of one is ever decoded
        piece = None if token in stops else self._stream.step(self.tokenizer.backend_tokenizer, token)
        self.written.pieces.append(piece or "")
        self.written.writers.append(writer)
        if token in stops:
            self.finish = "stop"
        elif len(self.tokens) == self.script.max_tokens:
            self.finish = "length"
