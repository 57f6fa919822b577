"""Compare two expressions with math-verify (and through it sympy) when the exact rules cannot decide.

Use this only in a process that may be killed, because sympy has no limits. Both directions are compared, because
math-verify's comparison is not symmetric; its time-out is disabled, because it would be reported as "not equal".
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType


class UnknownError(Exception):
    """The computer algebra system could not parse one of the two expressions."""


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """Import math-verify at its first use: this takes most of a second, and only worker processes need it."""
    return importlib.import_module("math_verify")


def equivalent(left: str, right: str) -> bool:
    """Return whether math-verify finds the two equal in either direction.

    Raises:
        UnknownError: when it cannot parse one of them.
    """
    one, two = _parsed(left), _parsed(right)
    return any(
        library().verify(gold, target, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
        for gold, target in ((one, two), (two, one))
    )


def _parsed(text: str) -> list[object]:
    config = (library().LatexExtractionConfig(), library().ExprExtractionConfig())
    found: list[object] = library().parse(f"${text}$", config, parsing_timeout=None, raise_on_error=True)
    if not found or all(isinstance(item, str) for item in found):
        raise UnknownError(f"cannot parse {text[:200]!r}")
    return found
