"""Preference pairs in LLaMA-Factory's layout: a conversation, and the two completions as single messages."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tracefactory.publish.pairs import Compared, pairs_of
from tracefactory.publish.views import Group, Message, Refuse, Row, group_view


class RankingRow(Compared):
    """One pair."""

    messages: list[Message] = Field(description="The conversation before the two completions.")
    chosen: Message = Field(description="The preferred completion.")
    rejected: Message = Field(description="The other completion.")


@group_view(
    name="ranking",
    version="1",
    summary="The pairs of `preference` with `chosen` and `rejected` as single messages, after `messages`: what "
    "LLaMA-Factory reads with `ranking: true`, which skips lists.",
    row=RankingRow,
    made_from=("verdict", "derivation"),
)
def ranking(group: Group, refuse: Refuse) -> Iterator[Row]:
    """Yield the pairs (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md, sharegpt preference)."""
    for found in pairs_of(group, refuse):
        yield {
            **found.compared,
            "messages": [message.model_dump() for message in found.before],
            "chosen": found.chosen.model_dump(),
            "rejected": found.rejected.model_dump(),
        }
