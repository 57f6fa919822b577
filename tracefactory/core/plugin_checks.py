"""Checks of the entries that a plugin file registers. Mistakes have a file and a line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tracefactory.core.errors import Mistake

_UNSET = object()


def wrong_names(file: Path, source: str, what: str, found: bool, others: Sequence[str]) -> list[Mistake]:
    """Return the mistakes in the names that a file registered.

    Args:
        file: the plugin file.
        source: its text.
        what: the kind and name of the entry that the file should register.
        found: whether the file registered that entry.
        others: the other names that the file registered.
    """
    if found:
        hint = "a file registers one entry"
        return [
            Mistake(f"registers {one!r} in addition to the {what}", file, _line_with(source, one), hint)
            for one in others
        ]
    if others:
        hint = f"rename the file or the entry {others[0]!r}"
        message = f"registers {', '.join(map(repr, others))}, but no {what} (the name of the file)"
        return [Mistake(message, file, _line_with(source, others[0]), hint)]
    return [Mistake(f"registers no {what}", file, hint="`tracefactory new` writes a file that does")]


def wrong_entry(kind: str, entry: Any, name: str, file: Path) -> list[Mistake]:
    """Return missing methods, missing class attributes, and a name attribute that differs from the name of the file.

    Args:
        kind: the kind of the registry.
        entry: the entry that the file registered.
        name: the name of the file, for an operation "verb:name".
        file: the plugin file.
    """
    defined: Any = entry if isinstance(entry, type) else type(entry)
    if not defined.__module__.startswith("tracefactory_project_"):
        return []  # a view is an instance of a class of this package, which checks its fields
    line = _line_of_class(defined)
    missing = [f"{one}()" for one in sorted(getattr(defined, "__abstractmethods__", ()))]
    missing += [
        name
        for base in defined.__mro__
        for name, annotation in inspect.get_annotations(base).items()
        if "ClassVar" in str(annotation) and not name.startswith("_") and getattr(entry, name, _UNSET) is _UNSET
    ]
    if missing:
        return [Mistake(f"{defined.__name__} lacks {', '.join(missing)}", file, line)]
    own = entry.model_fields["use"].default if kind == "model" else getattr(entry, "name", None)
    if kind == "operation":
        own = f"{entry.verb}:{entry.name}"
    if isinstance(own, str) and own != name:
        return [Mistake(f"{defined.__name__} is named {own!r}, but the name of the file is {name!r}", file, line)]
    return []


def hidden_parameters(entry: Any, params: type[BaseModel], verb: str, file: Path) -> list[Mistake]:
    """Return the parameters of an entry that have the name of another parameter of its operation.

    Args:
        entry: a class whose fields are parameters, for example a pruner.
        params: the parameters of the operation made from the entry.
        verb: the verb of the operation.
        file: the plugin file.
    """
    own: dict[str, Any] = getattr(entry, "model_fields", {}) if isinstance(entry, type) else {}
    used = params.model_fields
    hidden = [
        name
        for name, field in own.items()
        if (field.annotation, field.default) != (used[name].annotation, used[name].default)
    ]
    message = f"every `{verb}:` stage has a parameter of this name"
    return [Mistake(f"{name}: {message}", file, _line_of_class(entry), "rename it") for name in hidden]


def imported_helpers(source: str, beside: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return name and source of the helpers that a plugin imports, directly or through other helpers, sorted by name.

    Args:
        source: the source of the plugin.
        beside: the sources of the helpers in its folder, by name.
    """
    found: dict[str, str] = {}
    waiting = [source]
    while waiting:
        names = {name for name, _ in _imports(waiting.pop(), relative=True) if name in beside and name not in found}
        found |= {name: beside[name] for name in names}
        waiting += [beside[name] for name in names]
    return tuple(sorted(found.items()))


def wrong_imports(
    file: Path, source: str, helpers: Sequence[tuple[str, str]], project: Mapping[str, str]
) -> list[Mistake]:
    """Return the imports of files of the project that are not helpers, in a plugin and in its helpers.

    Such an import would work only where the file exists, and the file would not count in the keys.

    Args:
        file: the plugin file.
        source: its source.
        helpers: name and source of each helper that it imports.
        project: the sources of all plugins and helpers of the project, by path.
    """
    hint = "only files whose names begin with an underscore can be imported: `from . import _shared`"
    modules = {path.removesuffix(".py").replace("/", ".") for path in project}
    texts = {file: source, **{file.with_name(f"{name}.py"): text for name, text in helpers}}
    mistakes: list[Mistake] = []
    for place, text in texts.items():
        for name, line in _imports(text, relative=True):
            if name not in dict(helpers):
                mistakes.append(
                    Mistake(f"imports {name!r}, and there is no helper {name}.py beside it", place, line, hint)
                )
        for name, line in _imports(text, relative=False):
            if name in modules:
                mistakes.append(Mistake(f"imports {name!r}, a file of the project", place, line, hint))
    return mistakes


def _imports(source: str, *, relative: bool) -> Iterator[tuple[str, int]]:
    """Yield the modules that may be imported by a source, with their lines.

    Args:
        source: the source.
        relative: True for the first names of relative imports, in which more dots than one stay; False for the modules
            of absolute imports.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # reported when the file is executed
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and not relative:
            yield from ((one.name, node.lineno) for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level and relative:
            names = [node.module.partition(".")[0]] if node.module else [one.name for one in node.names]
            yield from (("." * (node.level - 1) + name, node.lineno) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and not relative:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{one.name}", node.lineno) for one in node.names)


def _line_of_class(kind: type) -> int | None:
    try:
        return inspect.getsourcelines(kind)[1]
    except OSError:  # a class that the file imports has no definition in it
        return None


def _line_with(source: str, name: str) -> int | None:
    """Return the line of a source that contains a name as a string literal."""
    lines = {node.value: node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return lines.get(name, lines.get(name.rpartition(":")[2]))
