"""One vLLM server that holds both models and decodes by itself: one request is one trace.

The plugin `vllm_fused.py` runs in the server; here a request is made for it, and its answer is read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from typing import Any

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoding.decoder import Role, Written
from tracefactory.decoding.prompts import decoder_of, encoded_prompt, served_stops
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.run import Run, Script
from tracefactory.decoding.served import Side, server_limit
from tracefactory.decoding.vocabulary import Vocabulary, compare
from tracefactory.serving.loading import load_tokenizer
from tracefactory.serving.tokens import Drawn, TokenClient, TokenRow
from tracefactory.serving.vllm.plugins.fused_decoding import ARGUMENT, NO_DRAFT

_LIKELIEST = 2  # so many that the entry which holds the teacher's logarithm is among them, whatever the rank


class FusedPair:
    """A student that vLLM serves with its teacher as draft model; `room` is how many tokens a draft has."""

    def __init__(self, student: Side, teacher: tuple[str, Checkpoint], room: int) -> None:
        self.side, self.teacher, self.room = student, teacher, room
        self._opening = asyncio.Lock()
        self._opened: tuple[Any, Vocabulary, frozenset[int], int] | None = None

    async def complete(self, request: ChatRequest) -> Decoded:
        """Write one trace by the decoder that the request names.

        Raises:
            RequestFailed: when prompt and `max_tokens` do not fit, the server finally failed, or had to put the trace
                aside for want of memory.
            UserError: when the vocabularies differ.
            RunError: when the server does not run the plugin, or cannot be kept alive.
        """
        tokenizer, vocabulary, stops, positions = await self._open()
        prompt = encoded_prompt(tokenizer, request)
        most = request.params["max_tokens"]
        if len(prompt) + most + self.room + 1 > positions:  # near its end the engine drafts no more
            message = f"{len(prompt)} tokens of prompt, {most} more and room for a draft of {self.room}, of {positions}"
            raise RequestFailed("context_length", message, attempts=1, retryable=False)
        started = time.monotonic()
        run = Run(Script(prompt, decoder_of(request), request.params["seed"], most), vocabulary, tokenizer)
        drawn = await self._drawn(run, stops, len(tokenizer), request.key)
        if drawn.rows[0].token_id != prompt[-1]:
            raise RunError(f"{self.side.name}: the server does not run the plugin for decoding by two models")
        for row in drawn.rows[1:]:
            if row.rank == NO_DRAFT:
                raise RequestFailed("preempted", "the server put the trace aside", attempts=1, retryable=True)
            _write(run, row, stops)
        if not run.finish:
            raise RequestFailed("bad_response", "the server stopped before the trace ended", attempts=1, retryable=True)
        names = f"{self.teacher[0]} with {self.side.name}"
        return Decoded.of(run, f"{names}, {vocabulary.kind} vocabularies, one engine", started)

    async def close(self) -> None:
        """Nothing to end: the server is its client's."""

    async def _drawn(self, run: Run, stops: frozenset[int], tokens: int, near: str) -> Drawn:
        decoder, prompt = run.script.decoder, run.script.prompt
        rule = decoder.turn(Written(run.script.key)).rule
        assert rule is not None
        told = {
            "key": run.script.key,
            "first": prompt[-1],
            "teacher": dataclasses.asdict(decoder.sampling(Role.TEACHER)),
            "student": dataclasses.asdict(decoder.sampling(Role.STUDENT)),
            "p": rule.p,
            "draws": rule.draws,
            "tokens": tokens,
        }
        return await TokenClient(self.side.client).draw(
            prompt[:-1],
            max_tokens=run.script.max_tokens + 1,
            temperature=0.0,
            stop_token_ids=sorted(stops),
            likeliest=_LIKELIEST,
            near=near,
            extra={"ignore_eos": True, "extra_args": {ARGUMENT: told}},
        )

    async def _open(self) -> tuple[Any, Vocabulary, frozenset[int], int]:
        async with self._opening:
            if self._opened is None:
                specs = (self.teacher[1], self.side.tokenizer)
                teacher, student = [await asyncio.to_thread(load_tokenizer, spec) for spec in specs]
                vocabulary = compare(teacher, student, (self.teacher[0], self.side.name))
                if vocabulary.kind != "identical":
                    raise UserError(
                        f"{self.teacher[0]} and {self.side.name} differ in special tokens, which one engine cannot "
                        "translate: leave out `servers: one`"
                    )
                stops = await asyncio.to_thread(served_stops, self.side.tokenizer, student)
                self._opened = (student, vocabulary, stops, await server_limit(self.side))
            return self._opened


def _write(run: Run, row: TokenRow, stops: frozenset[int]) -> None:
    """Write one token of an answer; see `vllm_fused.columns` for what it says."""
    draw = row.rank - 1
    teacher = next((value for token, value in row.likeliest if token != row.token_id), math.nan)
    writer = Role.TEACHER if draw else Role.STUDENT
    run.write(row.token_id, writer, draw=draw, logprobs={Role.STUDENT: row.logprob, Role.TEACHER: teacher}, stops=stops)
