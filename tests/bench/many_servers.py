"""Fake teachers on several ports of one process; prints their base URLs, one per line, and then an empty line.

    python -m tests.bench.many_servers PORTS SCRIPT LOG

All append their requests and completions, with the times, to the file LOG.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer


async def main(ports: int, script: FakeScript, log: Path) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(script, request_log=log)) for _ in range(ports)]
        print(*(server.base_url for server in servers), "", sep="\n", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), FakeScript(**json.loads(sys.argv[2])), Path(sys.argv[3])))
