"""Things that are looked up by name, one file each: pruners, verifiers, views, sources, decoders, models, operations.

The name of an entry is the name of its file, so names are known without importing anything; the one file that is asked
for is imported then, and registers itself with a decorator. Besides the package's own files there are those of
installed packages, by entry points in the group of the package (`tracefactory.pruners`, ...), and those of a project's
folders (`core.plugins`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from tracefactory.core.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind. Registering a name twice is a programming error; an unknown name is the user's."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._project: dict[str, Callable[[], None]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def file_under(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return file_under

    def get(self, name: str) -> T:
        """Return the entry called `name`, importing its file if that was not done yet.

        Raises:
            UserError: with the nearest valid name.
        """
        if name not in self._entries:
            if name not in self.names():
                hint = nearest(name, self) or ""
                raise UserError(f"unknown {self.kind} {name!r}" + (f" ({hint})" if hint else ""))
            self._load(name)
        try:
            return self._entries[name]
        except KeyError:
            raise TypeError(f"the file of {self.kind} {name!r} registers no {name!r}") from None

    def names(self) -> frozenset[str]:
        """Return the names of all entries; nothing is imported for it."""
        return frozenset({*self._entries, *self._project, *self._modules()})

    def add_project(self, loaders: Mapping[str, Callable[[], None]]) -> None:
        """Replace the entries of the project that was read last by those of another; a loader registers its entry."""
        for name in self._project:
            self._entries.pop(name, None)
        self._project = dict(loaders)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names()))

    def _load(self, name: str) -> None:
        if name in self._project:
            self._project[name]()
        else:
            importlib.import_module(self._modules()[name])

    def _modules(self) -> Mapping[str, str]:
        return {**_installed(self.package), **_files(self.package)}


class OperationRegistry(Registry[T]):
    """Operations by "verb:name": one file `stages/<verb>/<name>.py`, or a family of one operation per pruner, say.

    `stages/<verb>/family.py` makes the operations of a family (`FAMILIES`) from the entries of another registry.
    """

    def names(self) -> frozenset[str]:
        made = {f"{verb}:{name}" for verb, kind in FAMILIES.items() for name in registry(kind)}
        return super().names() | made

    def _load(self, name: str) -> None:
        verb, _, own = name.partition(":")
        if name in self._modules() or name in self._project:
            super()._load(name)
        else:
            made = importlib.import_module(f"{self.package}.{verb}.family").make(own)
            self._entries[name] = made

    def _modules(self) -> Mapping[str, str]:
        found = {**ELSEWHERE, **_installed(self.package)}
        for verb in _folders(self.package):
            inside = _files(f"{self.package}.{verb}")
            found |= {f"{verb}:{name}": module for name, module in inside.items() if name != "family"}
        return found


FAMILIES: Mapping[str, str] = {"prune": "pruner", "source": "source", "sample": "decoder"}
"""The verbs that have an operation for every entry of another registry, and which."""

ELSEWHERE: Mapping[str, str] = {"publish:dataset": "tracefactory.publish.dataset"}
"""The operations that do not lie in `stages/`, because they need what is above it."""

_KINDS: Mapping[str, Registry[Any]] = {
    "decoder": Registry("decoder", "tracefactory.decoders"),
    "model": Registry("kind of model", "tracefactory.models"),
    "operation": OperationRegistry("operation", "tracefactory.stages"),
    "pruner": Registry("pruner", "tracefactory.pruners"),
    "source": Registry("source", "tracefactory.sources"),
    "verifier": Registry("verifier", "tracefactory.verifiers"),
    "view": Registry("view", "tracefactory.views"),
}


def registry(kind: str) -> Registry[Any]:
    """Return the registry of one kind: decoder, model, operation, pruner, source, verifier or view."""
    return _KINDS[kind]


@functools.cache
def _installed(package: str) -> Mapping[str, str]:
    """Return the modules that installed packages give to a registry, by name."""
    return {one.name: one.value.partition(":")[0] for one in entry_points(group=package)}


@functools.cache
def _files(package: str) -> Mapping[str, str]:
    """Return the modules of a package by file name; names with an underscore in front are not entries."""
    files = (file.stem for folder in _paths(package) for file in folder.glob("*.py"))
    return {name: f"{package}.{name}" for name in sorted(files) if not name.startswith("_")}


@functools.cache
def _folders(package: str) -> tuple[str, ...]:
    inside = (entry for folder in _paths(package) for entry in folder.iterdir())
    return tuple(sorted(entry.name for entry in inside if entry.is_dir() and not entry.name.startswith(("_", "."))))


def _paths(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
