"""Traces that a teacher and a student write together. Importing this package files every decoder in `DECODERS`.

A decoder says who writes next (`decoder.py`); the engine (`engine.py`) writes many traces at once with both models in
this process; `pair.py` answers requests with it.
"""

from tracefactory.decoders import foreal, reverse_speculative, speculative_thinking, student_prefix, teacher_prefix
from tracefactory.decoders.decoder import DECODERS, Decoder

__all__ = [
    "DECODERS",
    "Decoder",
    "foreal",
    "reverse_speculative",
    "speculative_thinking",
    "student_prefix",
    "teacher_prefix",
]
