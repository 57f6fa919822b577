"""Decoding with two vLLM servers: one drafts, the other scores the draft in one request, and decisions are made here.

Tokens that a server samples are only guesses. Each token is decided in this process, from the likeliest tokens that the
servers return for its position and from the random numbers of that position, exactly as the in-process engine does. The
result therefore does not depend on draft lengths, on a server's own sampling or on restarts. A correct guess saves a
round.

A model's nucleus depends slightly on tokens that its server does not return. Where that could change a decision (about
one token in a hundred at temperature 0.7), `_WIDE` tokens are requested. What remains undetermined is below the
rounding error, and the lower bound of the unknown tokens' weight is used.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoding.decoder import Role, Turn
from tracefactory.decoding.draft_schedule import ServedDraftScheduler
from tracefactory.decoding.model_pair import ModelPair
from tracefactory.decoding.prompts import rollout_spec, served_stops
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.rollout import Rollout
from tracefactory.decoding.vocabulary import Vocabulary, compare
from tracefactory.sampling.acceptance import decide
from tracefactory.sampling.candidates import NO_TOKEN, Candidates, candidate_bounds
from tracefactory.sampling.noise import STUDENT, TEACHER, Noise
from tracefactory.serving.client import ChatClient
from tracefactory.serving.loading import load_tokenizer
from tracefactory.serving.tokens import Likeliest, TokenClient

_LIKELIEST = 20
_WIDE = 1000
_ONE_REQUEST = 1 << 30  # chunk size for scoring in one request: the last round cached the prefix
FLAGS = "--enable-scale-out --enable-prompt-tokens-details --max-logprobs 1024"
"""Flags that a user's own vLLM server must be started with."""


@dataclass(frozen=True)
class ServedModel:
    """One of the two models: its name in the pipeline, the client of its servers, and where its tokenizer is."""

    name: str
    client: ChatClient
    tokenizer: Checkpoint


@dataclass(frozen=True)
class _Setup:
    tokenizer: Any
    vocabulary: Vocabulary
    stops: frozenset[int]
    positions: int
    tokens: int  # an upper bound of either model's number of logits


@dataclass(frozen=True)
class _Prediction:
    """One model's likeliest tokens at one position; `guess` is the token that its server sampled."""

    likeliest: Likeliest
    guess: int = NO_TOKEN


class ServedPair(ModelPair):
    """Two models behind vLLM servers that decode together.

    The callers limit how many traces run concurrently, and own the clients.
    """

    def __init__(self, teacher: ServedModel, student: ServedModel, fixed: int | None = None) -> None:
        self.models = {Role.TEACHER: teacher, Role.STUDENT: student}
        self.clients = {role: TokenClient(model.client) for role, model in self.models.items()}
        # by the writer, and whether the turn has a rule
        self.schedulers: defaultdict[tuple[Role, bool], ServedDraftScheduler] = defaultdict(
            lambda: ServedDraftScheduler(fixed)
        )
        self.widened = 0  # positions for which more candidates were requested
        self._setup_lock = asyncio.Lock()
        self._setup: _Setup | None = None

    async def complete(self, request: ChatRequest) -> Decoded:
        """Write one trace by the decoder that the request names.

        Raises:
            RequestFailed: when prompt and `max_tokens` exceed a server's context, or a request finally failed.
            UserError: when a server is not vLLM, or the two models cannot decode together.
            RunError: when a managed server cannot be kept running.
        """
        setup = await self._open()
        spec = rollout_spec(setup.tokenizer, request)
        if len(spec.prompt) + spec.max_tokens > setup.positions:
            message = (
                f"prompt of {len(spec.prompt)} + max_tokens {spec.max_tokens} > context of {setup.positions} tokens"
            )
            raise RequestFailed("context_length", message, attempts=1, retryable=False)
        started = time.monotonic()
        trace = _ServedRollout(self, setup, Rollout(spec, setup.vocabulary, setup.tokenizer), request.key)
        while not trace.rollout.finish:
            await trace.round()
        names = " with ".join(model.name for model in self.models.values())
        return Decoded.of(trace.rollout, f"{names}, {setup.vocabulary.kind} vocabularies", started)

    async def _open(self) -> _Setup:
        async with self._setup_lock:
            if self._setup is None:
                teacher, student = (self.models[role] for role in (Role.TEACHER, Role.STUDENT))
                tokenizers = {
                    role: await asyncio.to_thread(load_tokenizer, model.tokenizer)
                    for role, model in self.models.items()
                }
                vocabulary = compare(tokenizers[Role.TEACHER], tokenizers[Role.STUDENT], (teacher.name, student.name))
                limits = await asyncio.gather(*(server_limit(model) for model in self.models.values()))
                # models have up to a few hundred logits more than tokens
                tokens = 2 * max(len(tokenizer) for tokenizer in tokenizers.values())
                stops = await asyncio.to_thread(served_stops, student.tokenizer, tokenizers[Role.STUDENT])
                self._setup = _Setup(tokenizers[Role.STUDENT], vocabulary.sized(tokens), stops, min(limits), tokens)
            return self._setup


