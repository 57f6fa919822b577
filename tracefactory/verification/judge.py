"""Judge with a model whether two answers are equivalent, for pairs that the rules cannot decide.

The model votes several times, and the majority counts; a tie or unclear replies leave the pair undecided. The result of
the rules is kept with the votes, to count disagreements.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from tracefactory.core.rows import Frozen, Outcome, Verdict

Ask = Callable[[int], Awaitable[str]]
"""Requests one vote of the model, by its number from 0, and returns the text of the reply."""

_VOTE = re.compile(r"\[\s*(SAME|DIFFERENT)\s*\]", re.IGNORECASE)


class JudgedPair(Frozen):
    """The votes of a judge on one pair, and the outcome of the rules; `agrees` is None if one of them is undecided."""

    outcome: Outcome
    same: int
    different: int
    unclear: int
    rules: Outcome
    agrees: bool | None


def read_vote(reply: str) -> bool | None:
    """Return the vote in a reply: True for same, False for different, None for neither or both."""
    votes = {match[1].upper() for match in _VOTE.finditer(reply)}
    return None if len(votes) != 1 else votes == {"SAME"}


async def judge(ask: Ask, rules: Verdict, votes: int = 3) -> JudgedPair:
    """Collect votes until one side has a majority; a side wins with more than half of the collected votes.

    Args:
        ask: the request for a vote.
        rules: the verdict of the rules on the same pair.
        votes: the maximum number of votes.

    Raises:
        ValueError: when `votes` is even or not positive, so that there may be no majority.
    """
    if votes < 1 or votes % 2 == 0:
        raise ValueError(f"the number of votes must be odd and positive, not {votes}")
    same = different = unclear = 0
    for number in range(votes):
        vote = read_vote(await ask(number))
        same += vote is True
        different += vote is False
        unclear += vote is None
        if max(same, different) > votes // 2:
            break
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
