"""The interface of sources of problems."""

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

# Decompositions that would change the meaning: x² is not x2, and 1½ is not 11/2.
_MEANINGFUL = ("<super>", "<sub>", "<fraction>")


class Rejected(Frozen):
    """A row that is not a usable problem: the row as JSON text, a stable snake_case reason, and its place and cause."""

    row: str
    reason: str
    detail: str


class Source(ABC, Generic[P]):
    """One kind of source; instances are stateless.

    `version` is part of the stage key and must change when the same parameters give different rows. `offline` is
    whether the rows can be read without the network. `base_dir` is the folder for relative paths.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    Params: ClassVar[type[Frozen]]
    offline: ClassVar[bool] = True

    @abstractmethod
    def read(self, params: P, *, base_dir: Path, limit: int | None) -> Iterator[Problem | Rejected]:
        """Yield problems and rejected rows in a fixed order.

        Args:
            params: the parameters of the source.
            base_dir: the folder for relative paths.
            limit: the number of problems after which to stop; it does not change their order.

        Raises:
            UserError: when nothing can be read with these parameters.
        """

    def located(self, params: P, environ: Mapping[str, str]) -> P:
        """Return the parameters with environment variables resolved; the resolved values are never part of keys.

        Raises:
            UserError: when an environment variable is unset.
        """
        return params

    @abstractmethod
    def identity(self, params: P, base_dir: Path) -> dict[str, Any]:
        """Return what determines the rows in addition to the parameters, as plain JSON values."""

    def verifiers(self, params: P) -> frozenset[str]:
        """Return the verifiers that the problems can name."""
        return frozenset({"auto"})

    @abstractmethod
    def describe(self, params: P) -> str:
        """Return a short description of the data, for the dataset card."""

    @abstractmethod
    def check(self, params: P, base_dir: Path) -> list[str]:
        """Return mistakes in the parameters that their types cannot express. Works offline."""


SOURCES: Registry[type[Source[Any]]] = registry("source")
"""Every source by name."""


def json_text(value: Any) -> str:
    """Return any `value` as JSON text that can be stored as UTF-8.

    NaN and infinities become null, values without a JSON form (dates, bytes) become strings, and lone surrogates, which
    UTF-8 cannot encode, become escape sequences.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def normalised_question(problem: Problem) -> str:
    """Return the normal form of a question; problems with equal normal forms are duplicates.

    Case, white space, invisible characters and compatibility forms (full-width letters, ligatures, mathematical
    alphabets: Unicode NFKC) are ignored; superscripts, subscripts and fractions are not.
    """
    if problem.question.isascii():
        return " ".join(problem.question.lower().split())
    folded = "".join(
        one if unicodedata.decomposition(one).startswith(_MEANINGFUL) else unicodedata.normalize("NFKC", one)
        for one in unicodedata.normalize("NFC", problem.question)
        if unicodedata.category(one) != "Cf"
    )
    return " ".join(unicodedata.normalize("NFC", folded.casefold()).split())


def take(rows: Iterable[Problem | Rejected], limit: int | None) -> Iterator[Problem | Rejected]:
    """Yield rows until `limit` problems have been yielded.

    Args:
        rows: problems and rejected rows.
        limit: the number of problems; None for all.
    """
    problems = 0
    if limit is not None and limit <= 0:
        return
    for row in rows:
        yield row
        problems += isinstance(row, Problem)
        if problems == limit:
            return


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
