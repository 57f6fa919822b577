"""What a source is: something that gives problems, and says what decides which ones."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Problem

P = TypeVar("P", bound=Frozen)

# Decompositions that change what is meant: x² is not x2, and ½ is not 1/2 of "11/2" in 1½.
_MEANINGFUL = ("<super>", "<sub>", "<fraction>")


class Rejected(Frozen):
    """A row that could not become a problem: the row as JSON text, a stable snake_case reason, and where and why."""

    row: str
    reason: str
    detail: str


class Source(ABC, Generic[P]):
    """One kind of source. Stateless: everything comes in through the arguments.

    `version` is part of the stage key and changes when the same parameters would give other rows. `base_dir` is the
    folder that relative paths start from.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    Params: ClassVar[type[Frozen]]
    offline: ClassVar[bool] = True  # whether the rows can be had without the network

    @abstractmethod
    def read(self, params: P, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        """Yield problems in a fixed order, and what could not become one where it stood.

        `limit` ends after that many problems; it never changes which problem comes first.

        Raises:
            UserError: when there is nothing to read as the parameters say.
        """

    def located(self, params: P, environ: Mapping[str, str]) -> P:
        """Return the parameters with what they read from the environment in its place; keys never hold that.

        Raises:
            UserError: when an environment variable is unset.
        """
        return params

    @abstractmethod
    def identity(self, params: P, base_dir: Path) -> dict[str, Any]:
        """Return what decides the rows besides the parameters, as plain JSON values."""

    def verifiers(self, params: P) -> frozenset[str]:
        """Return the names of the verifiers that the problems may name."""
        return frozenset({"auto"})

    @abstractmethod
    def describe(self, params: P) -> str:
        """Return what is read in a few words, for the card of the dataset."""

    @abstractmethod
    def check(self, params: P, base_dir: Path) -> list[str]:
        """Return what is wrong with the parameters that their types cannot say. Offline."""


SOURCES: Registry[type[Source[Any]]] = registry("source")
"""Every source by the name that a pipeline uses."""


def json_text(value: Any) -> str:
    """Return `value` as JSON text that can be stored as UTF-8, whatever it holds.

    Numbers that JSON lacks become null; what is no JSON value (dates, bytes) becomes its string; half a surrogate pair,
    which UTF-8 cannot hold, becomes its escape.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def normalised_question(problem: Problem) -> str:
    """Return the form of a question under which two problems count as the same one.

    Case, white space, invisible characters and compatibility forms (full-width letters, ligatures, mathematical
    alphabets: Unicode NFKC) do not count; superscripts, subscripts and fractions do.
    """
    if problem.question.isascii():
        return " ".join(problem.question.lower().split())
    characters = unicodedata.normalize("NFC", problem.question)
    folded = "".join(map(_fold, characters)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def take(rows: Iterable[Problem | Rejected], limit: int | None) -> Iterator[Problem | Rejected]:
    """Yield rows until `limit` problems have come."""
    problems = 0
    if limit is not None and limit <= 0:
        return
    for row in rows:
        yield row
        problems += isinstance(row, Problem)
        if problems == limit:
            return


def _fold(character: str) -> str:
    if unicodedata.category(character) == "Cf":
        return ""
    if unicodedata.decomposition(character).startswith(_MEANINGFUL):
        return character
    return unicodedata.normalize("NFKC", character)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
