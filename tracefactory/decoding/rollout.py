"""The state of one trace while it is decoded: its tokens for each model, and which model wrote them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

from tracefactory.decoding.decoder import Decoder, PartialTrace, Role
from tracefactory.decoding.vocabulary import Vocabulary


@dataclass(frozen=True)
class RolloutSpec:
    """What determines a trace: prompt (in the student's tokens), decoder, key of the noise (64 bits), token budget.

    `opened_in_prompt` says that the thinking is open at the end of the prompt, so that the trace starts in it.
    """

    prompt: tuple[int, ...]
    decoder: Decoder
    key: int
    max_tokens: int
    opened_in_prompt: bool = False


@dataclass(eq=False)
class Rollout:
    """A trace while it is decoded.

    `tokens` are the student's. `logprobs` are each model's own natural log-probabilities of them (temperature 1, whole
    vocabulary), NaN where a model was not queried. `draws` is which of the teacher's draws each token is, 0 for a token
    of the student. `sequences` hold prompt and tokens in each model's vocabulary, drafts included.
    """

    spec: RolloutSpec
    vocabulary: Vocabulary
    tokenizer: Any
    row: int = -1
    finish: str = ""
    tokens: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    logprobs: dict[Role, list[float]] = field(default_factory=lambda: {role: [] for role in Role})

    def __post_init__(self) -> None:
        self.written = PartialTrace(self.spec.key)
        self.sequences: dict[Role, list[int]] = {role: [] for role in Role}
        self._stream = DecodeStream(skip_special_tokens=False)
        self.push(self.spec.prompt)

    def push(self, tokens: Iterable[int]) -> None:
        """Append tokens to both models' sequences; they may still be drafts."""
        for token in tokens:
            self.sequences[Role.STUDENT].append(token)
            self.sequences[Role.TEACHER].extend(self.vocabulary.to_teacher(token))

    def write(
        self, token: int, writer: Role, *, draw: int, logprobs: Mapping[Role, float], stops: Container[int]
    ) -> None:
        """Append a decided token, and set `finish` when it is the last. The text of a stop token is not in the trace.

        Args:
            token: the student's token.
            writer: the model that wrote it.
            draw: which of the teacher's draws it is, 0 for a token of the student.
            logprobs: its log-probability under each model that was queried. A token that only the student has gets no
                teacher log-probability, because for the teacher it is several tokens.
            stops: the stop tokens.
        """
        self.tokens.append(token)
        self.draws.append(draw)
        for role in Role:
            several = role is Role.TEACHER and token in self.vocabulary.translated
            self.logprobs[role].append(float("nan") if several else logprobs.get(role, float("nan")))
        # the stream emits text only at the end of a character, so no partial character is decoded
        piece = None if token in stops else self._stream.step(self.tokenizer.backend_tokenizer, token)
        self.written.pieces.append(piece or "")
        self.written.writers.append(writer)
        if token in stops:
            self.finish = "stop"
        elif len(self.tokens) == self.spec.max_tokens:
            self.finish = "length"
