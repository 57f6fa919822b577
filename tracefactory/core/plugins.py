"""A project's own pruners, verifiers, views, sources, decoders, kinds of models and operations: one file each.

They lie in the project's folder of their kind (`pruners/shorter.py`, `stages/verify/twice.py`) and register themselves
as the package's own do. Their sources are read with the project and travel with its pipeline, because a worker on
another machine may not have the files; each is run as the module `tracefactory_project_<kind>_<name>` when it is first
looked up. One project's plugins are in use at a time in a process.
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
from tracefactory.core.plugin_checks import wrong_entry, wrong_names
from tracefactory.core.registry import FAMILIES, Registry, kinds, registry
from tracefactory.core.source_code import line_of

FOLDERS: Mapping[str, str] = {kind: registry(kind).package.rpartition(".")[2] for kind in kinds()}
"""The folder of each kind of plugin in a project: that of its kind in this package."""

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
VERB = re.compile(r"[a-z]+")
_NO_VERBS = ("id", "from", "with", "run")
_PREFIX = "tracefactory_project_"


@dataclass(frozen=True)
class Plugin:
    """One plugin file: `name` is that of its entry ("shorter", or "verify:twice"), `file` is for messages alone."""

    kind: str
    name: str
    file: Path
    source: str

    @cached_property
    def module(self) -> str:
        """The name of the module that it is run as; words of names have no ":" or second "_" in them."""
        kind = "stage" if self.kind == "operation" else self.kind
        return f"{_PREFIX}{kind}_{self.name.replace(':', '_')}"

    @property
    def what(self) -> str:
        """What it is, for messages."""
        return f"{registry(self.kind).kind} {self.name!r}"


class ProjectPlugins(NamedTuple):
    """The sources of a project's plugins by path from its root; it puts them in use where it is unpickled."""

    root: Path
    sources: Mapping[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.root, dict(self.sources))


class _Loaded(NamedTuple):
    module: ModuleType
    entry: Any


_lock = threading.RLock()
_in_use = ProjectPlugins(Path(), {})
_by_module: dict[str, Plugin] = {}
_loaded: dict[Plugin, _Loaded] = {}


