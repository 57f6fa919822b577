"""The ledger of batches: what was submitted, or was about to be, so that a kill at any moment pays nothing twice.

    batches/<id>.json              the entry: its state, the keys of its requests, the provider's ids
    batches/<id>.requests.jsonl    the requests, until all their completions are stored
    batches/<id>.input.jsonl       the same requests in the provider's form, until the provider has them
    batches/<id>.lock              locked by the process that works on the batch
    batches/<id>.malformed         lines of the results that could not be read
    batches/<id>.shared            beside an entry of a shared state, until its completions are there

An entry is `intent` before anything is sent, `submitted` when the provider's id is known, `ended` when the provider has
finished, `stored` when every completion is in the request store; it stays as the receipt, without its keys.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Literal

import orjson
from pydantic import Field, ValidationError

from tracefactory.core.errors import RunError
from tracefactory.core.files import TEMPORARY, whole_file
from tracefactory.core.model import ChatRequest
from tracefactory.core.rows import Frozen

_LOOK_S = 0.05
_CLOCK_NS = 100_000_000  # the coarsest clock of a file system that times of change are told apart with


class Place(Frozen):
    """Where a batch is: the protocol, the address of the provider, and its name for the model."""

    protocol: str
    base_url: str
    model: str


class Entry(Frozen):
    """One batch. `id` is ours and the tag that the provider is given; times are Unix times."""

    id: str
    place: Place
    state: Literal["intent", "submitted", "ended", "stored"] = "intent"
    run: str
    identity: str  # the digest of the model's identity
    made: float
    requests: int
    keys: tuple[str, ...] = ()
    file: str = ""  # the provider's id of the input file
    batch: str = ""  # the provider's id of the batch
    rejected: tuple[str, ...] = ()  # batches that turned out to be others
    submitted: float | None = None
    ends_at: float | None = None
    outcome: str = ""
    results: tuple[str, ...] = ()
    tally: dict[str, float] = Field(default_factory=dict)  # the results, when it is stored
    deleted: bool = False  # whether the provider's files are deleted

    @property
    def is_open(self) -> bool:
        """Whether completions of it may still come."""
        return self.state != "stored"


class Ledger:
    """The ledger of one state folder; several processes use it at the same time.

    Args:
        root: the state folder.
        shared: whether the run puts its batches into a shared state (`store.shared.batches`).
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self.folder = root / "batches"
        self._shared = shared
        self._read: dict[str, tuple[tuple[int, int], Entry]] = {}
        self._held: frozenset[str] = frozenset()
        self._held_at = -1  # when the folder had last changed as they were read

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the lock under which entries are added, so that no request gets into two batches."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "ledger.lock").open("a") as file:
            while True:
                if _lock(file):
                    break
                await asyncio.sleep(_LOOK_S)
            self._sweep()
            yield

    def own(self, entry_id: str) -> IO[str] | None:
        """Return the lock to work on a batch, which ends when it is closed; None while another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / f"{entry_id}.lock").open("a")
        if _lock(file):
            return file
        file.close()
        return None

    def entries(self) -> list[Entry]:
        """Return all entries, the oldest first.

        Raises:
            RunError: when one cannot be read.
        """
        paths = self.folder.glob(f"[!{TEMPORARY[0]}]*.json") if self.folder.is_dir() else ()
        found = [entry for path in paths if (entry := self._entry(path)) is not None]
        return sorted(found, key=lambda one: (one.made, one.id))

    def holds(self, key: str) -> bool:
        """Return whether a request is in a batch whose completions may still come.

        Raises:
            RunError: when an entry cannot be read.
        """
        try:
            changed = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if changed != self._held_at:
            settled = time.time_ns() - changed > _CLOCK_NS  # else a change might bear the same time
            self._held_at = changed if settled else -1
            self._held = frozenset(key for entry in self.entries() if entry.is_open for key in entry.keys)
        return key in self._held

    def is_unshared(self, entry_id: str) -> bool:
        """Return whether completions of an entry are still to be put into the shared state."""
        return self._shared and (self.folder / f"{entry_id}.shared").exists()

    def entry(self, entry_id: str) -> Entry | None:
        """Return an entry as it is now; None when it was given up."""
        return self._entry(self.folder / f"{entry_id}.json")

    def write(self, entry: Entry) -> Entry:
        """Write an entry atomically."""
        path = self.folder / f"{entry.id}.json"
        try:
            with whole_file(path) as temporary:
                temporary.write_bytes(orjson.dumps(entry.model_dump(mode="json")) + b"\n")
        except OSError as error:
            raise RunError(f"{path} could not be written: {error.strerror}; no batch goes on without it") from error
        return entry

    def begin(self, entry: Entry, requests: Mapping[str, ChatRequest], lines: Iterable[bytes]) -> None:
        """Write a new entry; its requests first, so that an entry always has them."""
        try:
            with whole_file(self.requests_file(entry.id)) as temporary, temporary.open("wb") as file:
                for key, request in requests.items():
                    stored = {"key": key, "near": request.near, "request": request.model_dump(mode="json")}
                    file.write(orjson.dumps(stored) + b"\n")
            with whole_file(self.input_file(entry.id)) as temporary, temporary.open("wb") as file:
                file.writelines(line + b"\n" for line in lines)
        except OSError as error:
            raise RunError(f"{self.folder}: a batch could not be written: {error.strerror}; none was sent") from error
        self.write(entry)

    def requests(self, entry_id: str) -> Requests:
        """Return the requests of an entry."""
        return Requests(self.requests_file(entry_id))

    def give_up(self, entry: Entry) -> None:
        """Remove an entry of which the provider has no batch: its requests are owed again."""
        (self.folder / f"{entry.id}.json").unlink(missing_ok=True)
        self._tidy(entry)

    def finish(self, entry: Entry) -> None:
        """Turn an entry into its receipt."""
        self.write(entry.model_copy(update={"state": "stored", "keys": ()}))
        self._tidy(entry)

    def set_aside(self, entry_id: str, lines: Iterable[bytes]) -> None:
        """Keep lines of the results that cannot be read."""
        if content := b"".join(line + b"\n" for line in sorted(lines)):
            (self.folder / f"{entry_id}.malformed").write_bytes(content)

    def requests_file(self, entry_id: str) -> Path:
        return self.folder / f"{entry_id}.requests.jsonl"

    def input_file(self, entry_id: str) -> Path:
        return self.folder / f"{entry_id}.input.jsonl"

    def _tidy(self, entry: Entry) -> None:
        for path in (self.requests_file(entry.id), self.input_file(entry.id), self.folder / f"{entry.id}.lock"):
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a killed process has written of a batch before it wrote the entry; the lock is held."""
        for path in self.folder.glob("*.requests.jsonl"):
            entry_id = path.name.split(".")[0]
            if not (self.folder / f"{entry_id}.json").exists():
                path.unlink(missing_ok=True)
                self.input_file(entry_id).unlink(missing_ok=True)

    def _entry(self, path: Path) -> Entry | None:
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino)
            known = self._read.get(path.name)
            if known is None or known[0] != version:
                known = self._read[path.name] = (version, Entry.model_validate_json(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise RunError(
                f"{path} cannot be read, so it is not known which requests are in a batch already ({error}); restore "
                "it, or delete it to pay for its requests again"
            ) from error
        return known[1]


class Requests:
    """The requests of one entry, read one at a time: a batch has too many to hold them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise RunError(
                f"{path} cannot be read: {error.strerror}; without it no completion can be stored"
            ) from error
        start = 0
        for line in self._file:
            self._places[line[8:72].decode()] = (start, len(line))  # after {"key":"
            start += len(line)

    def __enter__(self) -> Requests:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, in the order of the input file."""
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> ChatRequest:
        start, length = self._places[key]
        stored: dict[str, Any] = orjson.loads(os.pread(self._file.fileno(), length, start))
        return ChatRequest.model_validate({**stored["request"], "near": stored["near"]})


def _lock(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
