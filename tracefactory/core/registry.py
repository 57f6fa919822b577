"""Things that are looked up by name: one registry per kind, filled by decorators, one file per entry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tracefactory.core.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind. Registering a name twice is a programming error; an unknown name is the user's."""

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}

    def _load(self) -> None:
        """Import the package whose modules register the entries, the first time anybody asks."""
        if (package := self._package) is not None:
            importlib.import_module(package)  # a second thread waits here, on the import's own lock
            self._package = None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def file_under(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return file_under

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            UserError: with the nearest valid name.
        """
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            hint = nearest(name, self._entries) or ""
            raise UserError(f"unknown {self.kind} {name!r}" + (f" ({hint})" if hint else "")) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))