class _ServedRollout:
    """One trace while it is decoded."""

    def __init__(self, pair: ServedPair, setup: _Setup, rollout: Rollout, near: str) -> None:
        self.pair, self.setup, self.rollout, self.near = pair, setup, rollout, near

    async def round(self) -> None:
        """Write at least one more token."""
        rollout = self.rollout
        turn = rollout.spec.decoder.turn(rollout.written)
        scheduler = self.pair.schedulers[turn.writer, turn.rule is not None]
        length = min(scheduler.length(), rollout.spec.max_tokens - len(rollout.tokens))
        if turn.rule is not None and length == 1:  # scoring the next position does not need the draft
            drafted, scored = await asyncio.gather(self._draft(turn.writer, 1, scheduler), self._score([], scheduler))
            await self._decide_draft(turn, drafted, scored, scheduler)
            return
        drafted = await self._draft(turn.writer, length, scheduler)
        if turn.rule is None:
            for offset, prediction in enumerate(drafted):
                token = await self._sample_token(turn.writer, prediction)
                draw = 1 if turn.writer is Role.TEACHER else 0
                if not self._write(
                    turn, token, draw, {turn.writer: prediction}, scheduler, last=offset + 1 == len(drafted)
                ):
                    return
        else:
            likely = self._bounds(Role.TEACHER, drafted)[0].draw(self._noise(range(len(drafted))), TEACHER)
            agreed = next(
                (i for i, prediction in enumerate(drafted) if prediction.guess != likely[i]), len(drafted) - 1
            )
            drafted = drafted[: agreed + 1]  # the rest of the draft follows a token that will not be decided
            scored = await self._score([prediction.guess for prediction in drafted[:-1]], scheduler)
            await self._decide_draft(turn, drafted, scored, scheduler)

    async def _decide_draft(
        self, turn: Turn, drafted: Sequence[_Prediction], scored: Sequence[_Prediction], scheduler: ServedDraftScheduler
    ) -> None:
        """Decide the positions of a draft by the rule, up to the first token that differs from the guess."""
        decided = self._decided(turn, drafted, scored)
        for offset, (teacher, student) in enumerate(zip(drafted, scored, strict=True)):
            found = {Role.TEACHER: teacher, Role.STUDENT: student}
            token, draw, certain = (int(column[offset]) for column in decided)
            if not certain:
                self.pair.widened += 1
                wider = await asyncio.gather(
                    *(self._more_candidates(role, prediction) for role, prediction in found.items())
                )
                found = dict(zip(found, wider, strict=True))
                decided_again = self._decided(turn, [found[Role.TEACHER]], [found[Role.STUDENT]])
                token, draw, _ = (int(column[0]) for column in decided_again)
            if not self._write(turn, token, draw, found, scheduler, last=offset + 1 == len(drafted)):
                return

    def _decided(
        self, turn: Turn, teacher: Sequence[_Prediction], student: Sequence[_Prediction]
    ) -> tuple[Any, Any, Any]:
        """Return the tokens of the next positions, which draw each is, and whether the decision is certain."""
        rules = [turn.rule] * len(teacher)
        noise = self._noise(range(len(teacher)))
        bounds = zip(self._bounds(Role.TEACHER, teacher), self._bounds(Role.STUDENT, student), strict=True)
        lower, upper = (decide(rules, *candidates, noise) for candidates in bounds)  # type: ignore[arg-type]
        return lower.tokens, lower.draws, lower.matches(upper)

    def _write(
        self,
        turn: Turn,
        token: int,
        draw: int,
        found: dict[Role, _Prediction],
        scheduler: ServedDraftScheduler,
        *,
        last: bool,
    ) -> bool:
        """Write a decided token; return whether the rest of the draft is still valid."""
        rollout, guess = self.rollout, found[turn.writer].guess
        rollout.push([token])
        logprobs = {
            role: next((value for known, value in prediction.likeliest if known == token), math.nan)
            for role, prediction in found.items()
        }
        writer = Role.TEACHER if draw else Role.STUDENT
        rollout.write(token, writer, draw=draw, logprobs=logprobs, stops=self.setup.stops)
        scheduler.record_guess(correct=token == guess)
        if rollout.finish or last or token != guess or token in self.setup.vocabulary.translated:
            return False
        return rollout.spec.decoder.turn(rollout.written) == turn

    async def _sample_token(self, role: Role, prediction: _Prediction) -> int:
        """Return a model's own draw at the next position."""
        stream = TEACHER if role is Role.TEACHER else STUDENT
        for wide in (False, True):
            if wide:
                self.pair.widened += 1
                prediction = await self._more_candidates(role, prediction)
            bounds = self._bounds(role, [prediction])
            token, other = (int(candidates.draw(self._noise([0]), stream)[0]) for candidates in bounds)
            if token == other:
                break
        if token == NO_TOKEN:  # no other model can provide this token
            proposable = self.setup.vocabulary.proposable
            self.pair.widened += 1
            prediction = await self._more_candidates(role, prediction)
            token = next((known for known, _ in prediction.likeliest if proposable[known]), NO_TOKEN)
            if token == NO_TOKEN:
                message = f"none of the {len(prediction.likeliest)} likeliest tokens is in both vocabularies"
                raise RequestFailed("no_common_token", message, attempts=1, retryable=False)
        return token

    async def _draft(self, role: Role, length: int, scheduler: ServedDraftScheduler) -> list[_Prediction]:
        """Let a server draft up to `length` tokens."""
        started = time.perf_counter()
        stream = TEACHER if role is Role.TEACHER else STUDENT
        sampling = self.rollout.spec.decoder.sampling(role)
        drawn = await self.pair.clients[role].draw(
            self.rollout.sequences[role],
            max_tokens=length,
            temperature=0.0,
            stop_token_ids=sorted(self.setup.stops),
            likeliest=max(_LIKELIEST, sampling.top_k),
            near=self.near,
            extra={
                "ignore_eos": True,
                # for the plugin `noise`: with these numbers the server samples what will be decided here
                "extra_args": {
                    "tracefactory_noise": {
                        "key": self.rollout.spec.key,
                        "position": len(self.rollout.tokens),
                        "stream": stream,
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "top_k": sampling.top_k,
                    }
                },
            },
        )
        scheduler.record_draft(length, time.perf_counter() - started)
        return [_Prediction(row.likeliest, row.token_id) for row in drawn.rows]

    async def _score(self, guesses: Sequence[int], scheduler: ServedDraftScheduler) -> list[_Prediction]:
        """Return the student's predictions for the next position and for the position after each guess."""
        started = time.perf_counter()
        sequence = self.rollout.sequences[Role.STUDENT]
        scored = await self.pair.clients[Role.STUDENT].score(
            [*sequence, *guesses],
            start=len(sequence),
            likeliest=max(_LIKELIEST, self.rollout.spec.decoder.sampling(Role.STUDENT).top_k),
            chunk=_ONE_REQUEST if self.rollout.tokens else 512,
            near=self.near,
        )
        scheduler.record_score(time.perf_counter() - started)
        return [_Prediction(likeliest) for likeliest in (*(row.likeliest for row in scored.rows), scored.next)]

    async def _more_candidates(self, role: Role, prediction: _Prediction) -> _Prediction:
        """Return more candidates of a model for the next position, if its server allows it."""
        try:
            drawn = await self.pair.clients[role].draw(
                self.rollout.sequences[role], max_tokens=1, temperature=0.0, likeliest=_WIDE, near=self.near
            )
        except RequestFailed as failed:
            if failed.kind != "bad_request":
                raise
            return prediction  # the server's limit is lower
        return _Prediction(drawn.rows[0].likeliest, prediction.guess)

    def _bounds(self, role: Role, predictions: Sequence[_Prediction]) -> tuple[Candidates, Candidates]:
        samplings = [self.rollout.spec.decoder.sampling(role)] * len(predictions)
        allowed = self.setup.vocabulary.proposable if role is Role.TEACHER else None
        return candidate_bounds(
            [prediction.likeliest for prediction in predictions], samplings, self.setup.tokens, allowed
        )

    def _noise(self, offsets: Sequence[int]) -> Noise:
        keys = np.full(len(offsets), self.rollout.spec.key, dtype=np.uint64)
        return Noise(keys, len(self.rollout.tokens) + np.array(offsets, dtype=np.int64))


async def server_limit(served: ServedModel) -> int:
    """Return the context length of a server.

    Raises:
        UserError: when the server is not vLLM.
    """
    listed = await served.client.ask("/v1/models", None, lambda answer: {one["id"]: one for one in answer["data"]})
    model: Any = listed.get(served.client.spec.model) or next(iter(listed.values()), {})
    owner, limit = model.get("owned_by"), model.get("max_model_len")
    if owner != "vllm" or limit is None:
        raise UserError(
            f"{served.name}: decoding by two models needs vLLM servers, but this server reports {owner!r}; "
            f"start `vllm serve` with {FLAGS}"
        )
    return int(limit)
