"""Traces that a teacher and a student write together. Importing this package files every decoder in `DECODERS`.

A decoder says who writes next (`decoder.py`); the engine (`engine.py`) writes many traces at once with both models in
this process; `pair.py` answers requests with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracefactory.decoders import foreal, reverse_speculative, speculative_thinking, student_prefix, teacher_prefix
from tracefactory.decoders.decoder import DECODERS, Decoder
from tracefactory.errors import UserError
from tracefactory.students.spec import StudentSpec

if TYPE_CHECKING:
    from tracefactory.decoders.pair import Pair

__all__ = [
    "DECODERS",
    "Decoder",
    "foreal",
    "open_pair",
    "reverse_speculative",
    "speculative_thinking",
    "student_prefix",
    "teacher_prefix",
]


def open_pair(teacher: StudentSpec, student: StudentSpec, rows: int, names: tuple[str, str]) -> Pair:
    """Return the pair of models that decode together, at most `rows` traces at once; nothing is loaded yet.

    Raises:
        UserError: when the `student` extra is not installed.
    """
    try:
        from tracefactory.decoders.pair import Pair
    except ModuleNotFoundError as error:
        raise UserError(f"decoding in process needs {error.name}: pip install 'tracefactory[student]'") from error
    return Pair(teacher, student, rows, names)
