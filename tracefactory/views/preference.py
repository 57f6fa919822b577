"""Preference pairs in TRL's layout: prompt, chosen and rejected as message lists."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tracefactory.publish.pairs import Compared, pairs_of
from tracefactory.publish.views import Group, Message, Refuse, Row, group_view


class PreferenceRow(Compared):
    """One pair."""

    prompt: list[Message] = Field(description="The conversation before the two completions.")
    chosen: list[Message] = Field(description="The preferred completion.")
    rejected: list[Message] = Field(description="The other completion.")


@group_view(
    name="preference",
    version="3",
    summary="`prompt`, `chosen` and `rejected` as message lists: pruned traces over their raw form (`kind: pruned`, "
    "both verified), and right traces over wrong ones of the same problem (`kind: verdict`).",
    row=PreferenceRow,
    made_from=("verdict", "derivation"),
)
def preference(group: Group, refuse: Refuse) -> Iterator[Row]:
    """Yield the pairs, in the layout of TRL (https://huggingface.co/docs/trl/dataset_formats)."""
    for found in pairs_of(group, refuse):
        yield {
            **found.compared,
            "prompt": [message.model_dump() for message in found.before],
            "chosen": [found.chosen.model_dump()],
            "rejected": [found.rejected.model_dump()],
        }
