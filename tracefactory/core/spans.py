"""Ranges of problems: a problem's id is a hash, so equal ranges of it hold about equally many problems."""

from __future__ import annotations

from dataclasses import dataclass

_BITS = 64


@dataclass(frozen=True)
class Span:
    """A range of problem ids, both ends included: 16 hexadecimal digits each."""

    first: str
    last: str

    @classmethod
    def of(cls, index: int, count: int) -> Span:
        """Return the range of a shard.

        Args:
            index: its number, from 0.
            count: the number of shards, a power of two.
        """
        width = 1 << (_BITS - (count.bit_length() - 1))
        return cls(f"{index * width:016x}", f"{(index + 1) * width - 1:016x}")

    @classmethod
    def all(cls) -> Span:
        """Return the range of all problems."""
        return cls.of(0, 1)

    def parts(self, count: int) -> range:
        """Return the numbers of the shards, of `count`, that contain problems of this range."""
        return range(shard_of(self.first, count), shard_of(self.last, count) + 1)

    def covers(self, index: int, count: int) -> bool:
        """Tell whether shard `index` of `count` is completely inside this range."""
        other = Span.of(index, count)
        return self.first <= other.first and other.last <= self.last


def shard_of(problem_id: str, count: int) -> int:
    """Return the number of a problem's shard, of `count`: the leading bits of its id."""
    return int(problem_id, 16) >> (_BITS - (count.bit_length() - 1))
