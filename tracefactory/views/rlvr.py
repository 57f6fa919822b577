"""Problems for reinforcement learning with verifiable rewards: no reasoning, the gold answer, and how to check it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen
from tracefactory.publish.views import Group, Message, Refuse, Row, ViewError, group_view


class Reward(Frozen):
    """How an answer is rewarded."""

    style: str = Field(description="rule: an answer is compared with the ground truth.")
    ground_truth: str = Field(description="The gold answer.")


class Extra(Frozen):
    """Other fields of the problem."""

    index: int = Field(description="A number of the problem, from its id: verl reports samples by it.")
    verifier: str = Field(description="The verifier that the source names for the answer.")
    spec: str = Field(description="The verifier's parameters, a JSON object.")
    source: str = Field(description="Where the problem came from.")
    licence: str = Field(description="The licence of the problem.")
    traces: int = Field(description="Published traces of this problem.")


class RlvrRow(Frozen):
    """One problem."""

    id: str = Field(description="The id of the problem.")
    problem_id: str = Field(description="The id of the problem, under the name it has in the other configurations.")
    data_source: str = Field(description="Where the problem came from: verl chooses the reward function by it.")
    prompt: list[Message] = Field(description="The question as a message.")
    ability: str = Field(description="The domain of the problem.")
    reward_model: Reward = Field(description="How an answer is rewarded.")
    extra_info: Extra = Field(description="What else is known of the problem.")


@group_view(
    name="rlvr",
    version="2",
    summary="One row per problem in verl's layout: `prompt`, `reward_model.ground_truth`, `data_source`, `extra_info`.",
    row=RlvrRow,
    texts=("prompt",),
)
def rlvr(group: Group, refuse: Refuse) -> Iterator[Row]:
    """Yield the problem (https://verl.readthedocs.io, preparation of data), unless it has no gold answer."""
    problem = group.problem
    if problem.answer is None:
        for trace in group.traces:
            refuse(trace, ViewError("no_gold", "the problem has no gold answer"))
        return
    yield {
        "id": problem.id,
        "problem_id": problem.id,
        "data_source": problem.source,
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": problem.domain,
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            "index": int(digest(problem.id)[:13], 16),  # 52 bits, which JSON keeps exact
            "verifier": problem.verifier,
            "spec": problem.spec,
            "source": problem.source,
            "licence": problem.licence,
            "traces": len(group.traces),
        },
    }
