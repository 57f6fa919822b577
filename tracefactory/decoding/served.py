"""Two vLLM servers that decode together: one drafts, the other scores the draft in one request, every decision is ours.

What the servers sample is only a guess. Each token is decided here, from the likeliest tokens that a server names for
its place and from the randomness of that place, exactly as the in-process engine decides it; so a draft's length, a
server's own randomness and its restarts change nothing. A guess that is the decided token saves a round.

A model's nucleus depends a little on tokens that its server does not name. Where a decision hangs on them (about one
token in a hundred at temperature 0.7), the server is asked for `_WIDE` of them; what is then still open is less than
the arithmetic's error and is taken as if the unnamed tokens weighed the least they can.
"""

from __future__ import annotations

import asyncio
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
from tracefactory.decoding.pace import ServedPace
from tracefactory.decoding.prompts import decoder_of, encoded_prompt, served_stops
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.run import Run, Script
from tracefactory.decoding.vocabulary import Vocabulary, compare
from tracefactory.sampling.acceptance import decide
from tracefactory.sampling.candidates import NO_TOKEN, Pools, pools_between
from tracefactory.sampling.noise import STUDENT, TEACHER, Noise
from tracefactory.serving.client import ChatClient
from tracefactory.serving.loading import load_tokenizer
from tracefactory.serving.tokens import Likeliest, TokenClient

_LIKELIEST = 20
_WIDE = 1000
_WHOLE = 1 << 30  # a score in one request: its beginning is in the cache since the last round
FLAGS = "--enable-scale-out --enable-prompt-tokens-details --max-logprobs 1024"
"""What a vLLM server of one's own must be started with."""


@dataclass(frozen=True)
class Side:
    """One of the two models: its name in the pipeline, its servers, and where its tokenizer is."""

    name: str
    client: ChatClient
    tokenizer: Checkpoint


@dataclass(frozen=True)
class _Opened:
    tokenizer: Any
    vocabulary: Vocabulary
    stops: frozenset[int]
    positions: int
    tokens: int  # not fewer than either model has, rows without a token included


@dataclass(frozen=True)
class _Place:
    """What one model says of one place; `guess` is the token that its server sampled there."""

    likeliest: Likeliest
    guess: int = NO_TOKEN

    def logprob(self, token: int) -> float:
        return next((value for known, value in self.likeliest if known == token), float("nan"))


class ServedPair:
    """Two models behind vLLM servers that decode together; as many traces at once as requests come in."""

    def __init__(self, teacher: Side, student: Side, fixed: int | None = None) -> None:
        self.sides = {Role.TEACHER: teacher, Role.STUDENT: student}
        self.tokens = {role: TokenClient(side.client) for role, side in self.sides.items()}
        self.paces: defaultdict[tuple[Role, bool], ServedPace] = defaultdict(lambda: ServedPace(fixed))
        # by writer, and whether a rule holds
        self.widened = 0  # for how many places more tokens had to be asked for
        self._opening = asyncio.Lock()
        self._opened: _Opened | None = None

    async def complete(self, request: ChatRequest) -> Decoded:
        """Write one trace by the decoder that the request names.

        Raises:
            RequestFailed: when prompt and `max_tokens` do not fit the servers, or a server finally failed.
            UserError: when a server is no vLLM, or the two models cannot decode together.
            RunError: when a server of our own cannot be kept alive.
        """
        opened = await self._open()
        prompt = encoded_prompt(opened.tokenizer, request)
        params = request.params
        if len(prompt) + params["max_tokens"] > opened.positions:
            message = f"{len(prompt)} tokens of prompt and {params['max_tokens']} more, of {opened.positions}"
            raise RequestFailed("context_length", message, attempts=1, retryable=False)
        started = time.monotonic()
        script = Script(prompt, decoder_of(request), params["seed"], params["max_tokens"])
        trace = _Trace(self, opened, Run(script, opened.vocabulary, opened.tokenizer), request.key)
        while not trace.run.finish:
            await trace.round()
        names = " with ".join(side.name for side in self.sides.values())
        return Decoded.of(trace.run, f"{names}, {opened.vocabulary.kind} vocabularies", started)

    async def close(self) -> None:
        """Nothing to end: the servers are their clients'."""

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                teacher, student = (self.sides[role] for role in (Role.TEACHER, Role.STUDENT))
                tokenizers = {
                    role: await asyncio.to_thread(load_tokenizer, side.tokenizer) for role, side in self.sides.items()
                }
                vocabulary = compare(tokenizers[Role.TEACHER], tokenizers[Role.STUDENT], (teacher.name, student.name))
                limits = await asyncio.gather(*(server_limit(side) for side in self.sides.values()))
                # models have rows of logits for no token, a few hundred at most
                tokens = 2 * max(len(one) for one in tokenizers.values())
                stops = await asyncio.to_thread(served_stops, student.tokenizer, tokenizers[Role.STUDENT])
                self._opened = _Opened(tokenizers[Role.STUDENT], vocabulary.sized(tokens), stops, min(limits), tokens)
            return self._opened


