"""Plugins of a project: its own pruners, verifiers, views, sources, decoders, kinds of models and operations.

A plugin is one file in the folder of its kind (`pruners/shorter.py`, `stages/verify/twice.py`) that registers one
entry, as the files of this package do. The sources are read with the project and are part of its pipeline, because a
worker on another machine may not have the files. A file is executed as the module
`tracefactory_project_<kind>_<name>` when its entry is first looked up. A process has the plugins of one project at a
time.

A file whose name begins with an underscore (`pruners/_shared.py`) is a helper: it registers nothing, and plugins of its
folder import it with `from . import _shared`. The module of a plugin is a package with its helpers as submodules, so
two plugins have separate copies of a helper, and the helpers of a plugin count in its mark.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.marks import mark_of
from tracefactory.core.plugin_checks import (
    hidden_parameters,
    imported_helpers,
    wrong_entry,
    wrong_imports,
    wrong_names,
)
from tracefactory.core.registry import FAMILIES, kinds, registry
from tracefactory.core.source_code import line_of

FOLDERS: Mapping[str, str] = {kind: registry(kind).package.rpartition(".")[2] for kind in kinds()}
"""The folder of each kind in a project. It has the name of the folder in this package."""

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
VERB = re.compile(r"[a-z]+")
_NO_VERBS = ("id", "from", "with", "run")
_PREFIX = "tracefactory_project_"


@dataclass(frozen=True)
class Plugin:
    """One plugin file. `name` is the name of its entry ("shorter", "verify:twice"); `file` is used in messages only.

    `helpers` are (name, source) of the helper files that it imports, directly or through other helpers.
    """

    kind: str
    name: str
    file: Path
    source: str
    helpers: tuple[tuple[str, str], ...] = ()

    @cached_property
    def module(self) -> str:
        """The name of its module; it is unique because a verb is one word."""
        kind = "stage" if self.kind == "operation" else self.kind
        return f"{_PREFIX}{kind}_{self.name.replace(':', '_')}"

    @property
    def what(self) -> str:
        """Kind and name, for messages."""
        return f"{registry(self.kind).kind} {self.name!r}"


class ProjectPlugins(NamedTuple):
    """The sources of a project's plugins, by path from its root. Unpickling it activates them."""

    root: Path
    sources: Mapping[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.root, dict(self.sources))


class _Loaded(NamedTuple):
    modules: Mapping[str, ModuleType]
    entry: Any


_lock = threading.RLock()
_active = ProjectPlugins(Path(), {})
_by_module: dict[str, Plugin] = {}
_loaded: dict[Plugin, _Loaded] = {}


