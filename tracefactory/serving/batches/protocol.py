"""What the batch APIs of providers have in common: `BatchApi`, and what it tells of a batch and of its results."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import orjson

from tracefactory.serving.batches.http import Http
from tracefactory.serving.batches.ledger import Entry
from tracefactory.serving.completions import UNREADABLE
from tracefactory.serving.failures import AttemptFailed

_KEY = re.compile(rb'"(?:custom_id|key)"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Limits:
    """The most requests and bytes of one batch."""

    requests: int
    bytes: int


@dataclass(frozen=True)
class Refusal:
    """Why a provider refused a batch as a whole: its message, and the number of the line if it named one, from 1."""

    code: str
    message: str
    line: int | None = None


@dataclass(frozen=True)
class BatchState:
    """A batch as its provider describes it.

    Attributes:
        id: the provider's id.
        outcome: empty while the batch is worked on; else completed, expired, cancelled or failed.
        total: how many requests the provider counts; None where it does not say.
        succeeded: how many were answered; None where it does not say.
        failed: how many were refused or failed, of a completed batch; None where it does not say.
        usage: the tokens of all prompts and of all completions; None where it does not say.
        results: the files to read, by what `BatchApi.read` takes.
        ends_at: Unix time when the window ends; None where the provider does not say.
        refusals: why it failed.
    """

    id: str
    outcome: str = ""
    total: int | None = None
    succeeded: int | None = None
    failed: int | None = None
    usage: tuple[int, int] | None = None
    results: tuple[str, ...] = ()
    ends_at: float | None = None
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        """Take what is no number in range for what the provider does not say: results that were paid are read."""
        for name in ("total", "succeeded", "failed"):
            if not _is_count(getattr(self, name)):
                object.__setattr__(self, name, None)
        if self.usage is not None and not all(map(_is_count, self.usage)):
            object.__setattr__(self, "usage", None)
        if self.ends_at is not None and not 0 <= self.ends_at < 1e11:
            object.__setattr__(self, "ends_at", None)
        if not all(isinstance(one, str) for one in self.results):
            raise TypeError("the files of results have no names")


@dataclass(frozen=True)
class Line:
    """One line of results: an answer in the form of the OpenAI chat protocol, or a failure.

    A line that cannot be read has a failure, and a key only if one can be made out in it.
    """

    key: str
    answer: Mapping[str, Any] | None = None
    failure: AttemptFailed | None = None
    malformed: bytes = b""


_ASKING = frozenset({"upload", "create", "find", "state", "cancel", "delete"})


def _reading(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(ask)
    async def asked(*given: Any, **named: Any) -> Any:
        try:
            return await ask(*given, **named)
        except UNREADABLE as error:
            message = f"the provider's answer has an unexpected form ({type(error).__name__})"
            raise AttemptFailed("bad_response", message) from error

    return asked


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def size_of(file: Path) -> int:
    """Return the bytes of a file."""
    return file.stat().st_size


class BatchApi(ABC):
    """The batch API of one provider. All methods raise `AttemptFailed`.

    `finds_by_tag` is whether `find` returns only the batch that was sought; without it, it returns batches that may be
    the one, which shows when their results are read.
    """

    name: ClassVar[str]
    limits: ClassVar[Limits]
    finds_by_tag: ClassVar[bool] = True

    def __init_subclass__(cls, **given: Any) -> None:
        """Let what is raised by an answer of another form be a failure of the provider, in every method that asks."""
        super().__init_subclass__(**given)
        for name in _ASKING & vars(cls).keys():
            setattr(cls, name, _reading(vars(cls)[name]))

    def __init__(self, http: Http, model: str, window: str) -> None:
        self.http, self.model, self.window = http, model, window

    @classmethod
    def root(cls, base_url: str, account: str) -> str:
        """Return the address of the API, from that of the model and the account that pays, where there is one."""
        return base_url

    @classmethod
    def headers(cls, secret: str) -> dict[str, str]:
        """Return the headers that carry the key; without a key there are none."""
        return {"Authorization": f"Bearer {secret}"} if secret else {}

    @property
    def most(self) -> Limits:
        """The limits at this provider."""
        return self.limits

    @abstractmethod
    def request_line(self, key: str, body: Mapping[str, Any]) -> bytes:
        """Return the line of one request in the input file, without the end of the line.

        Raises:
            AttemptFailed: when the protocol cannot express the request.
        """

    async def upload(self, file: Path, tag: str) -> str:
        """Upload the input file and return its id; empty where requests are sent with `create`."""
        return ""

    @abstractmethod
    async def create(self, file: Path, file_id: str, tag: str) -> BatchState:
        """Create the batch of an input file."""

    @abstractmethod
    async def find(self, entry: Entry) -> list[str]:
        """Return the ids of the provider's batches that were made of `entry`, or may have been; the oldest first."""

    @abstractmethod
    async def state(self, batch: str) -> BatchState:
        """Return the present state of a batch."""

    @abstractmethod
    async def cancel(self, batch: str) -> None:
        """Ask the provider to end a batch early; what was answered by then is in its results and is billed."""

    @abstractmethod
    async def delete(self, entry: Entry, results: tuple[str, ...]) -> None:
        """Delete the files of a batch at the provider. What is gone already is no failure."""

    async def read(self, results: str) -> AsyncIterator[Line]:
        """Yield the lines of one results file, in whatever order the provider wrote them."""
        async for raw in self.http.lines(self.address(results)):
            try:
                line = self.line(orjson.loads(raw))
                if not isinstance(line.key, str):
                    raise TypeError("a key is text")
                yield line
            except UNREADABLE as error:
                key = _KEY.search(raw)
                failure = AttemptFailed("bad_response", f"its line in the results is damaged ({type(error).__name__})")
                yield Line(key[1].decode() if key else "", None, failure, raw)

    @abstractmethod
    def address(self, results: str) -> str:
        """Return the path of a results file."""

    @abstractmethod
    def line(self, raw: Any) -> Line:
        """Return what a line of the results says; it may raise one of `UNREADABLE`."""

    async def gone_is_fine(self, method: str, path: str) -> None:
        """Delete or cancel something that may be gone or ended already."""
        try:
            await self.http.json(method, path)
        except AttemptFailed as failed:
            if failed.kind.name not in {"not_found", "bad_request", "conflict"}:
                raise
