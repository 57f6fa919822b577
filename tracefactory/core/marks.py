"""Marks: source digests in the keys of entries from outside this package, so that keys change with their code.

The digest is appended to the version of the entry (`1+0123456789ab`). A kind of model has no version; the digest is
part of its identity.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tracefactory.core.fingerprint import digest
from tracefactory.core.source_code import source_digest

T = TypeVar("T")
_DIGITS = 12
_MARKED = re.compile(rf"(.*)\+([0-9a-f]{{{_DIGITS}}})")

Mark = Callable[[Any, str, str], Any]
"""Marks a registry entry. Arguments: the entry, the mark, and the name of the module that registered the entry."""


def mark_of(source: str, *helpers: str) -> str:
    """Return the mark of a Python source: the start of a digest that ignores comments, layout and docstrings.

    Args:
        source: the source.
        helpers: the sources of the files of the project that it imports.
    """
    digests = [source_digest(ast.parse(one)) for one in (source, *helpers)]
    return (digest(digests) if helpers else digests[0])[:_DIGITS]


def split_version(version: str) -> tuple[str, str]:
    """Return a version without its mark, and the mark; the mark of an entry of this package is empty."""
    found = _MARKED.fullmatch(version)
    return (found[1], found[2]) if found else (version, "")


def versioned(entry: Any, mark: str, module: str) -> Any:
    """Return an entry with a marked version. An entry without a version has version 1.

    A class that the module defines is changed in place. For a class of another module a subclass is returned, and for
    an instance a copy.

    Args:
        entry: a class or an instance.
        mark: the mark of its source.
        module: the name of the module that registered it.
    """
    version = f"{split_version(getattr(entry, 'version', '1'))[0]}+{mark}"
    if isinstance(entry, type):
        kind: Any = _class_of_module(entry, module)
        kind.version = version
        return kind
    copied = copy.copy(entry)
    vars(copied)["version"] = version  # not by assignment: a view is a frozen dataclass
    return copied


def identified(entry: Any, mark: str, module: str) -> Any:
    """Return a kind of model with the mark in its identity and in the key of its token scores.

    Args:
        entry: the model class.
        mark: the mark of its source.
        module: the name of the module that registered it.
    """
    kind = _class_of_module(entry, module)
    if vars(kind).get("_marked") == mark:
        return kind
    for name in ("identity", "token_identity"):
        setattr(kind, name, _changed(getattr(kind, name), lambda identity: {**identity, "plugin": mark}))
    kind.scores_key = _changed(kind.scores_key, lambda key: digest([key, mark]))
    kind._marked = mark
    return kind


def _changed(method: Callable[..., T], change: Callable[[T], T]) -> Callable[..., T]:
    """Return a method that applies `change` to the results of another method."""

    @functools.wraps(method)
    def changed(*arguments: Any, **named: Any) -> T:
        return change(method(*arguments, **named))

    return changed


def _class_of_module(kind: Any, module: str) -> Any:
    """Return the class if the module defines it, else a subclass of it that belongs to the module."""
    if kind.__module__ == module:
        return kind
    made = type(kind)(kind.__name__, (kind,), {"__module__": module, "__doc__": kind.__doc__})
    setattr(sys.modules[module], kind.__name__, made)  # so that pickle finds the class by its name
    return made
