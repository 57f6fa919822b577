"""Majority answers as pseudo-gold for problems without a gold answer.

Self-consistency (Wang et al. 2023, arXiv:2203.11171) counts answer strings; here answers that are equivalent for a
verifier are counted together, such as 1/2 and 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracefactory.core.rows import Frozen

Equivalent = Callable[[str, str], bool]
"""Returns whether two answers are equivalent; symmetric."""


class Consensus(Frozen):
    """The vote over the answers to one problem.

    `answer` is the first answer of the largest class, None without answers or when classes tie. `share` is the share of
    this class in all samples, including those without an answer; `margin` is that share minus the share of the second
    class. `classes` has for each sample the index of its class, from 0 in order of first appearance, and None for a
    sample without an answer.
    """

    answer: str | None
    votes: int
    samples: int
    share: float
    margin: float
    classes: tuple[int | None, ...]


def consensus(answers: Sequence[str | None], equivalent: Equivalent) -> Consensus:
    """Vote over the answers to one problem, with at most one comparison per sample and class."""
    leaders: list[str] = []
    classes: list[int | None] = []
    for answer in answers:
        if answer is None or not answer.strip():
            classes.append(None)
            continue
        found = next((index for index, leader in enumerate(leaders) if equivalent(leader, answer)), None)
        if found is None:
            found = len(leaders)
            leaders.append(answer)
        classes.append(found)
    counts = [classes.count(index) for index in range(len(leaders))]
    ranked = sorted(counts, reverse=True)
    votes = ranked[0] if ranked else 0
    second = ranked[1] if len(ranked) > 1 else 0
    samples = len(answers)
    winner = leaders[counts.index(votes)] if votes > second else None
    return Consensus(
        answer=winner,
        votes=votes,
        samples=samples,
        share=votes / samples if samples else 0.0,
        margin=(votes - second) / samples if samples else 0.0,
        classes=tuple(classes),
    )