def read(root: Path, mistakes: list[Mistake]) -> dict[str, str]:
    """Return the sources of a project's plugin files by their path from `root`; what is wrong goes to `mistakes`.

    Nothing is run. A file whose name cannot be used is not among them.
    """
    found: dict[str, str] = {}
    for file in sorted(_files(root)):
        wrong = wrong_file(file, root)
        if wrong is None:
            try:
                found[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                wrong = Mistake(f"cannot be read: {error}", file)
        if wrong is not None:
            mistakes.append(wrong)
    mistakes += _installed_twice()
    return found


def use(root: Path, sources: Mapping[str, str]) -> None:
    """Have the registries hold the plugins of a project, and no others. Nothing is run before it is looked up."""
    global _in_use
    with _lock:
        wanted = ProjectPlugins(root, dict(sources))
        if wanted == _in_use:
            return
        for module in _by_module:
            sys.modules.pop(module, None)
        for kind in FAMILIES.values():  # operations that were made of a plugin are made anew
            _forget_family(kind, [one.name for one in _by_module.values() if one.kind == kind])
        _by_module.clear()
        plugins = [_plugin(root, path, source) for path, source in wanted.sources.items()]
        _by_module.update({one.module: one for one in plugins})
        sys.modules.update({one.module: _loaded[one].module for one in plugins if one in _loaded})
        for kind in kinds():
            own = [one for one in plugins if one.kind == kind]
            registry(kind).set_project({one.name: partial(_entry, one) for one in own})
            _forget_family(kind, [one.name for one in own])
        _in_use = wanted


def in_use() -> ProjectPlugins:
    """Return the plugins that are in use, for a process that is started to do a part of this one's work."""
    return _in_use


def load_all() -> list[Mistake]:
    """Run every plugin that is in use and return everything that is wrong with them, as file:line."""
    mistakes: list[Mistake] = []
    for plugin in _by_module.values():
        verbs = [verb for verb, kind in FAMILIES.items() if kind == plugin.kind]
        try:
            registry(plugin.kind).get(plugin.name)
            for verb in verbs:
                registry("operation").get(f"{verb}:{plugin.name}")
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # noqa: BLE001  # whatever making an operation of it raises is about its file
            mistakes.append(_broken(plugin, error))
    return mistakes


def load(root: Path) -> None:
    """Read, use and run the plugins of a project.

    Raises:
        UserError: with everything that is wrong with them.
    """
    mistakes: list[Mistake] = []
    use(root, read(root, mistakes))
    mistakes += load_all()
    if mistakes:
        raise UserError(mistakes)


def _unpickled(root: Path, sources: Mapping[str, str]) -> ProjectPlugins:
    use(root, sources)
    return ProjectPlugins(root, sources)


def _files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS.values():
        deep = "**/*.py" if folder == FOLDERS["operation"] else "*.py"
        yield from (one for one in (root / folder).glob(deep) if one.name != "__init__.py" and one.is_file())


def wrong_file(file: Path, root: Path) -> Mistake | None:
    """Return why a file cannot be a plugin, from its path alone; None for one that lies in no folder of plugins."""
    parts = file.relative_to(root).parts
    kind = next((kind for kind, folder in FOLDERS.items() if folder == parts[0]), None)
    if kind is None:
        return None
    label, name = registry(kind).kind, file.stem
    if not NAME.fullmatch(name):
        hint = f"a folder {parts[0]}/ holds {label}s only" if name.startswith(("_", "test", "conftest")) else None
        return Mistake(f"{name!r} is no snake_case name; a file is named like the {label} in it", file, hint=hint)
    if kind == "operation":
        verb = parts[1] if len(parts) == 3 else ""
        if not VERB.fullmatch(verb) or verb in _NO_VERBS:
            return Mistake("an operation lies in stages/<verb>/, the verb being one word", file)
        if verb == "filter":
            return Mistake("`filter:` takes filters, which lie in filters/", file)
        name = f"{verb}:{name}"
    return _taken(kind, name, file)


def _taken(kind: str, name: str, file: Path) -> Mistake | None:
    """Say what else has the name of a plugin: a part of this package, or of an installed one."""
    where = registry(kind)
    names = [(where, name), *((registry("operation"), f"{verb}:{name}") for verb, of in FAMILIES.items() if of == kind)]
    for known, own in names:
        said = f"`{own.replace(':', ': ')}`" if known is registry("operation") else f"the {known.kind} {own!r}"
        if own in known.built_in() or (own in known.names() and known.origin(own) == "built in"):
            return Mistake(f"{said} is built in: a project's own has another name", file, hint="rename the file")
    origin = where.module_of(name)
    if origin is not None:
        return Mistake(
            f"the {where.kind} {name!r} is in the installed module {origin} too", file, hint="rename the file"
        )
    return None


def _installed_twice() -> Iterator[Mistake]:
    """Yield a mistake for every name that an installed package gives to something that has it already."""
    for kind in kinds():
        where = registry(kind)
        first: dict[str, str] = {}
        for one in entry_points(group=where.package):
            module = one.value.partition(":")[0]
            other = "this package" if one.name in where.built_in() else first.setdefault(one.name, module)
            if other != module:
                message = f"the installed module {module} gives a {where.kind} {one.name!r}, as {other} does"
                yield Mistake(message, hint="uninstall one of them, or have its name changed")


def _plugin(root: Path, path: str, source: str) -> Plugin:
    parts = PurePosixPath(path).with_suffix("").parts
    kind = next(kind for kind, folder in FOLDERS.items() if folder == parts[0])
    return Plugin(kind, ":".join(parts[1:]), root / path, source)


def _forget_family(kind: str, names: Sequence[str]) -> None:
    for verb in (verb for verb, of in FAMILIES.items() if of == kind):
        for name in names:
            registry("operation").forget(f"{verb}:{name}")


def _entry(plugin: Plugin) -> Any:
    """Return what a plugin registers, marked with its source; its file is run once."""
    if plugin not in _loaded:
        importlib.import_module(plugin.module)
    return _loaded[plugin].entry


def _taken_from(plugin: Plugin, run: Callable[[], None]) -> Any:
    """Run a plugin file and take what it registers out of the registry, so that another project's may have the name.

    Raises:
        UserError: when it does not run, or registers anything but one entry of its own name.
    """
    where = registry(plugin.kind)
    before = {kind: registry(kind).registered() for kind in kinds()}
    failed: BaseException | None = None
    try:
        run()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # told below, when nothing of it is left
        failed = error
    theirs = [one for kind, names in before.items() for one in _new(registry(kind), names)]
    entries = {(known.kind, name): known.taken_back(name) for known, name in theirs}
    if failed is not None:
        raise UserError(_broken(plugin, failed)) from failed
    own = (where.kind, plugin.name)
    others = [name for of, name in entries if (of, name) != own]
    if mistakes := wrong_names(plugin.file, plugin.source, plugin.what, own in entries, others):
        raise UserError(mistakes)
    entry = where.mark(entries[own], mark_of(plugin.source), plugin.module)
    if mistakes := wrong_entry(entry, plugin.name, plugin.file):
        raise UserError(mistakes)
    return entry


def _new(known: Registry[Any], before: frozenset[str]) -> Iterator[tuple[Registry[Any], str]]:
    """Yield what was registered meanwhile, less what modules of this package, and of others, registered as theirs."""
    for name in sorted(known.registered() - before):
        if known.module_of(name) not in sys.modules:
            yield known, name


def _broken(plugin: Plugin, error: BaseException) -> Mistake:
    line = line_of(error, str(plugin.file))
    if isinstance(error, SyntaxError):
        return Mistake(f"not Python: {error.msg}", plugin.file, line)
    return Mistake(f"{plugin.what} does not load: {type(error).__name__}: {error}", plugin.file, line)


class _Loader(importlib.abc.ExecutionLoader):
    """Runs a plugin from its source; the file need not be on this machine."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def get_source(self, fullname: str) -> str:
        return self.plugin.source

    def get_filename(self, fullname: str) -> str:
        return str(self.plugin.file)

    def exec_module(self, module: ModuleType) -> None:
        # Here and not where an entry is looked up: a class of the plugin may be unpickled before.
        with _lock:
            entry = _taken_from(self.plugin, partial(super().exec_module, module))
            _loaded[self.plugin] = _Loaded(module, entry)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the plugins that are in use, for `import` and for what unpickles their classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        plugin = _by_module.get(fullname)
        return None if plugin is None else importlib.util.spec_from_loader(fullname, _Loader(plugin))


sys.meta_path.append(_Finder())
