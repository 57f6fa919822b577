"""A small S3 on loopback for tests: objects in memory, conditional writes, lists in pages, faults and a request log.

It answers what object stores of the S3 protocol are asked by the `obstore` client: PUT (If-None-Match, If-Match), GET,
HEAD, DELETE and lists (version 2, prefix, start-after, continuation). Requests are not authenticated.

Run it alone with `python tests/s3_server.py`; it prints its address. `GET /?stats` returns what was asked as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from time import time
from typing import NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "bucket"


class Stored(NamedTuple):
    content: bytes
    etag: str
    modified: float


class S3Server:
    """The state and the handlers.

    `faults` maps a method to what happens to its next requests, one after another: an int is the status to answer with;
    "torn" stores half of what a PUT sent and says that all went well; "lost" does the work and answers 500; "slow"
    answers after half a second. `after` is added to the clock of the server, in seconds. `working` counts the requests
    that have begun to arrive and are not answered.
    """

    def __init__(self, page: int = 1000) -> None:
        self.objects: dict[str, Stored] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.asked: Counter[str] = Counter()
        self.after = 0.0
        self.working = 0
        self.page = page
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.working += 1
        try:
            return await self._handle(request)
        finally:
            self.working -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if "stats" in request.query:
            return web.json_response(dict(self.asked))
        name = request.match_info["path"].removeprefix(f"{BUCKET}").lstrip("/")
        method = "LIST" if request.method == "GET" and "list-type" in request.query else request.method
        self.asked[method] += 1
        body = await request.read()
        fault = self.faults[method].pop(0) if self.faults.get(method) else None
        if isinstance(fault, int):
            return _error(fault, "Fault")
        if fault == "slow":
            await asyncio.sleep(0.5)
        answer = self._answer(method, name, body[: len(body) // 2] if fault == "torn" else body, request)
        return _error(500, "InternalError") if fault == "lost" else answer

    def _answer(self, method: str, name: str, body: bytes, request: web.Request) -> web.StreamResponse:
        if method == "LIST":
            return self._list(request)
        if method == "POST" and "delete" in request.query:
            keys = [one.split("</Key>")[0] for one in body.decode().split("<Key>")[1:]]
            for key in keys:
                self.objects.pop(key, None)
            rows = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return web.Response(text=f"<DeleteResult>{rows}</DeleteResult>", content_type="application/xml")
        if method == "DELETE":
            self.objects.pop(name, None)
            return web.Response(status=204)
        found = self.objects.get(name)
        if method == "PUT":
            wanted = request.headers.get("If-Match")
            if request.headers.get("If-None-Match") == "*" and found is not None:
                return _error(412, "PreconditionFailed")
            if wanted is not None and found is None:
                return _error(404, "NoSuchKey")
            if wanted is not None and found is not None and found.etag != wanted:
                return _error(412, "PreconditionFailed")
            etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
            self.objects[name] = Stored(body, etag, time() + self.after)
            return web.Response(headers={"ETag": etag})
        if found is None:
            return _error(404, "NoSuchKey")
        headers = {"ETag": found.etag, "Last-Modified": formatdate(found.modified, usegmt=True)}
        return web.Response(body=found.content, headers=headers)  # aiohttp leaves the content out for HEAD

    def _list(self, request: web.Request) -> web.Response:
        prefix, query = request.query.get("prefix", ""), request.query
        after = query.get("continuation-token") or query.get("start-after", "")
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        page = names[: self.page]
        more = len(names) > len(page)
        rows = "".join(
            f"<Contents><Key>{escape(quote(name) if 'encoding-type' in query else name)}</Key><Size>"
            f"{len(self.objects[name].content)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(self.objects[name].etag)}</ETag></Contents>"
            for name in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


async def _serve(server: S3Server, port: int = 0) -> web.AppRunner:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


@contextmanager
def running(server: S3Server) -> Iterator[S3Server]:
    """Serve in a thread."""
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(_serve(server))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def environment(server: S3Server) -> dict[str, str]:
    """Return the environment variables with which clients find a server."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


async def _main() -> None:
    server = S3Server()
    await _serve(server)
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
