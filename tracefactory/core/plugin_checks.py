"""Checks of what a plugin file registers. Mistakes have file and line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
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
        return [Mistake(f"registers {one!r} besides the {what}", file, _line_with(source, one), hint) for one in others]
    if others:
        hint = f"rename the file or the entry {others[0]!r}"
        message = f"registers {', '.join(map(repr, others))}, but no {what} (the name of the file)"
        return [Mistake(message, file, _line_with(source, others[0]), hint)]
    return [Mistake(f"registers no {what}", file, hint="`tracefactory new` writes a file that does")]


def wrong_entry(kind: str, entry: Any, name: str, file: Path) -> list[Mistake]:
    """Return missing methods, missing class attributes, and a name attribute that differs from the name of the file."""
    defined: Any = entry if isinstance(entry, type) else type(entry)
    if not defined.__module__.startswith("tracefactory_project_"):
        return []  # a view is an instance of a class of this package, which checks its fields
    line = _line_of_class(defined)
    missing = [f"{one}()" for one in sorted(getattr(defined, "__abstractmethods__", ()))]
    missing += [one for one in _class_attributes(defined) if getattr(entry, one, _UNSET) is _UNSET]
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


def _class_attributes(kind: type) -> Iterator[str]:
    """Yield the class attributes that a class and its bases annotate, with or without a value."""
    for one in kind.__mro__:
        for name, annotation in inspect.get_annotations(one).items():
            if "ClassVar" in str(annotation) and not name.startswith("_"):
                yield name


def _line_of_class(kind: type) -> int | None:
    try:
        return inspect.getsourcelines(kind)[1]
    except OSError:  # a class that the file imports has no definition in it
        return None


def _line_with(source: str, name: str) -> int | None:
    """Return the line of a source that contains a name as a string literal."""
    lines = {node.value: node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return lines.get(name, lines.get(name.rpartition(":")[2]))
