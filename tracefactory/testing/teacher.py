"""A teacher that costs nothing and always says the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer


@dataclass(frozen=True)
class FakeTeacher:
    """A fake teacher that is being served: its `entry` is what stands under `models:` in a pipeline."""

    server: FakeServer

    @property
    def entry(self) -> dict[str, Any]:
        # Another script is another model: what one teacher said must not be found as the answer of another.
        provider = f"fake-{digest(self.server.script.identity())[:8]}"
        return {"use": "openai", "model": "fake", "base_url": self.server.base_url, "provider": provider, "retries": 0}

    @property
    def requests(self) -> int:
        """How many requests it was sent so far."""
        return self.server.received


@asynccontextmanager
async def fake_teacher(**script: Any) -> AsyncIterator[FakeTeacher]:
    """Serve a fake teacher in this process while the context lasts.

    Args:
        script: how it behaves: the fields of `tracefactory.serving.fake_script.FakeScript`, such as `accuracy=0.5`,
            `style="short"`, `reply="Yes."`, `rate_429=0.1`. Without any it is always right about integer arithmetic.

    Raises:
        pydantic.ValidationError: for a field that there is not.
    """
    async with FakeServer(FakeScript(**script)) as server:
        yield FakeTeacher(server)
