"""Counter-based random numbers, keyed by (trace, position, stream, token).

A number does not depend on the order, batch or chunk in which it is requested, so a wrong draft can be discarded and
drawn again without changing the result. The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
UInts = NDArray[np.uint64]

STUDENT, GATE, TEACHER = 0, 1, 2
"""Streams: the student's own draw, a decoder's gate, and the teacher's first draw; its later draws follow."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Noise:
    """The random numbers of P positions: for each, the key of its trace (64 bits) and its index in that trace."""

    keys: UInts
    positions: Ints

    def __getitem__(self, chosen: Ints | slice) -> Noise:
        return Noise(self.keys[chosen], self.positions[chosen])

    def uniform(self, stream: int, tokens: Ints) -> Floats:
        """Return uniform numbers strictly between 0 and 1 for tokens [P, k], with 53 random bits each."""
        words = philox4x32(
            (tokens.astype(np.uint64), self.positions[:, None].astype(np.uint64), np.uint64(stream), np.uint64(0)),
            (self.keys[:, None] & _LOW, self.keys[:, None] >> _HALF),
        )
        bits = (words[0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[1] >> np.uint64(6))
        return (bits.astype(np.float64) + 0.5) / float(1 << 53)

    def gumbel(self, stream: int, tokens: Ints) -> Floats:
        """Return standard Gumbel numbers for tokens [P, k].

        The token with the largest log-weight plus Gumbel number is a draw by the weights (the Gumbel-max trick). Two
        models that use the same numbers draw the same token far more often than with independent numbers.
        """
        return -np.log(-np.log(self.uniform(stream, tokens)))


def philox4x32(
    counter: tuple[UInts | np.uint64, UInts | np.uint64, UInts | np.uint64, UInts | np.uint64],
    key: tuple[UInts | np.uint64, UInts | np.uint64],
) -> tuple[UInts, UInts, UInts, UInts]:
    """Return the four 32-bit words of Philox4x32-10 for each counter (four 32-bit words) under its key (two).

    Words are stored in 64 bits, and arrays broadcast against each other.
    """
    shape = np.broadcast_shapes(*(np.shape(word) for word in (*counter, *key)))
    c0, c1, c2, c3 = (np.broadcast_to(np.asarray(word, dtype=np.uint64), shape) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    for _ in range(_ROUNDS):
        p0, p2 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p2 >> _HALF) ^ c1 ^ k0, p2 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3
