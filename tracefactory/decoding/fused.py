"""Decoding inside one vLLM server that holds both models: one request is one trace.

The plugin `fused_decoding.py` runs in the server. This module builds its requests and reads its responses.
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
from tracefactory.decoding.decoder import PartialTrace, Role
from tracefactory.decoding.model_pair import ModelPair
from tracefactory.decoding.prompts import rollout_spec, served_stops
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.rollout import Rollout
from tracefactory.decoding.served import ServedModel, server_limit
from tracefactory.decoding.vocabulary import Vocabulary, compare
from tracefactory.serving.loading import load_tokenizer
from tracefactory.serving.tokens import Drawn, TokenClient
from tracefactory.serving.vllm.plugins.fused_decoding import ARGUMENT, NO_DRAFT

_LIKELIEST = 2  # enough to include the entry with the teacher's log-probability, whatever its rank


class FusedPair(ModelPair):
    """A student that vLLM serves with the teacher as its draft model, with drafts of `draft_length` tokens.

    The caller owns the client.
    """

    def __init__(self, student: ServedModel, teacher: tuple[str, Checkpoint], draft_length: int) -> None:
        self.student, self.teacher, self.draft_length = student, teacher, draft_length
        self._setup_lock = asyncio.Lock()
        self._setup: tuple[Any, Vocabulary, frozenset[int], int] | None = None

    async def complete(self, request: ChatRequest) -> Decoded:
        """Write one trace by the decoder that the request names.

        Raises:
            RequestFailed: when prompt and `max_tokens` exceed the context, the request finally failed, or the server
                preempted the trace for lack of memory.
            UserError: when the vocabularies differ.
            RunError: when the server does not run the plugin, or cannot be kept running.
        """
        tokenizer, vocabulary, stops, positions = await self._open()
        spec = rollout_spec(tokenizer, request)
        prompt, max_tokens = spec.prompt, spec.max_tokens
        # near the end of the context vLLM stops drafting, so a whole draft must fit
        if len(prompt) + max_tokens + self.draft_length + 1 > positions:
            lengths = f"prompt of {len(prompt)} + max_tokens {max_tokens} + draft of {self.draft_length}"
            message = f"{lengths} > context of {positions} tokens"
            raise RequestFailed("context_length", message, attempts=1, retryable=False)
        started = time.monotonic()
        rollout = Rollout(spec, vocabulary, tokenizer)
        drawn = await self._drawn(rollout, stops, len(tokenizer), request.key)
        if drawn.rows[0].token_id != prompt[-1]:
            raise RunError(f"{self.student.name}: the server does not run the plugin for decoding by two models")
        for row in drawn.rows[1:]:
            if row.rank == NO_DRAFT:
                raise RequestFailed("preempted", "the server preempted the trace", attempts=1, retryable=True)
            # `fused_decoding.columns` describes the fields of a row
            draw = row.rank - 1
            teacher = next((value for token, value in row.likeliest if token != row.token_id), math.nan)
            logprobs = {Role.STUDENT: row.logprob, Role.TEACHER: teacher}
            writer = Role.TEACHER if draw else Role.STUDENT
            rollout.write(row.token_id, writer, draw=draw, logprobs=logprobs, stops=stops)
        if not rollout.finish:
            raise RequestFailed("bad_response", "the server stopped before the trace ended", attempts=1, retryable=True)
        names = f"{self.teacher[0]} with {self.student.name}"
        return Decoded.of(rollout, f"{names}, {vocabulary.kind} vocabularies, one engine", started)

    async def _drawn(self, rollout: Rollout, stops: frozenset[int], tokens: int, near: str) -> Drawn:
        decoder, prompt = rollout.spec.decoder, rollout.spec.prompt
        rule = decoder.turn(PartialTrace(rollout.spec.key)).rule
        if rule is None:
            raise UserError(f"the decoder {decoder.name!r} has no acceptance rule, which `servers: one` requires")
        options = {
            "key": rollout.spec.key,
            "first": prompt[-1],
            "teacher": dataclasses.asdict(decoder.sampling(Role.TEACHER)),
            "student": dataclasses.asdict(decoder.sampling(Role.STUDENT)),
            "p": rule.p,
            "draws": rule.draws,
            "tokens": tokens,
        }
        return await TokenClient(self.student.client).draw(
            prompt[:-1],
            max_tokens=rollout.spec.max_tokens + 1,
            temperature=0.0,
            stop_token_ids=sorted(stops),
            likeliest=_LIKELIEST,
            near=near,
            extra={"ignore_eos": True, "extra_args": {ARGUMENT: options}},
        )

    async def _open(self) -> tuple[Any, Vocabulary, frozenset[int], int]:
        async with self._setup_lock:
            if self._setup is None:
                specs = (self.teacher[1], self.student.tokenizer)
                teacher, student = [await asyncio.to_thread(load_tokenizer, spec) for spec in specs]
                vocabulary = compare(teacher, student, (self.teacher[0], self.student.name))
                if vocabulary.kind != "identical":
                    raise UserError(
                        f"{self.teacher[0]} and {self.student.name} have different special tokens, which one engine "
                        "cannot translate: remove `servers: one`"
                    )
                stops = await asyncio.to_thread(served_stops, self.student.tokenizer, student)
                self._setup = (student, vocabulary, stops, await server_limit(self.student))
            return self._setup
