"""Randomness that belongs to a place, not to an order: a number for every (trace, position, stream, token).

Whoever asks for it, in whatever order, batch or chunk, gets the same number; so drafting can be wrong and repeated
without changing what is drawn. The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Keys = NDArray[np.uint64]

STUDENT, GATE, TEACHER = 0, 1, 2
"""Streams: the student's own draw, a decoder's gate, and the teacher's first draw (its further draws follow)."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Noise:
    """The randomness of P places: the key of each one's trace (64 bits) and its position in it."""

    keys: Keys
    positions: Longs

    def __getitem__(self, chosen: Longs | slice) -> Noise:
        return Noise(self.keys[chosen], self.positions[chosen])

    def uniform(self, stream: int, tokens: Longs) -> Floats:
        """Return numbers strictly between 0 and 1 for tokens [P, k]: 53 random bits each."""
        words = philox4x32(
            (tokens.astype(np.uint64), self.positions[:, None].astype(np.uint64), np.uint64(stream), np.uint64(0)),
            (self.keys[:, None] & _LOW, self.keys[:, None] >> _HALF),
        )
        bits = (words[0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[1] >> np.uint64(6))
        return (bits.astype(np.float64) + 0.5) / float(1 << 53)

    def gumbel(self, stream: int, tokens: Longs) -> Floats:
        """Return standard Gumbel numbers for tokens [P, k].

        The token with the largest log-weight plus Gumbel number is a draw by the weights (the Gumbel-max trick). Two
        models that draw with the same numbers draw the same token far more often than independent ones.
        """
        return -np.log(-np.log(self.uniform(stream, tokens)))


def philox4x32(
    counter: tuple[Keys | np.uint64, Keys | np.uint64, Keys | np.uint64, Keys | np.uint64],
    key: tuple[Keys | np.uint64, Keys | np.uint64],
) -> tuple[Keys, Keys, Keys, Keys]:
    """Return the four 32-bit words of Philox4x32-10 for each counter (four 32-bit words) under its key (two).

    Words are held in 64 bits, and arrays broadcast against each other.
    """
    shape = np.broadcast_shapes(*(np.shape(word) for word in (*counter, *key)))
    c0, c1, c2, c3 = (np.broadcast_to(np.asarray(word, dtype=np.uint64), shape) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    for _ in range(_ROUNDS):
        one, two = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (two >> _HALF) ^ c1 ^ k0, two & _LOW, (one >> _HALF) ^ c3 ^ k1, one & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3
