"""The rows of a batch: filling them with prompts, and keeping those in use without gaps."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from tracefactory.decoding.kv_cache import CachedModel, Feed

Tokens = Sequence[int]


class InRow(Protocol):
    """What is written in a row; `finish` is the reason why it ended, empty while it is written."""

    row: int
    finish: str


W = TypeVar("W", bound=InRow)


def fill(
    model: CachedModel, new: Mapping[int, Tokens], filled: Mapping[int, Tokens], pass_tokens: int | None = None
) -> None:
    """Fill rows with tokens. A beginning that another row already holds is copied from it.

    Args:
        model: the model whose rows are filled.
        new: the tokens to fill rows with, by row; what these rows held is discarded.
        filled: the tokens of the rows that hold something, by row.
        pass_tokens: the most tokens of one forward pass, padding among them; a longer row has a pass for itself. None
            is one pass.
    """
    known = {row: tokens[: model.lengths[row]] for row, tokens in filled.items()}
    twins: dict[int, Tokens] = {}
    rest: dict[int, Tokens] = {}
    seen: set[tuple[int, ...]] = set()
    for row, tokens in new.items():
        (twins if tuple(tokens) in seen else rest)[row] = tokens
        seen.add(tuple(tokens))
    if rest and not known:  # the others copy what they have in common with the first
        first = next(iter(rest))
        known = {first: rest.pop(first)}
        _fill(model, known, {}, pass_tokens)
    _fill(model, rest, known, pass_tokens)
    _fill(model, twins, known | rest, pass_tokens)


def remove_finished(active: list[W], models: Collection[CachedModel]) -> list[W]:
    """Remove from `active`, which is in the order of rows, what has finished; return it.

    The last rows move into the gaps, because passes over rows without gaps copy no cache.
    """
    ended = [one for one in active if one.finish]
    count = len(active) - len(ended)
    gaps = [one.row for one in active[:count] if one.finish]
    moved = [one for one in active[count:] if not one.finish]
    for model in models:
        model.copy_prefixes({gap: (one.row, model.lengths[one.row]) for gap, one in zip(gaps, moved, strict=True)})
    for gap, one in zip(gaps, moved, strict=True):
        active[gap], one.row = one, gap
    del active[count:]
    return ended


def _fill(model: CachedModel, new: Mapping[int, Tokens], known: Mapping[int, Tokens], pass_tokens: int | None) -> None:
    copies: dict[int, tuple[int, int]] = {}
    # Among sorted sequences, the one with the longest common prefix is next to where a sequence belongs.
    ordered = sorted((list(tokens), row) for row, tokens in known.items())
    for row, tokens in new.items():
        model.truncate(row, 0)
        at = bisect(ordered, (list(tokens), row))
        near = ((_common_prefix(tokens, other), donor) for other, donor in ordered[max(0, at - 1) : at + 1])
        length, donor = max(near, default=(0, row))
        if length:
            copies[row] = (donor, length)
    model.copy_prefixes(copies)
    feeds = [Feed(row, rest, 0) for row, tokens in new.items() if (rest := tokens[model.lengths[row] :])]
    for group in _passes(feeds, pass_tokens):
        model.forward(group)


def _passes(feeds: Sequence[Feed], pass_tokens: int | None) -> Iterator[Sequence[Feed]]:
    """Yield the feeds of each pass: all of them, or feeds of similar lengths, if they exceed the limit together."""
    if not feeds:
        return
    if pass_tokens is None or len(feeds) * max(len(one.tokens) for one in feeds) <= pass_tokens:
        yield feeds
        return
    ordered = sorted(feeds, key=lambda one: len(one.tokens), reverse=True)
    while ordered:
        count = max(1, pass_tokens // len(ordered[0].tokens))
        yield ordered[:count]
        ordered = ordered[count:]


def _common_prefix(one: Tokens, other: Tokens) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
