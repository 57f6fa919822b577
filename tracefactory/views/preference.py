"""Preference pairs: pruned traces over their raw form, and correct traces over incorrect ones of the same problem."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tracefactory.core.rows import Outcome, Trace
from tracefactory.pruning import Unpaired, edited, pair
from tracefactory.publish.views import (
    Group,
    Message,
    Refuse,
    Row,
    Tracked,
    ViewError,
    group_view,
    require_plain,
    require_trainable,
    tracking,
)


class PreferenceRow(Tracked):
    """One pair. The tracking columns are those of the chosen trace."""

    prompt: list[Message] = Field(description="The question as a message.")
    chosen: list[Message] = Field(description="The preferred completion.")
    rejected: list[Message] = Field(description="The other completion.")
    kind: str = Field(
        description="pruned: a pruned trace over its raw form; verdict: a correct trace over an incorrect one."
    )
    rejected_id: str = Field(description="The id of the rejected trace.")
    chosen_outcome: str = Field(description="The verdict on the chosen completion.")
    rejected_outcome: str = Field(description="The verdict on the rejected completion.")
    chosen_length: int = Field(description="The length of the chosen completion, in `length_unit`.")
    rejected_length: int = Field(description="The length of the rejected completion, in `length_unit`.")
    length_unit: str = Field(description="student_tokens, estimated_tokens, characters or completion_tokens.")


@group_view(
    name="preference",
    version="2",
    summary="`prompt`, `chosen` and `rejected` as message lists: pruned traces over their raw form (`kind: pruned`, "
    "both verified), and right traces over wrong ones of the same problem (`kind: verdict`).",
    row=PreferenceRow,
)
def preference(group: Group, refuse: Refuse) -> Iterator[Row]:
    """Yield the pairs, in the layout of TRL (https://huggingface.co/docs/trl/dataset_formats).

    Traces that no stage pruned are paired by id: the first correct trace of a problem with its first incorrect trace,
    and so on. Traces without a partner, and pruned traces that are not shorter, have no row.
    """
    right, wrong = [], []
    for trace in group.traces:
        try:
            require_trainable(trace)
            require_plain(trace)
            if edited(trace) is not None:
                yield _pruned(trace)
            elif trace.verdict is not None and trace.verdict.outcome is Outcome.CORRECT:
                right.append(trace)
            elif trace.verdict is not None and trace.verdict.outcome is Outcome.INCORRECT:
                wrong.append(trace)
            else:
                raise ViewError("not_verified", "the trace has no verdict correct or incorrect")
        except ViewError as error:
            refuse(trace, error)
    pairs = min(len(right), len(wrong))
    for chosen, rejected in zip(right[:pairs], wrong[:pairs], strict=True):
        yield _by_verdict(chosen, rejected)
    for trace in (*right[pairs:], *wrong[pairs:]):
        refuse(trace, _without_partner(trace))


def _pruned(trace: Trace) -> Row:
    found = pair(trace)
    if isinstance(found, Unpaired):
        raise ViewError(found.reason, found.detail)
    return {
        **tracking(trace),
        "prompt": [{"role": "user", "content": trace.problem.question}],
        "chosen": [{"role": "assistant", "content": found.chosen}],
        "rejected": [{"role": "assistant", "content": found.rejected}],
        "kind": "pruned",
        "rejected_id": trace.parents[0].id,
        "chosen_outcome": found.chosen_verdict.outcome.value,
        "rejected_outcome": found.rejected_verdict.outcome.value,
        "chosen_length": found.chosen_length,
        "rejected_length": found.rejected_length,
        "length_unit": found.unit,
    }


def _by_verdict(chosen: Trace, rejected: Trace) -> Row:
    return {
        **tracking(chosen),
        "prompt": [{"role": "user", "content": chosen.problem.question}],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "kind": "verdict",
        "rejected_id": rejected.id,
        "chosen_outcome": Outcome.CORRECT.value,
        "rejected_outcome": Outcome.INCORRECT.value,
        "chosen_length": chosen.completion_tokens,
        "rejected_length": rejected.completion_tokens,
        "length_unit": "completion_tokens",
    }


def _without_partner(trace: Trace) -> ViewError:
    """Return the error of a trace without a partner, with the reason of a prune stage if there is one."""
    found = pair(trace)
    if isinstance(found, Unpaired) and found.reason != "not_pruned":
        return ViewError(found.reason, found.detail)
    return ViewError("no_partner", "its problem has no trace with the other verdict")
