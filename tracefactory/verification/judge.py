"""A model's view on whether two answers are the same, for pairs the rules cannot decide.

The judge is asked several times and the majority counts; a tie, or replies that say neither, leave the pair undecided.
What the rules had said is kept beside it, so that disagreement can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from tracefactory.core.rows import Frozen, Outcome, Verdict

Ask = Callable[[int], Awaitable[str]]
"""Asks the model once; the number of the vote (from 0) tells its samples apart. Returns the reply's text."""

_VOTE = re.compile(r"\[\s*(SAME|DIFFERENT)\s*\]", re.IGNORECASE)


class JudgedPair(Frozen):
    """The votes of a judge on one pair, and what the rules had found; `agrees` is None where one was undecided."""

    outcome: Outcome
    same: int
    different: int
    unclear: int
    rules: Outcome
    agrees: bool | None


def read_vote(reply: str) -> bool | None:
    """Return what a reply says: the same (True), different (False), or neither or both (None)."""
    votes = {match[1].upper() for match in _VOTE.finditer(reply)}
    return None if len(votes) != 1 else votes == {"SAME"}


async def judge(ask: Ask, rules: Verdict, votes: int = 3) -> JudgedPair:
    """Ask until one side has a majority of `votes`, at most `votes` times.

    Raises:
        ValueError: when `votes` is even or not positive, because then no majority is sure.
    """
    if votes < 1 or votes % 2 == 0:
        raise ValueError(f"{votes} votes: an odd number is needed")
    same = different = unclear = 0
    for number in range(votes):
        vote = read_vote(await ask(number))
        same += vote is True
        different += vote is False
        unclear += vote is None
        if max(same, different) > votes // 2:
            break
    return tally(same, different, unclear, rules)


def tally(same: int, different: int, unclear: int, rules: Verdict) -> JudgedPair:
    """Turn votes into a judgement; the larger side wins when it is more than half of all votes given."""
    total = same + different + unclear
    if 2 * same > total:
        outcome = Outcome.CORRECT
    elif 2 * different > total:
        outcome = Outcome.INCORRECT
    else:
        outcome = Outcome.UNVERIFIABLE
    decided = {Outcome.CORRECT, Outcome.INCORRECT}
    both = outcome in decided and rules.outcome in decided
    return JudgedPair(
        outcome=outcome,
        same=same,
        different=different,
        unclear=unclear,
        rules=rules.outcome,
        agrees=outcome is rules.outcome if both else None,
    )
