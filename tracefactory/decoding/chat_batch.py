"""Chat answers of one model, written together: an answer that ends frees its row for the next at once.

An answer depends on its own prompt, parameters and seed, but for rounding: passes of different shapes round
differently, so that below float64 answers can part where two tokens are almost equally likely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream

from tracefactory.decoding.kv_cache import CachedModel, Feed
from tracefactory.decoding.rows import fill, remove_finished
from tracefactory.sampling.noise import Noise
from tracefactory.sampling.nucleus import draw

CANCELLED = "cancelled"
"""The `finish` of an answer that nobody waits for; set it to free its row."""


@dataclass(frozen=True)
class AnswerSpec:
    """What determines an answer.

    Attributes:
        prompt: the tokens to continue, at least one.
        max_tokens: the most tokens that are written.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability that is drawn from.
        seed: the key of the random numbers, 64 bits.
        stop: texts at which the answer ends.
        likeliest: how many of the likeliest tokens are told for each token; None tells no log-probabilities at all.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    likeliest: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and its natural log-probability at temperature 1 in the whole vocabulary.

    `text` is what it adds to the answer: a character of several tokens is the last one's. `likeliest` are ids and
    log-probabilities of the likeliest tokens.
    """

    text: str
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Answer:
    """An answer while it is written; `finish` is "stop" or "length" at its end. A stop token is counted, not shown."""

    spec: AnswerSpec
    row: int = -1
    finish: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=False)

    def write(self, token: int, tokenizer: Any, stops: Container[int]) -> str:
        """Append a token and return the text that it adds; set `finish` when it is the last.

        Args:
            token: the token.
            tokenizer: the fast tokenizer's backend.
            stops: the stop tokens.
        """
        self.tokens.append(token)
        if token in stops:
            self.finish = "stop"
            return ""
        # the stream emits text only at the end of a character, so no partial character is decoded
        piece = self._stream.step(tokenizer, token) or ""
        self.text += piece
        if piece and self.spec.stop:
            self._cut(len(self.text) - len(piece))
        if not self.finish and len(self.tokens) == self.spec.max_tokens:
            self.finish = "length"
        return piece

    def _cut(self, before: int) -> None:
        """End the text before the first stop text that ends after `before` characters."""
        found = [self.text.find(one, max(0, before - len(one) + 1)) for one in self.spec.stop]
        if found := [at for at in found if at >= 0]:
            self.text, self.finish = self.text[: min(found)], "stop"


class ChatBatch:
    """Writes answers. Call everything but `add` and `busy` from one thread.

    Args:
        model: the model, with as many rows as answers are written together.
        tokenizer: its fast tokenizer.
        stops: its stop tokens.
        pass_tokens: the most tokens of one pass over new prompts.
    """

    def __init__(self, model: CachedModel, tokenizer: Any, stops: frozenset[int], pass_tokens: int) -> None:
        self.model, self.stops = model, stops
        self._tokenizer, self._pass_tokens = tokenizer.backend_tokenizer, pass_tokens
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []  # in the order of their rows

    def add(self, spec: AnswerSpec) -> Answer:
        """Queue an answer; it starts when a row is free."""
        answer = Answer(spec)
        self._waiting.append(answer)
        return answer

    @property
    def busy(self) -> bool:
        """Whether an answer is unfinished."""
        return bool(self._waiting or self._active)

    def round(self) -> list[Answer]:
        """Write one token of every active answer and return those that finished."""
        self._start_waiting()
        active = self._active
        if not active:
            return []
        # every row holds its prompt and answer but for the last token
        feeds = [Feed(one.row, ((one.tokens or one.spec.prompt)[-1],), 1) for one in active]
        logits = self.model.forward(feeds)
        keys = np.array([one.spec.seed for one in active], dtype=np.uint64)
        noise = Noise(keys, np.array([len(one.tokens) for one in active], dtype=np.int64))
        temperatures = np.array([one.spec.temperature for one in active])
        tokens = draw(logits, temperatures, np.array([one.spec.top_p for one in active]), noise).tolist()
        pieces = [one.write(token, self._tokenizer, self.stops) for one, token in zip(active, tokens, strict=True)]
        self._tell_logprobs(logits, pieces)
        return remove_finished(active, [self.model])

    def _tell_logprobs(self, logits: Any, pieces: Sequence[str]) -> None:
        """Add the log-probability of the last token to the answers that tell them; a stop token's is not told."""
        for one, piece in zip(self._active, pieces, strict=True):
            if one.spec.likeliest is not None and one.tokens[-1] not in self.stops:
                values = logits[one.row].log_softmax(dim=0)
                best = values.topk(one.spec.likeliest)
                likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                one.logprobs.append(TokenLogprob(piece, float(values[one.tokens[-1]]), likeliest))

    def _start_waiting(self) -> None:
        """Assign free rows to waiting answers and prefill their prompts, except the last token."""
        if not self._waiting:
            return
        filled = {one.row: [*one.spec.prompt, *one.tokens] for one in self._active}
        new: dict[int, Sequence[int]] = {}
        while self._waiting and len(self._active) < self.model.rows:
            answer = self._waiting.popleft()
            if not answer.finish:
                answer.row = len(self._active)
                self._active.append(answer)
                new[answer.row] = answer.spec.prompt[:-1]
        fill(self.model, new, filled, self._pass_tokens)
