"""Registries of entries by name: pruners, verifiers, views, sources, decoders, kinds of models and operations.

An entry has the name of its file, so that names are known without an import. A file is imported when its entry is first
looked up, and then registers the entry. Installed packages add entries by entry points in the group of the package
(`tracefactory.pruners`, ...), projects by files in their folders (`core.plugins`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest_file
from tracefactory.core.marks import Mark, identified, mark_of, versioned
from tracefactory.core.source_code import line_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind.

    Entries from outside this package are marked with a digest of their source when they are looked up (`core.marks`).
    """

    def __init__(self, kind: str, package: str, mark: Mark = versioned) -> None:
        self.kind = kind
        self.package = package
        self.mark = mark
        self.registered: dict[str, T] = {}  # what modules have registered, by name
        self._entries: dict[str, T] = {}
        self._project: dict[str, Callable[[], T]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument as `name`.

        Raises:
            ValueError: when the name is registered already.
        """

        def add(entry: T) -> T:
            if name in self.registered:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self.registered[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return an entry by its name, and import its file if necessary.

        Raises:
            UserError: for an unknown name, with the nearest valid one, and for a broken plugin, with its mistakes.
        """
        if name not in self._entries:
            if name not in self.names():
                hint = nearest(name, self) or ""
                raise UserError(f"unknown {self.kind} {name!r}" + (f" ({hint})" if hint else ""))
            self._entries[name] = self._load(name)
        return self._entries[name]

    def names(self) -> frozenset[str]:
        """Return the names of all entries, without importing them."""
        return frozenset({*self.registered, *self._project, *_installed(self.package), *self.built_in()})

    def origin(self, name: str) -> str:
        """Return where an entry comes from: "built in", "project", or the module of an installed package."""
        if name in self._project:
            return "project"
        return "built in" if name in self.built_in() else _installed(self.package).get(name, "built in")

    def built_in(self) -> Mapping[str, str]:
        """Return the modules of this package that register entries, by the name of the entry."""
        return {name: f"{self.package}.{name}" for name in _contents(self.package).modules}

    def module_of(self, name: str) -> str | None:
        """Return the importable module that registers an entry; None for a plugin of a project."""
        return {**_installed(self.package), **self.built_in()}.get(name)

    def set_project(self, loaders: Mapping[str, Callable[[], T]]) -> None:
        """Replace the plugins of the active project by those of another.

        Their entries, and the operations that were made from them, are loaded again at the next `get`.

        Args:
            loaders: functions that return the marked entries, by name.
        """
        families = [verb for verb, kind in FAMILIES.items() if registry(kind) is self]
        for name in {*self._project, *loaders}:
            self._entries.pop(name, None)
            for verb in families:
                registry("operation")._entries.pop(f"{verb}:{name}", None)
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
            return self.registered[name]
        except KeyError:
            raise TypeError(f"the file of {self.kind} {name!r} registers no {name!r}") from None

    def _load_installed(self, name: str, module: str) -> T:
        """Import the module of an installed package and return its marked entry."""
        try:
            spec = importlib.util.find_spec(module)  # imports the parent packages
        except Exception as error:
            raise UserError(f"the installed module {module} does not load: {type(error).__name__}: {error}") from error
        if spec is None or spec.origin is None:
            raise UserError(f"an installed package names the module {module}, which does not exist")
        file = Path(spec.origin)
        source = file.read_text("utf-8") if file.suffix == ".py" else repr(digest_file(file))
        try:
            importlib.import_module(module)
        except Exception as error:
            message = f"{self.kind} {name!r} does not load: {type(error).__name__}: {error}"
            raise UserError(Mistake(message, file, line_of(error, str(file)))) from error
        if name not in self.registered:
            raise UserError(Mistake(f"the installed module {module} registers no {self.kind} {name!r}", file))
        entry: T = self.mark(self.registered[name], mark_of(source), module)
        return entry


class OperationRegistry(Registry[T]):
    """Operations by "verb:name", each from a file `stages/<verb>/<name>.py` or from a family.

    A family (`FAMILIES`) has one operation for every entry of another registry, such as one for every pruner.
    `stages/<verb>/family.py` makes these operations.
    """

    def names(self) -> frozenset[str]:
        made = {f"{verb}:{name}" for verb, kind in FAMILIES.items() for name in registry(kind).names()}
        return super().names() | made

    def origin(self, name: str) -> str:
        verb, _, own = name.partition(":")
        files = {*self._project, *_installed(self.package), *self.built_in()}
        return registry(FAMILIES[verb]).origin(own) if name not in files and verb in FAMILIES else super().origin(name)

    def built_in(self) -> Mapping[str, str]:
        found = dict(ELSEWHERE)
        for verb in _contents(self.package).folders:
            names = _contents(f"{self.package}.{verb}").modules
            found |= {f"{verb}:{name}": f"{self.package}.{verb}.{name}" for name in names if name != "family"}
        return found

    def _load(self, name: str) -> T:
        verb, _, own = name.partition(":")
        if name in self._project or name in self.registered or self.module_of(name) is not None:
            return super()._load(name)
        made: T = importlib.import_module(f"{self.package}.{verb}.family").make(own)
        return made


FAMILIES: Mapping[str, str] = {"prune": "pruner", "rollout": "rollout", "source": "source", "sample": "decoder"}
"""The verbs that have an operation for every entry of another registry, and the kind of that registry."""

ELSEWHERE: Mapping[str, str] = {"publish:dataset": "tracefactory.publish.dataset"}
"""The modules of operations outside `stages/`, which import from layers above it."""

_KINDS: Mapping[str, Registry[Any]] = {
    "decoder": Registry("decoder", "tracefactory.decoders"),
    "model": Registry("kind of model", "tracefactory.models", identified),
    "operation": OperationRegistry("operation", "tracefactory.stages"),
    "pruner": Registry("pruner", "tracefactory.pruners"),
    "rollout": Registry("rollout", "tracefactory.rollouts"),
    "source": Registry("source", "tracefactory.sources"),
    "verifier": Registry("verifier", "tracefactory.verifiers"),
    "view": Registry("view", "tracefactory.views"),
}


def registry(kind: str) -> Registry[Any]:
    """Return the registry of one kind: decoder, model, operation, pruner, rollout, source,
    verifier or view.
    """
    return _KINDS[kind]


def kinds() -> tuple[str, ...]:
    """Return the kinds that have a registry."""
    return tuple(_KINDS)


@functools.cache
def _installed(package: str) -> Mapping[str, str]:
    """Return the modules that installed packages add to a registry, by the name of the entry."""
    return {one.name: one.value.partition(":")[0] for one in entry_points(group=package)}


class _Contents(NamedTuple):
    modules: tuple[str, ...]
    folders: tuple[str, ...]


@functools.cache
def _contents(package: str) -> _Contents:
    """Return the names of the modules and folders of a package, except names that start with an underscore or dot."""
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    inside = sorted(entry for place in places for entry in Path(place).iterdir() if entry.name[0] not in "_.")
    modules = tuple(entry.stem for entry in inside if entry.suffix == ".py")
    return _Contents(modules, tuple(entry.name for entry in inside if entry.is_dir()))
