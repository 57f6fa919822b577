"""Serve one checkpoint in torch: `python -m tracefactory.decoding.chat_server --checkpoint '{"model": "./folder"}'`.

It answers the chat protocol of OpenAI, without streams, and decodes all requests in flight as one batch
(`chat_batch.py`). What it does not support is refused, never ignored. Needs the extra `student`.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.core.processes import end_with_parent, report_ready
from tracefactory.decoding.chat_batch import CANCELLED, Answer, AnswerSpec, ChatBatch
from tracefactory.decoding.kv_cache import CachedModel
from tracefactory.decoding.prompts import prompt_tokens, stops_of
from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.students.student import check_head
from tracefactory.text.chat_templates import ChatTemplate, RenderError

_MOST_BYTES = 64 << 20  # of a request
_MOST_LIKELIEST = 20  # as OpenAI's
_KEYS = (1 << 64) - 1


class _Body(BaseModel):
    """A chat request; another field is refused."""

    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str = ""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1)]] = []
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=_MOST_LIKELIEST)
    n: Literal[1] = 1
    stream: Literal[False] = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("messages")
    @classmethod
    def _texts(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not all(isinstance(one.get(key), str) for one in messages for key in ("role", "content")):
            raise ValueError("every message needs a role and a content, as texts")
        return messages

    @model_validator(mode="after")
    def _likeliest_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class ChatServer:
    """Answers chat requests with one model.

    Args:
        checkpoint: the model, which is loaded here.
        rows: how many answers are written together.

    Raises:
        UserError: when the model cannot be loaded, or cannot be decoded in torch with rows of one cache.
    """

    def __init__(self, checkpoint: Checkpoint, rows: int) -> None:
        self._name = Path(checkpoint.model).name
        self._tokenizer = load_tokenizer(checkpoint)
        self._template = ChatTemplate.of_tokenizer(self._tokenizer)
        model = load_model(checkpoint)
        check_head(model, len(self._tokenizer))
        stops = stops_of(model.generation_config.eos_token_id, self._tokenizer)
        self._positions = getattr(model.config, "max_position_embeddings", sys.maxsize)
        cached = CachedModel(model, rows, self._name)
        self._batch = ChatBatch(cached, self._tokenizer, stops, checkpoint.max_batch_tokens)
        self._answers: dict[Answer, asyncio.Future[None]] = {}
        self._added = asyncio.Event()

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        return app

    async def run(self) -> None:
        """Write answers until it is cancelled. What a pass raises, such as for lack of memory, is raised."""
        loop = asyncio.get_running_loop()
        # one thread for all passes: torch creates a thread pool for every thread that calls it
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as thread:
            while True:
                await self._added.wait()
                self._added.clear()
                while self._batch.busy:
                    for answer in await loop.run_in_executor(thread, self._batch.round):
                        if (waiting := self._answers.pop(answer, None)) is not None:
                            waiting.set_result(None)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        try:
            body = _Body.model_validate_json(await request.read())
            prompt, _ = prompt_tokens(self._tokenizer, self._template, body.messages)
        except ValidationError as error:
            return _refused("; ".join(_sentences(error)))
        except RenderError as error:
            return _refused(f"the chat template of {self._name}: {error}", error.reason)
        most = body.max_tokens or max(1, self._positions - len(prompt))
        if len(prompt) + most > self._positions:
            lengths = f"prompt of {len(prompt)} + max_tokens {most}"
            return _refused(f"{lengths} > context of {self._positions} tokens", "context_length_exceeded")
        if not prompt:
            return _refused("the messages are no token under the chat template")
        answer = self._batch.add(
            AnswerSpec(
                prompt,
                most,
                body.temperature,
                body.top_p,
                (secrets.randbits(64) if body.seed is None else body.seed) & _KEYS,
                tuple(body.stop),
                body.top_logprobs if body.logprobs else None,
            )
        )
        done = self._answers[answer] = asyncio.get_running_loop().create_future()
        self._added.set()
        try:
            await done
        except asyncio.CancelledError:  # the client has gone
            self._answers.pop(answer, None)
            answer.finish = CANCELLED
            raise
        return web.Response(body=orjson.dumps(self._response(answer)), content_type="application/json")

    def _response(self, answer: Answer) -> dict[str, Any]:
        """Return a finished answer in the form of the protocol."""
        prompt, written = len(answer.spec.prompt), len(answer.tokens)
        return {
            "id": f"chatcmpl-{secrets.token_hex(8)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "logprobs": None if answer.spec.likeliest is None else {"content": self._logprobs(answer)},
                    "finish_reason": answer.finish,
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
        }

    def _logprobs(self, answer: Answer) -> list[dict[str, Any]]:
        return [
            {
                **_entry(one.text, one.logprob),
                "top_logprobs": [_entry(self._tokenizer.decode([token]), value) for token, value in one.likeliest],
            }
            for one in answer.logprobs
        ]


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _sentences(error: ValidationError) -> Iterator[str]:
    for one in error.errors():
        name = ".".join(map(str, one["loc"]))
        problem = "this server does not support it" if one["type"] == "extra_forbidden" else one["msg"]
        yield f"{name}: {problem}" if name else problem


def _refused(message: str, code: str = "") -> web.Response:
    detail = {"message": message, "type": "invalid_request_error", "code": code or None}
    return web.json_response({"error": detail}, status=400)


async def serve(checkpoint: Checkpoint, rows: int, port: int, ready_fd: int | None) -> None:
    """Load the model and serve it on a loopback port; does not return.

    Args:
        checkpoint: the model.
        rows: how many answers are written together.
        port: the port; 0 is a free one.
        ready_fd: for a parent process, the pipe on which the port is reported; None prints the address.

    Raises:
        UserError: when the model cannot be loaded.
    """
    server = ChatServer(checkpoint, rows)
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=max(128, rows)).start()
    port = runner.addresses[0][1]
    if ready_fd is not None:
        report_ready(ready_fd, port=port)
    else:
        print(f"http://127.0.0.1:{port}/v1", flush=True)
    try:
        await server.run()
    finally:
        await runner.cleanup()


def main() -> None:
    """Serve until interrupted, or until the parent exits if it passed --ready-fd."""
    parser = argparse.ArgumentParser(description="Serve one checkpoint in torch on 127.0.0.1.")
    parser.add_argument("--checkpoint", required=True, help="the fields of core.checkpoint.Checkpoint, as JSON")
    parser.add_argument("--rows", type=int, default=16, help="number of answers that are written together")
    parser.add_argument("--port", type=int, default=0, help="0 uses a free port")
    parser.add_argument("--ready-fd", type=int, help="for a parent process: pipe on which to report the port")
    arguments = parser.parse_args()
    if arguments.ready_fd is not None:
        end_with_parent()
    checkpoint = Checkpoint.model_validate_json(arguments.checkpoint)
    try:
        asyncio.run(serve(checkpoint, arguments.rows, arguments.port, arguments.ready_fd))
    except UserError as error:
        print(*error.mistakes, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
