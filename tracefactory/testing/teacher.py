"""A fake teacher with scripted, reproducible answers."""

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
    """A running fake teacher. `entry` is its entry under `models:` of a pipeline."""

    server: FakeServer

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of the teacher under `models:`."""
        # The script is part of the model's identity, so that stored answers of one teacher are not used for another.
        provider = f"fake-{digest(self.server.script.identity())[:8]}"
        return {"use": "openai", "model": "fake", "base_url": self.server.base_url, "provider": provider, "retries": 0}

    @property
    def requests(self) -> int:
        """The number of requests that it has received."""
        return self.server.received


@asynccontextmanager
async def fake_teacher(**script: Any) -> AsyncIterator[FakeTeacher]:
    """Serve a fake teacher in this process while the context lasts.

    Args:
        script: fields of `tracefactory.serving.fake_script.FakeScript`, for example `accuracy=0.5`, `style="short"`,
            `reply="Yes."`, `rate_429=0.1`. By default all answers to integer arithmetic are correct.

    Raises:
        pydantic.ValidationError: for an unknown field or an invalid value.
    """
    async with FakeServer(FakeScript(**script)) as server:
        yield FakeTeacher(server)
