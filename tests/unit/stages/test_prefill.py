"""A prompt may begin the model's turn with words: they are part of the trace, whoever samples it."""

from __future__ import annotations

import json

import pytest

from tests.unit.stages.conftest import RunStages

PROBLEMS = "".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(3))
SOURCE = "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}\n"
SAMPLED = {
    "chat": SOURCE + "  - {id: made, sample: chat, with: {model: teacher, prompt: PROMPT, samples: 2}}\n",
    "rollout": SOURCE + "  - {id: made, rollout: until_correct, with: {model: teacher, prompt: PROMPT}}\n",
}


@pytest.mark.parametrize("stages", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize("delivery", ["inline", "reasoning_content"])
async def test_a_trace_begins_with_the_words_of_the_prefill(run_stages: RunStages, stages: str, delivery: str) -> None:
    made = await run_stages(stages.replace("PROMPT", "demo_long"), PROBLEMS, teacher={"reasoning": delivery})
    traces = made.traces("made")
    assert len(traces) >= 3
    for trace in traces:
        assert trace.reasoning.startswith("The problem is")
        assert trace.reasoning.count("The problem is") == 1
        assert "The problem is" not in trace.answer_text


async def test_only_prompts_with_words_in_their_prefill_have_another_key(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage is made anew where its rows are others, from the stored completions: nothing is paid again."""
    from tracefactory.stages import _sampling

    with monkeypatch.context() as before:
        before.setattr(_sampling, "prefill_versions", lambda pipeline, prompts: {})
        before.setattr(_sampling, "with_prefill", lambda content, field, prefill: (content, field))
        for prompt in ("demo_long", "demo_short", "rsd_math"):
            former = await run_stages(SAMPLED["chat"].replace("PROMPT", prompt), PROBLEMS, teacher={})
            assert former.paid() == 6
    for prompt in ("demo_long", "demo_short", "rsd_math"):
        again = await run_stages(SAMPLED["chat"].replace("PROMPT", prompt), PROBLEMS, teacher={})
        assert again.paid() == 0
        assert again.stage("made").cached is (prompt != "demo_long")
