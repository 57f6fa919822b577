"""What tests of batches share: a runner over a real request store, asked as the worker asks it.

    python -m tests.unit.models.batch_harness ROOT URL PROTOCOL COUNT [STEP]

asks COUNT requests and kills itself with `os._exit(9)` at the named step.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tracefactory.core.environment import Environment
from tracefactory.core.model import MODELS, ChatRequest, Completion, RequestFailed
from tracefactory.serving.batches.apis import api_of
from tracefactory.serving.batches.fireworks import FireworksBatches
from tracefactory.serving.batches.ledger import Ledger
from tracefactory.serving.batches.runner import BatchRunner
from tracefactory.serving.batches.tending import Times
from tracefactory.serving.client import ChatClient
from tracefactory.store.requests import RequestStore

FAST = Times(quiet=0.05, first_poll=0.05, longest_poll=0.2, settle=0.3, again=0.05)
FURTHER = 1000
FireworksBatches.ready_s = 0.05
SPECS: dict[str, dict[str, Any]] = {
    "openai": {"use": "openai", "path": "/v1"},
    "anthropic": {"use": "anthropic", "path": "/v1", "api_key": ""},
    "gemini": {"use": "openai", "path": "/v1beta/openai", "batch": {"protocol": "gemini"}},
    "fireworks": {
        "use": "openai",
        "path": "/inference/v1",
        "batch": {"protocol": "fireworks", "account": "acme"},
    },
}


def spec_of(url: str, protocol: str = "openai", **changes: Any) -> Any:
    """Return a model at a fake server; `url` ends in /v1."""
    given = dict(SPECS[protocol])
    base_url = url.removesuffix("/v1") + given.pop("path")
    batch = {**given.pop("batch", {}), **changes.pop("batch", {})}
    use = given.pop("use")
    fields = {"use": use, "model": "fake", "base_url": base_url, "retries": 3, **given, **changes, "batch": batch}
    return MODELS.get(use).model_validate(fields)


def requests_of(spec: Any, count: int, start: int = 0) -> list[ChatRequest]:
    identity = spec.identity(Environment())
    return [
        ChatRequest(
            model_identity=identity,
            messages=({"role": "user", "content": f"What is {number} + 3?"},),
            params={"max_tokens": 200, "temperature": 0.5},
            near=f"p{number}",
        )
        for number in range(start, start + count)
    ]


class Asking:
    """Asks a runner and stores what it answers, as the worker does."""

    def __init__(self, root: Path, spec: Any, times: Times = FAST) -> None:
        self.store = RequestStore(root)
        self.root, self.spec = root, spec
        self.online = ChatClient.connect(spec, root, Environment())
        api, place = api_of(spec, Environment())
        self.ledger = Ledger(root)
        self.runner = BatchRunner(spec, spec.batching, api, place, self.ledger, self, self.online, "run", times)
        self.kept: list[str] = []  # without anybody who waited

    async def ask(self, requests: list[ChatRequest]) -> list[Any]:
        """Return a completion or an exception for every request that is not stored."""
        stored = self.store.get([one.key for one in requests])
        missing = [one for one in requests if one.key not in stored]
        return await asyncio.gather(*map(self._pay, missing), return_exceptions=True)

    async def _pay(self, request: ChatRequest) -> Completion:
        completion = await self.runner.complete(request)
        await self._put(request, completion)
        return completion

    async def _put(self, request: ChatRequest, completion: Completion) -> None:
        record = {"request": request.model_dump(mode="json"), "completion": completion.model_dump(mode="json")}
        await self.store.put(request.key, {**record, "cost": 0.0, "run": "run"}, request.near)

    def stored(self, keys: Any) -> Any:
        return self.store.get(keys)

    def present(self, keys: Any) -> set[str]:
        return self.store.present(keys)

    async def keep(self, request: ChatRequest, completion: Completion) -> None:
        self.kept.append(request.key)
        await self._put(request, completion)

    async def sync(self) -> None:
        await self.store.sync()

    async def close(self) -> None:
        try:
            await self.runner.close()
        finally:
            await self.online.close()
            self.store.close()


@asynccontextmanager
async def asking(root: Path, spec: Any, times: Times = FAST) -> Any:
    """Yield an `Asking`, which is closed in the end."""
    one = Asking(root, spec, times)
    try:
        yield one
    finally:
        await one.close()


def failures(outcomes: list[Any]) -> list[str]:
    """Return the kinds of the failures among outcomes; anything but a failed request is raised."""
    found = []
    for outcome in outcomes:
        if isinstance(outcome, RequestFailed):
            found.append(outcome.kind)
        elif isinstance(outcome, BaseException):
            raise outcome
    return found


STEPS = (
    "before the requests file",
    "before the intent",
    "after the intent",
    "before the upload",
    "after the upload",
    "before the file id",
    "before the create",
    "after the create",
    "after the batch id",
    "before the end is written",
    "after the end is written",
    "before the first put",
    "after a few puts",
    "after all puts",
    "before the receipt",
    "after the receipt",
    "during the deletion",
    "after the deletion",
)


def die_at(step: str, asked: Asking) -> None:
    """Make the process end at a step."""
    ledger, api = asked.ledger, asked.runner.api
    put, counts = asked.store.put, {"puts": 0}

    def wrap(owner: Any, name: str, before: str = "", after: str = "", when: Any = lambda *args: True) -> None:
        inner = getattr(owner, name)

        def check(label: str, *arguments: Any) -> None:
            if label and step == label and when(*arguments):
                os._exit(9)

        async def asynchronous(*arguments: Any) -> Any:
            check(before, *arguments)
            found = await inner(*arguments)
            check(after, *arguments)
            return found

        def plain(*arguments: Any) -> Any:
            check(before, *arguments)
            found = inner(*arguments)
            check(after, *arguments)
            return found

        setattr(owner, name, asynchronous if asyncio.iscoroutinefunction(inner) else plain)

    async def counted(*arguments: Any) -> None:
        if step == "before the first put":
            os._exit(9)
        await put(*arguments)
        counts["puts"] += 1
        if step == "after a few puts" and counts["puts"] == 3:
            os._exit(9)

    asked.store.put = counted  # type: ignore[method-assign]
    wrap(ledger, "begin", "before the requests file")
    wrap(ledger, "write", "before the intent", "after the intent", lambda one: one.state == "intent" and not one.file)
    wrap(ledger, "write", "before the file id", "", lambda one: one.state == "intent" and bool(one.file))
    wrap(ledger, "write", "", "after the batch id", lambda one: one.state == "submitted")
    wrap(ledger, "write", "before the end is written", "after the end is written", lambda one: one.state == "ended")
    wrap(ledger, "write", "before the receipt", "after the receipt", lambda one: one.state == "stored")
    wrap(ledger, "write", "", "after the deletion", lambda one: one.deleted)
    wrap(api, "upload", "before the upload", "after the upload")
    wrap(api, "create", "before the create", "after the create")
    wrap(api, "delete", "", "during the deletion")
    wrap(asked.store, "sync", "after all puts")


async def main(root: str, url: str, protocol: str, count: str, step: str = "") -> None:
    spec = spec_of(url, protocol)
    async with asking(Path(root), spec) as asked:
        die_at(step, asked)
        further = [] if step else requests_of(spec, 1, start=FURTHER)  # a run that asks nothing tends no batch
        assert not failures(await asked.ask(requests_of(spec, int(count)) + further))
        await until(lambda: all(one.deleted for one in asked.ledger.entries()))
    sys.exit(0)


async def until(condition: Any, seconds: float = 20) -> None:
    """Wait for something that must come true."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
