"""A teacher and a student in this process that answer concurrent requests as one batch."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.engine import Engine
from tracefactory.decoding.kv_cache import CachedModel
from tracefactory.decoding.model_pair import ModelPair
from tracefactory.decoding.prompts import rollout_spec, stops_of
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.rollout import Rollout
from tracefactory.decoding.vocabulary import compare
from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.students.student import check_head


@dataclass(frozen=True)
class _Loaded:
    engine: Engine
    tokenizer: Any
    positions: int
    served: str


class InProcessPair(ModelPair):
    """Two models that decode together, loaded at the first request.

    Requests share one batch of at most `rows` traces; a trace that finishes frees its row for the next one. The passes
    run in a thread, so that they do not block the event loop. All requests must come from one event loop.
    """

    def __init__(self, teacher: Checkpoint, student: Checkpoint, rows: int, names: tuple[str, str]) -> None:
        self.teacher, self.student, self.rows, self.names = teacher, student, rows, names
        # one thread for all passes: torch creates a thread pool for every thread that calls it
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._loading = asyncio.Lock()
        self._loaded: _Loaded | None = None
        self._answers: dict[Rollout, asyncio.Future[Rollout]] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def complete(self, request: ChatRequest) -> Decoded:
        """Write one trace by the decoder that the request names.

        Raises:
            RequestFailed: when prompt and `max_tokens` exceed the context of a model.
            UserError: when a model cannot be loaded, or the two cannot decode together.
        """
        loaded = await self._load()
        spec = rollout_spec(loaded.tokenizer, request)
        if len(spec.prompt) + spec.max_tokens > loaded.positions:
            lengths = f"prompt of {len(spec.prompt)} + max_tokens {spec.max_tokens}"
            message = f"{lengths} > context of {loaded.positions} tokens"
            raise RequestFailed("context_length", message, attempts=1, retryable=False)
        started = time.monotonic()
        rollout = loaded.engine.add(spec)
        answer = self._answers[rollout] = asyncio.get_running_loop().create_future()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._run(loaded.engine))
        await answer
        return Decoded.of(rollout, loaded.served, started)

    async def close(self) -> None:
        """Cancel unfinished traces and release the models."""
        if self._stepping is not None:
            self._stepping.cancel()
            await asyncio.gather(self._stepping, return_exceptions=True)
        self._thread.shutdown()
        self._loaded = None

    async def _run(self, engine: Engine) -> None:
        """Advance the batch until no trace is left."""
        try:
            while engine.busy:
                for rollout in await asyncio.get_running_loop().run_in_executor(self._thread, engine.round):
                    self._answers.pop(rollout).set_result(rollout)
        except BaseException as error:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)
            raise

    async def _load(self) -> _Loaded:
        async with self._loading:
            if self._loaded is None:
                self._loaded = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
            return self._loaded

    def _open(self) -> _Loaded:
        tokenizers = {Role.TEACHER: load_tokenizer(self.teacher), Role.STUDENT: load_tokenizer(self.student)}
        vocabulary = compare(tokenizers[Role.TEACHER], tokenizers[Role.STUDENT], self.names)
        models = {Role.TEACHER: load_model(self.teacher), Role.STUDENT: load_model(self.student)}
        for role, model in models.items():
            check_head(model, len(tokenizers[role]))
        names = dict(zip((Role.TEACHER, Role.STUDENT), self.names, strict=True))
        cached_models = {role: CachedModel(model, self.rows, names[role]) for role, model in models.items()}
        vocabulary = vocabulary.sized(models[Role.TEACHER].get_output_embeddings().out_features)
        tokenizer = tokenizers[Role.STUDENT]
        stops = stops_of(models[Role.STUDENT].generation_config.eos_token_id, tokenizer)
        engine = Engine(cached_models, vocabulary, tokenizer, stops)
        positions = min(getattr(model.config, "max_position_embeddings", 1 << 30) for model in models.values())
        served = f"{self.names[0]} with {self.names[1]}, {vocabulary.kind} vocabularies"
        return _Loaded(engine, tokenizer, positions, served)
