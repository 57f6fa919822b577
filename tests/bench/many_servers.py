"""Fake teachers on several ports of one process; prints their base URLs, one per line, and then an empty line."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer


async def main(ports: int, script: FakeScript) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(script)) for _ in range(ports)]
        print(*(server.base_url for server in servers), "", sep="\n", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), FakeScript(**json.loads(sys.argv[2]))))
