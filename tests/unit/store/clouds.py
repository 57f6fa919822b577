"""An object store in memory with a clock of its own and faults, for tests of what is built on one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

from tracefactory.store.shared.objects import Head, Listed

Fault = Exception | str


class Cloud:
    """Implements `Objects`.

    `faults` maps an operation to what happens to its next calls: an exception is raised; "lost" does the work and
    answers as a store does to the second of two equal attempts; "refused" answers that the condition does not hold;
    "torn" writes half of the content.
    """

    def __init__(self) -> None:
        self.url = "s3://bucket/state"
        self.objects: dict[str, tuple[bytes, Head]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.asked: list[tuple[str, str]] = []
        self.skew_s = 0.0
        self._etags = count()
        self._lock = threading.Lock()

    def now(self) -> float:
        return time.time() + self.skew_s

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        self._fault("list", prefix)
        for name, (content, _) in sorted(self.objects.items()):
            if name.startswith(f"{prefix}/") and name > after:
                yield Listed(name, len(content))

    def get(self, name: str) -> tuple[bytes, Head]:
        self._fault("get", name)
        return self._found(name)

    def head(self, name: str) -> Head:
        self._fault("head", name)
        return self._found(name)[1]

    def create(self, name: str, content: bytes) -> str | None:
        return self._put("create", name, content, None)

    def replace(self, name: str, content: bytes, etag: str) -> str | None:
        return self._put("replace", name, content, etag)

    def delete(self, name: str) -> None:
        self._fault("delete", name)
        self.objects.pop(name, None)

    def _put(self, how: str, name: str, content: bytes, wanted: str | None) -> str | None:
        fault = self._fault(how, name)
        with self._lock:
            found = self.objects.get(name)
            if fault == "refused" or wanted != (None if found is None else found[1].etag):
                return None
            content = content[: len(content) // 2] if fault == "torn" else content
            head = Head(len(content), f'"{next(self._etags)}"', self.now())
            self.objects[name] = (content, head)
            return None if fault == "lost" else head.etag

    def _found(self, name: str) -> tuple[bytes, Head]:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def _fault(self, how: str, name: str) -> str:
        self.asked.append((how, name))
        fault = self.faults[how].pop(0) if self.faults.get(how) else ""
        if isinstance(fault, Exception):
            raise fault
        return fault