def read(root: Path, mistakes: list[Mistake]) -> dict[str, str]:
    """Return the sources of a project's plugin files by path from `root`, without executing them.

    Files with an invalid name are left out; their mistakes, and those of installed packages, are added to `mistakes`.
    """
    found: dict[str, str] = {}
    for file in sorted(_files(root)):
        wrong = wrong_file(file, root)
        if wrong is None:
            try:
                found[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                wrong = Mistake(f"cannot be read: {error}", file)
        if wrong is not None:
            mistakes.append(wrong)
    mistakes += _entry_point_conflicts()
    return found


def activate(root: Path, sources: Mapping[str, str]) -> None:
    """Make the plugins of a project the ones that the registries know, in place of those of any other project.

    Args:
        root: the folder of the project.
        sources: the plugin files by path from `root`, as returned by `read`. They are executed when looked up.
    """
    global _active
    with _lock:
        wanted = ProjectPlugins(root, dict(sources))
        if wanted == _active:
            return
        for module in [name for name in sys.modules if name.partition(".")[0] in _by_module]:
            del sys.modules[module]
        _by_module.clear()
        plugins = list(_plugins(wanted))
        _by_module.update({one.module: one for one in plugins})
        for one in plugins:
            sys.modules.update(_loaded[one].modules if one in _loaded else {})
        for kind in kinds():
            registry(kind).set_project({one.name: partial(_entry, one) for one in plugins if one.kind == kind})
        _active = wanted


def active() -> ProjectPlugins:
    """Return the active plugins, to be sent to another process."""
    return _active


def load_active() -> list[Mistake]:
    """Execute every active plugin, make its operation if it has one, and return all mistakes."""
    mistakes: list[Mistake] = []
    for plugin in _by_module.values():
        try:
            entry = registry(plugin.kind).get(plugin.name)
            for verb in (verb for verb, kind in FAMILIES.items() if kind == plugin.kind):
                op = f"{verb}:{plugin.name}"
                params = registry("operation").get(op).Params
                own_file = any(one.kind == "operation" and one.name == op for one in _by_module.values())
                mistakes += [] if own_file else hidden_parameters(entry, params, verb, plugin.file)
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # noqa: BLE001  # reported as a mistake in the file
            mistakes.append(_broken(plugin, error))
    return mistakes


def load(root: Path) -> None:
    """Read, activate and execute the plugins of a project.

    Raises:
        UserError: with all mistakes in them.
    """
    mistakes: list[Mistake] = []
    activate(root, read(root, mistakes))
    mistakes += load_active()
    if mistakes:
        raise UserError(mistakes)


def _unpickled(root: Path, sources: Mapping[str, str]) -> ProjectPlugins:
    activate(root, sources)
    return ProjectPlugins(root, sources)


def _files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS.values():
        deep = "**/*.py" if folder == FOLDERS["operation"] else "*.py"
        yield from (one for one in (root / folder).glob(deep) if one.name != "__init__.py" and one.is_file())


def wrong_file(file: Path, root: Path) -> Mistake | None:
    """Return why a file cannot be a plugin or helper, from its path alone; None for a file in another folder."""
    parts = file.relative_to(root).parts
    kind = next((kind for kind, folder in FOLDERS.items() if folder == parts[0]), None)
    if kind is None:
        return None
    label, name = registry(kind).kind, file.stem
    if NAME.fullmatch(name.removeprefix("_")) and name.startswith("_"):
        return None  # a helper
    if not NAME.fullmatch(name):
        hint = "write it in small letters, digits and single underscores"
        return Mistake(f"{name!r} is no name of a {label}; a file has the name of its entry", file, hint=hint)
    if kind == "operation":
        verb = parts[1] if len(parts) == 3 else ""
        if not VERB.fullmatch(verb) or verb in _NO_VERBS:
            return Mistake("an operation belongs into stages/<verb>/, and a verb is one word", file)
        if verb == "filter":
            return Mistake("`filter:` takes filters, which belong into filters/", file)
        name = f"{verb}:{name}"
    return _name_conflict(kind, name, file)


def _name_conflict(kind: str, name: str, file: Path) -> Mistake | None:
    """Return a mistake if an entry of this package, or of an installed one, has the name of a plugin."""
    where = registry(kind)
    names = [(where, name), *((registry("operation"), f"{verb}:{name}") for verb, of in FAMILIES.items() if of == kind)]
    for known, own in names:
        shown = f"`{own.replace(':', ': ')}`" if known is registry("operation") else f"the {known.kind} {own!r}"
        if own in known.built_in() or (own in known.names() and known.origin(own) == "built in"):
            return Mistake(f"{shown} is built in", file, hint="rename the file and its entry")
    origin = where.module_of(name)
    if origin is not None:
        message = f"the installed module {origin} provides the {where.kind} {name!r} too"
        return Mistake(message, file, hint="rename the file and its entry")
    return None


def _entry_point_conflicts() -> Iterator[Mistake]:
    """Yield a mistake for every entry point whose name is built in, or is that of another entry point."""
    every = entry_points()
    for kind in kinds():
        where = registry(kind)
        first: dict[str, str] = {}
        for one in every.select(group=where.package):
            module = one.value.partition(":")[0]
            other = "this package" if one.name in where.built_in() else first.setdefault(one.name, module)
            if other != module:
                message = f"the installed module {module} provides the {where.kind} {one.name!r}, as {other} does"
                yield Mistake(message, hint="uninstall the package, or rename its entry point")


def _plugins(project: ProjectPlugins) -> Iterator[Plugin]:
    """Yield the plugins of a project with the helpers that they import."""
    files = {PurePosixPath(path): source for path, source in project.sources.items()}
    for path, source in files.items():
        if path.stem.startswith("_"):
            continue
        kind = next(kind for kind, folder in FOLDERS.items() if folder == path.parts[0])
        beside = {one.stem: text for one, text in files.items() if one.parent == path.parent and one.stem[0] == "_"}
        helpers = imported_helpers(source, beside)
        yield Plugin(kind, ":".join(path.with_suffix("").parts[1:]), project.root / path, source, helpers)


def _entry(plugin: Plugin) -> Any:
    """Return the entry of a plugin, marked with the digest of its source; the file is executed once."""
    if plugin not in _loaded:
        importlib.import_module(plugin.module)
    return _loaded[plugin].entry


def _execute(plugin: Plugin, run: Callable[[], None]) -> Any:
    """Execute a plugin file and return its marked entry.

    The entry is removed from what modules have registered, so that a plugin of another project can have its name.

    Raises:
        UserError: when the file cannot be executed, or does not register exactly one entry, with the file's name.
    """
    if mistakes := wrong_imports(plugin.file, plugin.source, plugin.helpers, _active.sources):
        raise UserError(mistakes)
    where = registry(plugin.kind)
    before = {kind: frozenset(registry(kind).registered) for kind in kinds()}
    failed: BaseException | None = None
    try:
        run()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # raised below, after the entries are removed
        failed = error
    entries: dict[tuple[str, str], Any] = {}
    for known, names in ((registry(kind), names) for kind, names in before.items()):
        for name in sorted(known.registered.keys() - names):
            if known.module_of(name) not in sys.modules:  # else a module registered it that the plugin imports
                entries[known.kind, name] = known.registered.pop(name)
    if failed is not None:
        raise UserError(_broken(plugin, failed)) from failed
    own = (where.kind, plugin.name)
    others = [name for of, name in entries if (of, name) != own]
    if mistakes := wrong_names(plugin.file, plugin.source, plugin.what, own in entries, others):
        raise UserError(mistakes)
    entry = where.mark(entries[own], mark_of(plugin.source, *(source for _, source in plugin.helpers)), plugin.module)
    if mistakes := wrong_entry(plugin.kind, entry, plugin.name, plugin.file):
        raise UserError(mistakes)
    return entry


def _broken(plugin: Plugin, error: BaseException) -> Mistake:
    line = line_of(error, str(plugin.file))
    if isinstance(error, SyntaxError):
        helpers = [plugin.file.with_name(f"{name}.py") for name, _ in plugin.helpers]
        helper = next((file for file in helpers if str(file) == error.filename), None)
        return Mistake(f"not Python: {error.msg}", helper or plugin.file, error.lineno if helper else line)
    return Mistake(f"{plugin.what} does not load: {type(error).__name__}: {error}", plugin.file, line)


class _Loader(importlib.abc.ExecutionLoader):
    """Executes a plugin, or one of its helpers, from its source; the file may not exist on this machine."""

    def __init__(self, plugin: Plugin, helper: str = "") -> None:
        self.plugin = plugin
        self.helper = helper

    def is_package(self, fullname: str) -> bool:
        return not self.helper  # so that `from . import _shared` imports a submodule of the plugin

    def get_source(self, fullname: str) -> str:
        return dict(self.plugin.helpers)[self.helper] if self.helper else self.plugin.source

    def get_filename(self, fullname: str) -> str:
        return str(self.plugin.file.with_name(f"{self.helper}.py") if self.helper else self.plugin.file)

    def exec_module(self, module: ModuleType) -> None:
        if self.helper:
            super().exec_module(module)
            return
        # Here and not in `_entry`: unpickling a class of the plugin imports the module without looking up the entry.
        with _lock:
            entry = _execute(self.plugin, partial(super().exec_module, module))
            own = {name: one for name, one in sys.modules.items() if name.startswith(f"{module.__name__}.")}
            _loaded[self.plugin] = _Loaded({module.__name__: module, **own}, entry)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the active plugins, for `importlib` and for unpickling their classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        name, _, helper = fullname.partition(".")
        plugin = _by_module.get(name)
        if plugin is None or (helper and helper not in dict(plugin.helpers)):
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(plugin, helper))


sys.meta_path.append(_Finder())
