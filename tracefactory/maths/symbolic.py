"""Ask math-verify (and through it sympy) about two expressions the exact rules could not decide.

Runs only in a process that may be killed: sympy has no limits of its own. Both directions are asked, because
math-verify's comparison is not symmetric, and no time-out of its own is used, because that would read as "not equal".
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType


class UnknownError(Exception):
    """The computer algebra system could not read one of the two."""


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """Import math-verify when it is first needed: it takes most of a second, and only worker processes need it."""
    return importlib.import_module("math_verify")


def equivalent(left: str, right: str) -> bool:
    """Return whether math-verify finds the two equal in either direction.

    Raises:
        UnknownError: when it cannot read one of them.
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
        raise UnknownError(f"cannot read {text[:200]!r}")
    return found