class _Trace:
    """One trace on its way."""

    def __init__(self, pair: ServedPair, opened: _Opened, run: Run, near: str) -> None:
        self.pair, self.opened, self.run, self.near = pair, opened, run, near

    async def round(self) -> None:
        """Write at least one token more."""
        run = self.run
        turn = run.script.decoder.turn(run.written)
        pace = self.pair.paces[turn.writer, turn.rule is not None]
        length = min(pace.length(), run.script.max_tokens - len(run.tokens))
        if turn.rule is not None and length == 1:  # nothing of the draft is needed to score the next place
            drafted, scored = await asyncio.gather(self._draft(turn.writer, 1, pace), self._score([], pace))
            await self._settle(turn, drafted, scored, pace)
            return
        drafted = await self._draft(turn.writer, length, pace)
        if turn.rule is None:
            for offset, place in enumerate(drafted):
                token = await self._drawn(turn.writer, place)
                draw = 1 if turn.writer is Role.TEACHER else 0
                if not self._write(turn, token, draw, {turn.writer: place}, pace, last=offset + 1 == len(drafted)):
                    return
        else:
            likely = self._pools(Role.TEACHER, drafted)[0].draw(self._noise(range(len(drafted))), TEACHER)
            held = next((i for i, place in enumerate(drafted) if place.guess != likely[i]), len(drafted) - 1)
            drafted = drafted[: held + 1]  # behind it the draft goes on from a token that cannot be
            scored = await self._score([place.guess for place in drafted[:-1]], pace)
            await self._settle(turn, drafted, scored, pace)

    async def _settle(self, turn: Turn, drafted: Sequence[_Place], scored: Sequence[_Place], pace: ServedPace) -> None:
        """Decide the places of a draft by the rule, up to the first token that is not the guess."""
        decided = self._decided(turn, drafted, scored)
        for offset, (teacher, student) in enumerate(zip(drafted, scored, strict=True)):
            found = {Role.TEACHER: teacher, Role.STUDENT: student}
            token, draw, certain = (int(one[offset]) for one in decided)
            if not certain:
                self.pair.widened += 1
                wider = await asyncio.gather(*(self._wider(role, place) for role, place in found.items()))
                found = dict(zip(found, wider, strict=True))
                token, draw, _ = (int(one[0]) for one in self._decided(turn, *([one] for one in found.values())))
            if not self._write(turn, token, draw, found, pace, last=offset + 1 == len(drafted)):
                return

    def _decided(self, turn: Turn, teacher: Sequence[_Place], student: Sequence[_Place]) -> tuple[Any, Any, Any]:
        """Return, for the places that come next, the tokens, by which draw, and whether that is certain."""
        rules = [turn.rule] * len(teacher)
        ours, theirs = self._pools(Role.STUDENT, student), self._pools(Role.TEACHER, teacher)
        noise = self._noise(range(len(teacher)))
        least, most = (decide(rules, one, other, noise) for one, other in zip(theirs, ours, strict=True))  # type: ignore[arg-type]
        return least.tokens, least.draws, least.same(most)

    def _write(
        self, turn: Turn, token: int, draw: int, found: dict[Role, _Place], pace: ServedPace, *, last: bool
    ) -> bool:
        """Write a decided token; tell whether the next of the draft still stands."""
        run, guess = self.run, found[turn.writer].guess
        run.push([token])
        logprobs = {role: place.logprob(token) for role, place in found.items()}
        writer = Role.TEACHER if draw else Role.STUDENT
        run.write(token, writer, draw=draw, logprobs=logprobs, stops=self.opened.stops)
        pace.saw(right=token == guess)
        if run.finish or last or token != guess or token in self.opened.vocabulary.translated:
            return False
        return run.script.decoder.turn(run.written) == turn

    async def _drawn(self, role: Role, place: _Place) -> int:
        """Return a model's own draw at the next place."""
        stream = TEACHER if role is Role.TEACHER else STUDENT
        for wide in (False, True):
            if wide:
                self.pair.widened += 1
                place = await self._wider(role, place)
            least, most = (int(one.draw(self._noise([0]), stream)[0]) for one in self._pools(role, [place]))
            if least == most:
                break
        if least == NO_TOKEN:  # nobody else can say what comes here
            proposable = self.opened.vocabulary.proposable
            self.pair.widened += 1
            place = await self._wider(role, place)
            least = next((token for token, _ in place.likeliest if proposable[token]), NO_TOKEN)
            if least == NO_TOKEN:
                message = f"none of the {len(place.likeliest)} likeliest tokens is one that both models have"
                raise RequestFailed("no_common_token", message, attempts=1, retryable=False)
        return least

    async def _draft(self, role: Role, length: int, pace: ServedPace) -> list[_Place]:
        """Let a server go on with up to `length` tokens."""
        started = time.perf_counter()
        stream = TEACHER if role is Role.TEACHER else STUDENT
        sampling = self.run.script.decoder.sampling(role)
        drawn = await self.pair.tokens[role].draw(
            self.run.sequences[role],
            max_tokens=length,
            temperature=0.0,
            stop_token_ids=sorted(self.opened.stops),
            likeliest=max(_LIKELIEST, sampling.top_k),
            near=self.near,
            extra={
                "ignore_eos": True,
                # for the plugin `noise`, with which a server guesses what will be decided here
                "extra_args": {
                    "tracefactory_noise": {
                        "key": self.run.script.key,
                        "position": len(self.run.tokens),
                        "stream": stream,
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "top_k": sampling.top_k,
                    }
                },
            },
        )
        pace.drafted(length, time.perf_counter() - started)
        return [_Place(row.likeliest, row.token_id) for row in drawn.rows]

    async def _score(self, guesses: Sequence[int], pace: ServedPace) -> list[_Place]:
        """Return what the student says of the next place, and of that behind each guess."""
        started = time.perf_counter()
        sequence = self.run.sequences[Role.STUDENT]
        scored = await self.pair.tokens[Role.STUDENT].score(
            [*sequence, *guesses],
            start=len(sequence),
            likeliest=self._asked(Role.STUDENT),
            chunk=_WHOLE if self.run.tokens else 512,
            near=self.near,
        )
        pace.scored(time.perf_counter() - started)
        return [_Place(one) for one in (*(row.likeliest for row in scored.rows), scored.next)]

    async def _wider(self, role: Role, place: _Place) -> _Place:
        """Return more of what a model says of the next place, as far as its server allows."""
        try:
            drawn = await self.pair.tokens[role].draw(
                self.run.sequences[role], max_tokens=1, temperature=0.0, likeliest=_WIDE, near=self.near
            )
        except RequestFailed as failed:
            if failed.kind != "bad_request":
                raise
            return place  # the server names fewer at most
        return _Place(drawn.rows[0].likeliest, place.guess)

    def _asked(self, role: Role) -> int:
        return max(_LIKELIEST, self.run.script.decoder.sampling(role).top_k)

    def _pools(self, role: Role, places: Sequence[_Place]) -> tuple[Pools, Pools]:
        samplings = [self.run.script.decoder.sampling(role)] * len(places)
        allowed = self.opened.vocabulary.proposable if role is Role.TEACHER else None
        return pools_between([place.likeliest for place in places], samplings, self.opened.tokens, allowed)

    def _noise(self, offsets: Sequence[int]) -> Noise:
        keys = np.full(len(offsets), self.run.script.key, dtype=np.uint64)
        return Noise(keys, len(self.run.tokens) + np.array(offsets, dtype=np.int64))


async def server_limit(side: Side) -> int:
    """Return how many tokens a server takes; a server that is no vLLM is the user's mistake."""

    def read(answer: Any) -> tuple[str, int | None]:
        listed = {model["id"]: model for model in answer["data"]}
        model = listed.get(side.client.spec.model) or answer["data"][0]
        return str(model.get("owned_by")), model.get("max_model_len")

    owner, limit = await side.client.ask("/v1/models", None, read)
    if owner != "vllm" or limit is None:
        raise UserError(
            f"{side.name}: decoding together needs servers of vLLM, and this one says it is {owner!r}; "
            f"start `vllm serve` with {FLAGS}"
        )
    return int(limit)
