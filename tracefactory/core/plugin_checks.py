"""What can be wrong with what a plugin file registers, each as file:line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracefactory.core.errors import Mistake

_UNSET = object()


def wrong_names(file: Path, source: str, what: str, found: bool, others: Sequence[str]) -> list[Mistake]:
    """Return what is wrong with the names under which a file registered something.

    Args:
        file: the plugin.
        source: its text.
        what: what it should register, and its name.
        found: whether it did.
        others: the names of what else it registered.
    """
    if found:
        hint = "one file holds one"
        return [
            Mistake(f"registers {other!r} besides the {what}", file, _line_with(source, other), hint)
            for other in others
        ]
    if others:
        hint = f"rename one of them: {others[0]!r}, or the file"
        message = f"registers {', '.join(map(repr, others))}, and no {what} as its file is called"
        return [Mistake(message, file, _line_with(source, others[0]), hint)]
    return [Mistake(f"registers no {what}", file, hint="decorate it as those in the package are")]


def wrong_entry(entry: Any, name: str, file: Path) -> list[Mistake]:
    """Return what an entry lacks: methods and attributes that its base class leaves to it, and its right name."""
    kind: Any = entry if isinstance(entry, type) else type(entry)
    if not kind.__module__.startswith("tracefactory_project_"):
        return []  # a view: a value of a class of this package, which has checked itself
    line = _line_of_class(kind)
    missing = [f"{one}()" for one in sorted(getattr(kind, "__abstractmethods__", ()))]
    missing += [one for one in _declared(kind) if getattr(entry, one, _UNSET) is _UNSET]
    if missing:
        return [Mistake(f"{kind.__name__} lacks {', '.join(missing)}", file, line)]
    verb, own = getattr(entry, "verb", None), _own_name(entry)
    if isinstance(verb, str) and isinstance(own, str):
        own = f"{verb}:{own}"
    if isinstance(own, str) and own != name:
        return [Mistake(f"{kind.__name__} is called {own!r}, and its file {name!r}", file, line)]
    return []


def _declared(kind: type) -> Iterator[str]:
    """Yield the class attributes that a class or its bases declare, with or without a value."""
    for one in kind.__mro__:
        for name, annotation in inspect.get_annotations(one).items():
            if "ClassVar" in str(annotation) and not name.startswith("_"):
                yield name


def _own_name(entry: Any) -> Any:
    """Return the name that an entry has inside; a kind of model has it as what `use` is."""
    fields = getattr(entry, "model_fields", {})
    return fields["use"].default if "use" in fields else getattr(entry, "name", None)


def _line_of_class(kind: type) -> int | None:
    try:
        return inspect.getsourcelines(kind)[1]
    except OSError:  # a class that the file imports, under another name than there
        return None


def _line_with(source: str, name: str) -> int | None:
    """Return the line of a source that has a name as text."""
    lines = {node.value: node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return lines.get(name, lines.get(name.rpartition(":")[2]))
