"""Preference pairs of a problem: pruned traces over their raw form, and correct traces over incorrect ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pydantic import Field

from tracefactory.core.rows import Frozen, Outcome, Trace, Turn
from tracefactory.pruning import Unpaired, edited, pair
from tracefactory.publish.views import (
    Group,
    Message,
    Refuse,
    Row,
    Tracked,
    ViewError,
    conversation,
    require_plain,
    require_trainable,
    tracking,
)


class Compared(Tracked):
    """What a row of a pair says about its two completions. The tracking columns are those of the chosen trace."""

    kind: str = Field(
        description="pruned: a pruned trace over its raw form; verdict: a correct trace over an incorrect one."
    )
    rejected_id: str = Field(description="The id of the rejected trace.")
    chosen_outcome: str = Field(description="The verdict on the chosen completion.")
    rejected_outcome: str = Field(description="The verdict on the rejected completion.")
    chosen_length: int = Field(description="The length of the chosen completion, in `length_unit`.")
    rejected_length: int = Field(description="The length of the rejected completion, in `length_unit`.")
    length_unit: str = Field(description="student_tokens, estimated_tokens, characters or completion_tokens.")


class Pair(Frozen):
    """Two completions of one conversation, and the values of `Compared`."""

    before: tuple[Message, ...]
    chosen: Message
    rejected: Message
    compared: Row


def pairs_of(group: Group, refuse: Refuse) -> Iterator[Pair]:
    """Yield the pairs of a problem.

    Traces that no stage pruned are paired by id: the first correct trace with the first incorrect trace that follows
    the same turns, and so on. Traces without a partner, and pruned traces that are not shorter, are in no pair.

    Args:
        group: the problem with its traces.
        refuse: is called with every trace that is in no pair, and the reason.
    """
    right: defaultdict[tuple[Turn, ...], list[Trace]] = defaultdict(list)
    wrong: defaultdict[tuple[Turn, ...], list[Trace]] = defaultdict(list)
    for trace in group.traces:
        try:
            require_trainable(trace)
            require_plain(trace)
            if edited(trace) is not None:
                yield _pruned(trace)
            elif trace.verdict is not None and trace.verdict.outcome is Outcome.CORRECT:
                right[trace.turns].append(trace)
            elif trace.verdict is not None and trace.verdict.outcome is Outcome.INCORRECT:
                wrong[trace.turns].append(trace)
            else:
                raise ViewError("not_verified", "the trace has no verdict correct or incorrect")
        except ViewError as error:
            refuse(trace, error)
    for turns in dict.fromkeys((*right, *wrong)):
        count = min(len(right[turns]), len(wrong[turns]))
        for chosen, rejected in zip(right[turns][:count], wrong[turns][:count], strict=True):
            yield _by_verdict(chosen, rejected)
        for trace in (*right[turns][count:], *wrong[turns][count:]):
            refuse(trace, _without_partner(trace))


def _pruned(trace: Trace) -> Pair:
    found = pair(trace)
    if isinstance(found, Unpaired):
        raise ViewError(found.reason, found.detail)
    compared = {
        "kind": "pruned",
        "rejected_id": trace.parents[0].id,
        "chosen_outcome": found.chosen_verdict.outcome.value,
        "rejected_outcome": found.rejected_verdict.outcome.value,
        "chosen_length": found.chosen_length,
        "rejected_length": found.rejected_length,
        "length_unit": found.unit,
    }
    return _pair(trace, found.chosen, found.rejected, compared)


def _by_verdict(chosen: Trace, rejected: Trace) -> Pair:
    compared = {
        "kind": "verdict",
        "rejected_id": rejected.id,
        "chosen_outcome": Outcome.CORRECT.value,
        "rejected_outcome": Outcome.INCORRECT.value,
        "chosen_length": chosen.completion_tokens,
        "rejected_length": rejected.completion_tokens,
        "length_unit": "completion_tokens",
    }
    return _pair(chosen, chosen.text, rejected.text, compared)


def _pair(trace: Trace, chosen: str, rejected: str, compared: Row) -> Pair:
    return Pair(
        before=tuple(Message(**one) for one in conversation(trace)[:-1]),
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        compared={**tracking(trace), **compared},
    )


def _without_partner(trace: Trace) -> ViewError:
    """Return the error of a trace without a partner, with the reason of a prune stage if there is one."""
    found = pair(trace)
    if isinstance(found, Unpaired) and found.reason != "not_pruned":
        return ViewError(found.reason, found.detail)
    return ViewError("no_partner", "its problem has no trace of the same conversation with the other verdict")
