"""What code that is not part of this package adds to keys: a digest of its source, so that they change when it does.

The digest joins the version of what was registered (`1+0123456789ab`); a kind of model has no version, and its identity
tells the digest.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
import sys
from collections.abc import Callable
from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.core.source_code import source_digest

_DIGITS = 12
_MARK = re.compile(rf"(.*)\+([0-9a-f]{{{_DIGITS}}})")

Mark = Callable[[Any, str, str], Any]
"""Puts a mark on an entry of a registry; also given is the name of the module that registered it."""


def mark_of(source: str) -> str:
    """Return the mark of a Python source: a digest in which comments, layout and docstrings do not count."""
    return source_digest(ast.parse(source))[:_DIGITS]


def split_version(version: str) -> tuple[str, str]:
    """Return a version without its mark, and the mark; that is empty for what belongs to this package."""
    found = _MARK.fullmatch(version)
    return (found[1], found[2]) if found else (version, "")


def versioned(entry: Any, mark: str, module: str) -> Any:
    """Return an entry with a mark on its version; one that has no version is version 1.

    A class of another module, and any instance, is left as it is: what is returned is a subclass or a copy.
    """
    version = f"{split_version(getattr(entry, 'version', '1'))[0]}+{mark}"
    if isinstance(entry, type):
        kind: Any = _own(entry, module)
        kind.version = version
        return kind
    copied = copy.copy(entry)
    vars(copied)["version"] = version  # a view is a frozen dataclass
    return copied


def identified(entry: Any, mark: str, module: str) -> Any:
    """Return a kind of model whose identity, and the key of its token scores, tell the mark."""
    kind = _own(entry, module)
    if vars(kind).get("_marked") == mark:
        return kind
    for name in ("identity", "token_identity"):
        setattr(kind, name, _telling(getattr(kind, name), mark))
    kind.scores_key = _digesting(kind.scores_key, mark)
    kind._marked = mark
    return kind


def _telling(method: Callable[..., dict[str, Any]], mark: str) -> Callable[..., dict[str, Any]]:
    @functools.wraps(method)
    def told(*arguments: Any, **named: Any) -> dict[str, Any]:
        return {**method(*arguments, **named), "plugin": mark}

    return told


def _digesting(method: Callable[..., str], mark: str) -> Callable[..., str]:
    @functools.wraps(method)
    def digested(*arguments: Any, **named: Any) -> str:
        return digest([method(*arguments, **named), mark])

    return digested


def _own(kind: Any, module: str) -> Any:
    """Return a class that may be changed: for one of another module, a subclass of it that is this module's."""
    if kind.__module__ == module:
        return kind
    made = type(kind)(kind.__name__, (kind,), {"__module__": module, "__doc__": kind.__doc__})
    setattr(sys.modules[module], kind.__name__, made)  # where pickle looks for it
    return made
