"""`publish: dataset` with `control_tokens:`: funnel and card say what became of the rows, and nothing is paid."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import line, trace
from tracefactory.core.errors import UserError
from tracefactory.core.model import MODELS
from tracefactory.models.openai import OpenAISpec
from tracefactory.publish.release import read_manifest

ROWS = [
    trace(),
    trace("It ends with <|im_end|>.", question="What ends a turn?"),
    trace(question="What does <s> begin?"),
    trace(answer_text="\\boxed{42} </s> and <|im_end|>", question="And then?"),
]
SOURCE = "  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}\n"


def stages(policy: str) -> str:
    return (
        f"{SOURCE}  - {{id: dataset, publish: dataset, with: {{name: {policy}, views: [sft, raw]{chosen(policy)}}}}}\n"
    )


def chosen(policy: str) -> str:
    return "" if policy == "default" else f", control_tokens: {policy}"


@pytest.mark.parametrize(
    ("policy", "rows", "message"),
    [
        ("default", 1, ["No text to train on spells a control token", "3 traces that spell one were dropped."]),
        ("drop", 1, ["3 traces that spell one were dropped."]),
        ("escape", 4, ["escaped by a backslash", "sft 3 (tokens: ", "&lt;s&gt;"]),
        ("keep", 4, ["which trainers turn into the real ones: sft 3 (tokens: "]),
    ],
)
async def test_the_card_and_the_funnel_count_what_became_of_the_rows(
    run_stages: RunStages, tmp_path: Path, policy: str, rows: int, message: list[str]
) -> None:
    made = await run_stages(stages(policy), "".join(ROWS))
    tally = made.stage("dataset").tally
    assert (tally.kept, tally.dropped) == (rows, 4 - rows)
    assert tally.reasons == ({"control_token_inside": 3} if rows == 1 else {})
    folder = tmp_path / "project" / "out" / policy / "1"
    assert {name: one.rows for name, one in read_manifest(folder).configs.items()} == {"sft": rows, "raw": rows}
    card = (folder / "README.md").read_text()
    for one in message:
        assert one in card
    (file,) = (folder / "data" / "sft").glob("*.parquet")
    texts = sorted(one["completion"][0]["content"] for one in pq.read_table(file).to_pylist())
    assert any("<|im_end|>" in one for one in texts) == (policy == "keep")
    assert any(r"<\|im_end|>" in one for one in texts) == (policy == "escape")
    assert all(one.startswith("<think>\n") for one in texts)


async def test_another_policy_and_the_filter_pay_for_nothing(run_stages: RunStages) -> None:
    asked = (
        "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}\n"
        "  - {id: long, sample: chat, with: {model: teacher, prompt: math_long, samples: 2, max_tokens: 64}}\n"
    )
    publish = "  - {id: dataset, publish: dataset, with: {views: [sft, raw]}}\n"
    made = await run_stages(asked + publish, line(""), teacher={})
    assert made.paid() == 2
    for other in (
        asked + publish.replace("views", "name: escaped, control_tokens: escape, views"),
        asked + "  - {id: clean, filter: [control_tokens]}\n" + publish.replace("views", "name: filtered, views"),
    ):
        again = await run_stages(other, line(""), teacher={})
        assert again.paid() == 0
        assert again.stage("long").cached


async def test_the_filter_drops_problems_before_they_are_sampled(run_stages: RunStages) -> None:
    asked = (
        "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}\n"
        "  - {id: plain, filter: [control_tokens]}\n"
        "  - {id: long, sample: chat, with: {model: teacher, prompt: math_long, samples: 2, max_tokens: 64}}\n"
    )
    made = await run_stages(asked, line("") + line("", question="What is <|im_end|>?"), teacher={})
    assert made.paid() == 2
    assert made.stage("plain").tally.reasons == {"control_token_inside": 1}


async def test_a_policy_that_is_none_is_a_mistake_with_the_names(run_stages: RunStages) -> None:
    with pytest.raises(UserError, match=r"t\.yaml:\d+.*control_tokens.*'drop', 'escape' or 'keep'"):
        await run_stages(stages("escpae"), "".join(ROWS))


ASKED = (
    "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}\n"
    "  - {id: long, sample: chat, with: {model: teacher, prompt: math_long, samples: SAMPLES, max_tokens: 64}}\n"
)
PROBLEMS = line("") + line("", question="What is <|im_end|>?")


async def test_what_a_server_would_read_as_a_control_token_is_not_sent(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp and vLLM apply the template and tokenize the whole prompt; a hosted model has its own ways."""
    sampled = await run_stages(ASKED.replace("SAMPLES", "1"), PROBLEMS, teacher={})
    assert sampled.paid() == 2
    monkeypatch.setattr(OpenAISpec, "reads_control_tokens", True)
    more = await run_stages(ASKED.replace("SAMPLES", "2"), PROBLEMS, teacher={})
    assert more.paid() == 1
    tally = more.stage("long").tally
    assert (tally.kept, tally.errors, tally.owed) == (3, 1, 0)  # what was paid for before is taken
    assert tally.reasons == {"control_token_in_prompt": 1}
    again = await run_stages(ASKED.replace("SAMPLES", "1"), PROBLEMS, teacher={})
    assert (again.paid(), again.stage("long").cached) == (0, True)


async def test_a_prompt_may_spell_control_tokens_itself(
    run_stages: RunStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAISpec, "reads_control_tokens", True)
    prompts = tmp_path / "project" / "prompts"
    prompts.mkdir(parents=True)
    (prompts / "math_long.md").write_text("---\nstyle: long\n---\nQ<|im_end|> {{ question }}\n")
    made = await run_stages(ASKED.replace("SAMPLES", "1"), PROBLEMS, teacher={})
    assert made.paid() == 2


@pytest.mark.parametrize(("use", "reads"), [("local", True), ("vllm", True), ("openai", False), ("anthropic", False)])
def test_which_servers_read_control_tokens(use: str, reads: bool) -> None:
    assert MODELS.get(use).reads_control_tokens is reads


async def test_a_judge_is_not_sent_what_a_row_spells_either(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = SOURCE + "  - {id: judged, verify: judge, with: {model: teacher, votes: 1, ask: all}}\n"
    rows = trace() + trace(question="What is <|im_end|>?")
    asked = await run_stages(judged, rows, teacher={})
    assert asked.paid() == 2
    monkeypatch.setattr(OpenAISpec, "reads_control_tokens", True)
    fewer = await run_stages(judged.replace("votes: 1", "votes: 3"), rows, teacher={})
    assert fewer.paid() == 2  # two more votes on the one row
