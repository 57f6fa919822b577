"""HTTP requests to a batch API: JSON, files up and files down. Every failure is an `AttemptFailed`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

from tracefactory.serving import completions
from tracefactory.serving.failures import AttemptFailed, from_connection, kind_of_status, retry_after_seconds
from tracefactory.serving.limits import error_detail
from tracefactory.serving.streaming import lines_of

_CONNECT_S = 30.0


class Http:
    """A session with one provider.

    Args:
        base_url: what paths are appended to; an address that starts with http is taken as it is.
        headers: sent with every request to the provider's host, among them the key.
        secret: the key, which is blanked out in messages.
        timeout_s: seconds without data after which a request has failed.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], secret: str, timeout_s: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers, self._secret, self._timeout_s = dict(headers), secret, timeout_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def host(self) -> str:
        """The provider's host, for messages."""
        return urlsplit(self.base_url).netloc

    async def json(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **sent: Any) -> Any:
        """Send a request and return the JSON of its response.

        Args:
            method: the HTTP method.
            path: appended to `base_url`, or an address of the provider.
            headers: further headers.
            sent: `json`, `data` or `params`, as aiohttp takes them.

        Raises:
            AttemptFailed: when there is no such response.
        """
        return (await self.request(method, path, headers=headers, **sent))[0]

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **sent: Any
    ) -> tuple[Any, Mapping[str, str]]:
        """Send a request and return the JSON of its response, None for an empty one, and its headers."""
        with self._failures():
            address, common = self._address(path)
            async with self._open().request(method, address, headers={**common, **(headers or {})}, **sent) as response:
                body = await _whole(response)
                self._check(response, body)
                return (orjson.loads(body) if body.strip() else None), response.headers

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """Yield the lines of a file that are not empty.

        Raises:
            AttemptFailed: also when the connection is lost before the end; the lines so far were whole.
        """
        with self._failures():
            address, common = self._address(path)
            async with self._open().get(address, headers=common) as response:
                if response.status >= 400:
                    self._check(response, await _whole(response))
                async for line in lines_of(response.content.iter_chunked(1 << 18)):
                    if line.strip():
                        yield line

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _address(self, path: str) -> tuple[str | URL, dict[str, str]]:
        if not path.startswith("http"):
            return self.base_url + path, self._headers
        # A file may lie on a storage host, which must not see the key; a signed address is not written anew.
        return URL(path, encoded=True), self._headers if urlsplit(path).netloc == self.host else {}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            loopback = urlsplit(self.base_url).hostname in {"127.0.0.1", "localhost", "::1"}
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=not loopback)
        return self._session

    def _check(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        if response.status < 400:
            return
        try:
            error = orjson.loads(body)
        except ValueError:
            error = {"message": body.decode("utf-8", "replace")}
        detail, message = error_detail(error, self._secret)
        told = f"HTTP {response.status}: {message}" if message else f"HTTP {response.status}"
        raise AttemptFailed(
            kind_of_status(response.status, detail), told, retry_after_s=retry_after_seconds(response.headers)
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise `AttemptFailed` for what the transport raises."""
        try:
            yield
        except (aiohttp.ClientError, TimeoutError) as error:
            raise from_connection(error, self._timeout_s) from error
        except ValueError as error:  # of the JSON library
            raise AttemptFailed("bad_response", "the response is not JSON") from error


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a response, as far as one may be.

    Raises:
        AttemptFailed: when it is too large.
    """
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(1 << 18):
        chunks.append(chunk)
        size += len(chunk)
        if size > completions.MOST_BYTES:
            raise completions.too_large()
    return b"".join(chunks)
