"""The ledger of a pipeline: what its runs have spent, and what its requests in flight may cost.

    spend/<pipeline>@<version>.ledger  a line for every reservation, settlement and charge: a checksum and JSON
    spend/<pipeline>@<version>.lock    locked by the process that adds one

A request is reserved at its worst case before it is sent, and settled at what it took. All runs of one version of a
pipeline share the ledger, also at the same time: a reservation that exceeds a cap together with what is spent and
reserved by others is refused. The reservation of a process that died is spent: its provider may have billed it.
Lines that a kill has cut off are reservations whose request was not sent, or settlements of what stays reserved.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from tracefactory.core.budget import Cap, What
from tracefactory.core.errors import RunError
from tracefactory.core.files import write_text
from tracefactory.core.prices import Price
from tracefactory.store.damage import REPAIR, Damage

COMPACT_BYTES = 4 << 20
SYNC_EVERY_S = 1.0
KEY_DIGITS = 16
"""The digits of a request's key that its reservation keeps."""
_CRC_DIGITS = 8


class Amount(NamedTuple):
    """What was spent. `usd` is that of known prices; completions without a price are counted with their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0
    unpriced_prompt: int = 0
    unpriced_completion: int = 0
    gpu_hours: float = 0.0

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, usd: float | None) -> Amount:
        """Return what one request takes; `usd` is None where its price is unknown."""
        if usd is None:
            return cls(1, prompt_tokens, completion_tokens, 0.0, 1, prompt_tokens, completion_tokens)
        return cls(1, prompt_tokens, completion_tokens, usd)

    def plus(self, other: Amount, sign: int = 1) -> Amount:
        """Return the sum, or the difference with the sign -1."""
        sums: Iterator[Any] = (own + sign * added for own, added in zip(self, other, strict=True))
        return Amount(*sums)

    def number(self, what: What, price: Price | None = None) -> float:
        """Return what a cap counts.

        Args:
            what: what is capped.
            price: the price of the model, for completions whose price was unknown when they were paid.
        """
        if what == "tokens":
            return self.prompt_tokens + self.completion_tokens
        if what == "usd" and price is not None and self.unpriced:
            return self.usd + (price.cost(self.unpriced_prompt, self.unpriced_completion) or 0.0)
        return float(getattr(self, what))


class Refusal(NamedTuple):
    """Why a request is not sent now: `spent` and `asked` are in units of the cap.

    `final` says that it never can be; otherwise it has to wait for requests in flight, which reserve their worst case.
    """

    cap: Cap
    spent: float
    asked: float
    final: bool


@dataclass(frozen=True)
class Writer:
    """The process and the run that spend, and how to tell whether another process lives."""

    id: str
    run: str
    is_alive: Callable[[str], bool]


class Ledger:
    """The ledger of one version of a pipeline; use it from one thread. Without a `writer` it is only read.

    `met` is told of damaged lines, which are left out; without it they are a RunError.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        writer: Writer | None = None,
        met: Callable[[Damage], None] | None = None,
    ) -> None:
        self.path = root / "spend" / f"{name}.ledger"
        self.writer = writer
        self._met = met
        self.settled: defaultdict[tuple[str, str], Amount] = defaultdict(Amount)  # by model and run
        self._open: dict[tuple[str, int], tuple[str, str, Amount, str]] = {}  # by writer and number
        self._by_key: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)  # the places in `_open`
        self._reserved: defaultdict[tuple[str, str], Amount] = defaultdict(Amount)  # by model and writer
        self._file: IO[bytes] | None = None
        self._read_to = 0
        self._rewritten = 0
        self._synced = 0.0
        self._number = 0
        if writer is None:
            try:
                self._read()
            except RunError:
                self.close()
                raise
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_suffix(".lock").open("a")

    def reserve(
        self,
        model: str,
        amount: Amount,
        caps: Sequence[Cap] = (),
        prices: Mapping[str, Price] | None = None,
        key: str = "",
    ) -> int | Refusal:
        """Reserve the worst case of a request before it is sent; return its number, or why it must not be sent.

        Args:
            model: the name of the model in the pipeline.
            amount: the worst case.
            caps: the caps to keep.
            prices: the prices by model, for what was paid before its price was known.
            key: the key of the request; see `settle`.

        Raises:
            RunError: when the ledger is damaged or cannot be written.
        """
        with self._locked():
            for cap in caps:
                if cap.model in ("", model) and (refused := self._refusal(cap, model, amount, prices or {})):
                    return refused
            return self._reserve(model, amount, key)

    def renew(self, model: str, amount: Amount, key: str) -> int:
        """Reserve for a request that was sent already, in place of what processes that died have reserved for it.

        Args:
            model: the name of the model in the pipeline.
            amount: the worst case.
            key: the key of the request.

        Returns:
            The number of the reservation.

        Raises:
            RunError: when the ledger is damaged or cannot be written.
        """
        with self._locked():
            self._release_dead(key)
            return self._reserve(model, amount, key)

    def settle(self, number: int, amount: Amount, replaces: str = "") -> None:
        """Replace a reservation by what the request took: nothing, if it was not sent.

        `replaces` is the key of a request that processes which died had reserved for the same bill, such as a batch.
        """
        with self._locked():
            self._add({"w": self._own.id, "n": number, "s": list(amount)})
            self._release_dead(replaces)
            if self._read_to > max(COMPACT_BYTES, 2 * self._rewritten):
                self._rewrite()

    def charge(
        self,
        model: str,
        amount: Amount,
        caps: Sequence[Cap] = (),
        prices: Mapping[str, Price] | None = None,
        replaces: str = "",
    ) -> Refusal | None:
        """Add what is spent without a reservation, such as GPU-hours; return the cap that it exceeds, None for none."""
        with self._locked():
            exceeded = (
                refused
                for cap in caps
                if cap.model in ("", model) and amount.number(cap.what)
                if (refused := self._refusal(cap, model, amount, prices or {})) is not None and refused.final
            )
            found = next(exceeded, None)
            self._add({"m": model, "run": self._own.run, "s": list(amount)})
            self._release_dead(replaces)
            return found

    def totals(self) -> dict[tuple[str, str], Amount]:
        """Return what was spent by model and run; reservations count at their worst case."""
        found = dict(self.settled)
        for model, run, amount, _ in self._open.values():
            found[model, run] = found.get((model, run), Amount()).plus(amount)
        return found

    def refresh(self) -> None:
        """Read what was added since the last call."""
        self._read()

    def spent(self, cap: Cap, prices: Mapping[str, Price], *, reserved: bool = True) -> float:
        """Return what counts against a cap; with `reserved`, requests in flight count at their worst case."""
        in_flight = (self._reserved_for(cap, alive=one) for one in (True, False))
        return self._settled(cap, prices) + (sum(in_flight) if reserved else 0.0)

    def close(self) -> None:
        """Close the files; what was written is on disk."""
        if self._file is not None:
            if self.writer is not None:
                os.fdatasync(self._file.fileno())
            self._file.close()
        if self.writer is not None:
            self._lock.close()

    @property
    def _own(self) -> Writer:
        assert self.writer is not None, "the ledger is only read"
        return self.writer

    def _refusal(self, cap: Cap, model: str, amount: Amount, prices: Mapping[str, Price]) -> Refusal | None:
        asked = amount.number(cap.what)
        spent = self._settled(cap, prices) + self._reserved_for(cap, alive=False)
        limit = cap.limit * (1 + 1e-12)
        if spent + asked + self._reserved_for(cap, alive=True) <= limit:
            return None
        return Refusal(cap, spent, asked, final=spent + asked > limit)

    def _settled(self, cap: Cap, prices: Mapping[str, Price]) -> float:
        of = (one for one in self.settled.items() if cap.model in ("", one[0][0]))
        return sum(amount.number(cap.what, prices.get(model)) for (model, _), amount in of)

    def _reserved_for(self, cap: Cap, *, alive: bool) -> float:
        return sum(
            amount.number(cap.what)
            for (model, writer), amount in self._reserved.items()
            if cap.model in ("", model) and amount.requests and self._lives(writer) == alive
        )

    def _reserve(self, model: str, amount: Amount, key: str) -> int:
        self._number += 1
        event = {"w": self._own.id, "n": self._number, "m": model, "run": self._own.run, "k": key[:KEY_DIGITS]}
        self._add({**event, "r": list(amount)})
        return self._number

    def _release_dead(self, key: str) -> None:
        """Take back what processes that died have reserved for a request."""
        for writer, number in tuple(self._by_key.get(key[:KEY_DIGITS], ())) if key else ():
            if not self._lives(writer):
                self._add({"w": writer, "n": number, "s": list(Amount())})

    def _lives(self, writer: str) -> bool:
        return self.writer is not None and (writer == self.writer.id or self.writer.is_alive(writer))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._read()
            yield
        except OSError as error:
            raise RunError(
                f"{self.path}: what is spent could not be written ({error.strerror}); free space or make it writable, "
                "and run the same command again"
            ) from error
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _read(self) -> None:
        """Read the lines since the last call, all of them when the file was written anew."""
        try:
            if self._file is None or os.stat(self.path).st_ino != os.fstat(self._file.fileno()).st_ino:
                self._open_file()
        except FileNotFoundError:
            return
        assert self._file is not None
        self._file.seek(self._read_to)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            self._note(line, self._read_to)
            self._read_to += len(line) + 1
        if len(whole) < len(data) and self.writer is not None:  # a line that a kill or a full disk has cut off
            os.ftruncate(self._file.fileno(), self._read_to)

    def _open_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self.path.open("rb" if self.writer is None else "r+b", buffering=0)
        self._read_to = 0
        self.settled.clear()
        self._open.clear()
        self._by_key.clear()
        self._reserved.clear()

    def _note(self, line: bytes, start: int) -> None:
        try:
            event = orjson.loads(line[_CRC_DIGITS:])
            if int(line[:_CRC_DIGITS], 16) != zlib.crc32(line[_CRC_DIGITS:]):
                raise ValueError("the checksum does not fit")
            if "r" in event:
                amount, place = Amount(*event["r"]), (event["w"], event["n"])
                self._open[place] = (event["m"], event["run"], amount, event["k"])
                self._by_key[event["k"]].add(place)
                self._reserved[event["m"], event["w"]] = self._reserved[event["m"], event["w"]].plus(amount)
            elif "n" in event:
                place = (event["w"], event["n"])
                if place not in self._open and self._met is not None:  # the line with its reservation is damaged
                    self.settled["", ""] = self.settled["", ""].plus(Amount(*event["s"]))
                    return
                model, run, reserved, key = self._open.pop(place)
                self._by_key[key].discard(place)
                if not self._by_key[key]:
                    del self._by_key[key]
                self._reserved[model, event["w"]] = self._reserved[model, event["w"]].plus(reserved, -1)
                self.settled[model, run] = self.settled[model, run].plus(Amount(*event["s"]))
            else:
                self.settled[event["m"], event["run"]] = self.settled[event["m"], event["run"]].plus(
                    Amount(*event["s"])
                )
        except (ValueError, KeyError, TypeError) as error:
            if self._met is None:
                raise RunError(
                    f"{self.path} is damaged at byte {start}, so that it is not known what was spent. Nothing is sent. "
                    f"`{REPAIR}` keeps the lines that can be read; lower the caps by what is missing"
                ) from error
            self._met(Damage(self.path, f"byte {start}", "not a line of a ledger", "what it says is not counted"))

    def _add(self, event: Mapping[str, object]) -> None:
        if self._file is None:
            self.path.touch()
            self._open_file()
        assert self._file is not None
        line = _line(event)
        if os.pwrite(self._file.fileno(), line, self._read_to) < len(line):
            os.ftruncate(self._file.fileno(), self._read_to)
            raise OSError(28, "the disk is full")
        self._note(line[:-1], self._read_to)
        self._read_to += len(line)
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fdatasync(self._file.fileno())
            self._synced = time.monotonic()

    def _rewrite(self) -> None:
        """Write the file anew: the sums, and what is reserved."""
        lines: list[Mapping[str, object]] = [
            {"m": model, "run": run, "s": list(amount)} for (model, run), amount in self.settled.items()
        ]
        for (writer, number), (model, run, amount, key) in self._open.items():
            lines.append({"w": writer, "n": number, "m": model, "run": run, "k": key, "r": list(amount)})
        write_text(self.path, b"".join(map(_line, lines)).decode())
        self._read()
        self._rewritten = self._read_to


def spent_by(root: Path, name: str, run: str) -> dict[str, Amount]:
    """Return what one run has spent of a ledger, by model; damaged lines are left out."""
    ledger = Ledger(root, name, met=lambda damage: None)
    found = {model: amount for (model, of), amount in sorted(ledger.totals().items()) if of == run}
    ledger.close()
    return found


def rewrite(root: Path, name: str) -> None:
    """Write a ledger anew without its damaged lines: the sums, and what is reserved. No run may use it."""
    ledger = Ledger(root, name, Writer("", "", lambda writer: False), met=lambda damage: None)
    with ledger._locked():
        ledger._rewrite()
    ledger.close()


def _line(event: Mapping[str, object]) -> bytes:
    data = orjson.dumps(event)
    return f"{zlib.crc32(data):0{_CRC_DIGITS}x}".encode() + data + b"\n"
