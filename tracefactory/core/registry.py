"""Registries of entries that are looked up by name: pruners, verifiers, views, sources, decoders, models, operations.

An entry has the name of its file, so that names are known without an import; a file is imported when its entry is first
looked up, and registers it. Installed packages add entries by entry points in the group of the package
(`tracefactory.pruners`, ...), projects by files in their folders (`core.plugins`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest_file
from tracefactory.core.marks import Mark, identified, mark_of, versioned
from tracefactory.core.source_code import line_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind. Registering a name twice is a programming error; an unknown name is the user's.

    Entries from outside of this package are marked with a digest of their source when looked up (`core.marks`).
    """

    def __init__(self, kind: str, package: str, mark: Mark = versioned) -> None:
        self.kind = kind
        self.package = package
        self.mark = mark
        self._registered: dict[str, T] = {}
        self._entries: dict[str, T] = {}
        self._project: dict[str, Callable[[], T]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def file_under(entry: T) -> T:
            if name in self._registered:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._registered[name] = entry
            return entry

        return file_under

    def get(self, name: str) -> T:
        """Return the entry called `name`, importing its file if that was not done yet.

        Raises:
            UserError: with the nearest valid name, or with the mistakes in a plugin file.
        """
        if name not in self._entries:
            if name not in self.names():
                hint = nearest(name, self) or ""
                raise UserError(f"unknown {self.kind} {name!r}" + (f" ({hint})" if hint else ""))
            self._entries[name] = self._load(name)
        return self._entries[name]

    def names(self) -> frozenset[str]:
        """Return the names of all entries; nothing is imported for it."""
        return frozenset({*self._registered, *self._project, *self._installed(), *self.built_in()})

    def origin(self, name: str) -> str:
        """Return where an entry comes from: "built in", "project", or the module of an installed package."""
        if name in self._project:
            return "project"
        return "built in" if name in self.built_in() else self._installed().get(name, "built in")

    def built_in(self) -> Mapping[str, str]:
        """Return the modules of this package that register entries, by the name of the entry."""
        return _files(self.package)

    def module_of(self, name: str) -> str | None:
        """Return the importable module that registers an entry; None for a plugin of a project."""
        return {**self._installed(), **self.built_in()}.get(name)

    def registered(self) -> frozenset[str]:
        """Return the names that have been registered by modules, and not removed."""
        return frozenset(self._registered)

    def unregister(self, name: str) -> T | None:
        """Remove what a module registered under a name, and return it."""
        return self._registered.pop(name, None)

    def forget(self, name: str) -> None:
        """Remove an entry that was looked up, so that the next `get` loads it again."""
        self._entries.pop(name, None)

    def set_project(self, loaders: Mapping[str, Callable[[], T]]) -> None:
        """Replace the plugins of the active project by those of another; a loader returns the marked entry."""
        for name in {*self._project, *loaders}:
            self.forget(name)
        self._project = dict(loaders)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names()))

    def _load(self, name: str) -> T:
        if name in self._project:
            return self._project[name]()
        module = self.module_of(name)
        if module is not None and name not in self.built_in():
            return self._load_installed(name, module)
        if module is not None:
            importlib.import_module(module)
        try:
            return self._registered[name]
        except KeyError:
            raise TypeError(f"the file of {self.kind} {name!r} registers no {name!r}") from None

    def _load_installed(self, name: str, module: str) -> T:
        """Import the module of an installed package and return its marked entry."""
        file, source = _source_of(module)
        try:
            importlib.import_module(module)
        except Exception as error:
            message = f"{self.kind} {name!r} does not load: {type(error).__name__}: {error}"
            raise UserError(Mistake(message, file, line_of(error, str(file)))) from error
        if name not in self._registered:
            raise UserError(Mistake(f"the installed module {module} registers no {self.kind} {name!r}", file))
        entry: T = self.mark(self._registered[name], mark_of(source), module)
        return entry

    def _installed(self) -> Mapping[str, str]:
        return _installed(self.package)


class OperationRegistry(Registry[T]):
    """Operations by "verb:name": one file `stages/<verb>/<name>.py`, or a family of one operation per pruner, say.

    `stages/<verb>/family.py` makes the operations of a family (`FAMILIES`) from the entries of another registry.
    """

    def names(self) -> frozenset[str]:
        made = {f"{verb}:{name}" for verb, kind in FAMILIES.items() for name in registry(kind).names()}
        return super().names() | made

    def origin(self, name: str) -> str:
        verb, _, own = name.partition(":")
        files = {*self._project, *self._installed(), *self.built_in()}
        return registry(FAMILIES[verb]).origin(own) if name not in files and verb in FAMILIES else super().origin(name)

    def built_in(self) -> Mapping[str, str]:
        found = dict(ELSEWHERE)
        for verb in _folders(self.package):
            inside = _files(f"{self.package}.{verb}")
            found |= {f"{verb}:{name}": module for name, module in inside.items() if name != "family"}
        return found

    def _load(self, name: str) -> T:
        verb, _, own = name.partition(":")
        if name in self._project or name in self._registered or self.module_of(name) is not None:
            return super()._load(name)
        made: T = importlib.import_module(f"{self.package}.{verb}.family").make(own)
        return made


FAMILIES: Mapping[str, str] = {"prune": "pruner", "source": "source", "sample": "decoder"}
"""The verbs that have an operation for every entry of another registry, and which."""

ELSEWHERE: Mapping[str, str] = {"publish:dataset": "tracefactory.publish.dataset"}
"""The operations that do not lie in `stages/`, because they need what is above it."""

_KINDS: Mapping[str, Registry[Any]] = {
    "decoder": Registry("decoder", "tracefactory.decoders"),
    "model": Registry("kind of model", "tracefactory.models", identified),
    "operation": OperationRegistry("operation", "tracefactory.stages"),
    "pruner": Registry("pruner", "tracefactory.pruners"),
    "source": Registry("source", "tracefactory.sources"),
    "verifier": Registry("verifier", "tracefactory.verifiers"),
    "view": Registry("view", "tracefactory.views"),
}


def registry(kind: str) -> Registry[Any]:
    """Return the registry of one kind: decoder, model, operation, pruner, source, verifier or view."""
    return _KINDS[kind]


def kinds() -> tuple[str, ...]:
    """Return the kinds that have a registry."""
    return tuple(_KINDS)


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


def _source_of(module: str) -> tuple[Path, str]:
    """Return the file of an installed module and its source; of one that is no Python source, its content as text."""
    try:
        spec = importlib.util.find_spec(module)  # which imports the packages above it
    except Exception as error:
        raise UserError(f"the installed module {module} does not load: {type(error).__name__}: {error}") from error
    if spec is None or spec.origin is None:
        raise UserError(f"an installed package names the module {module}, which is not there")
    file = Path(spec.origin)
    return file, file.read_text("utf-8") if file.suffix == ".py" else repr(digest_file(file))


def _paths(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
