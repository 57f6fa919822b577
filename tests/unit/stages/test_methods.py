"""Methods that need more than one turn, one parent or one row per trace: as rows, published, loaded with `datasets`.

Critique and correction (conversations with roles of parents), preference pairs (rows of groups), and trajectories with
tools (calls and results as turns).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.unit.stages.conftest import RunStages
from tracefactory.core.rows import Outcome, ParentRole
from tracefactory.reading.conversation import BadConversation, read_conversation

SHARED = Path(__file__).parents[4] / "shared" / "data"
CRITIQUE = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a, licence: mit}}
  - {id: attempts, sample: chat, with: {model: student, prompt: math_short, samples: 2}}
  - {id: wrong, verify: auto}
  - {id: kept, filter: [verdict: {keep: [incorrect]}]}
  - {id: critiques, sample: chat, with: {model: critic, prompt: critique, samples: 1, writes: turn, role: critiques}}
  - {id: corrected, sample: chat, with: {model: corrector, prompt: correct, samples: 1, writes: turn, role: revises}}
  - {id: checked, verify: auto}
  - {id: right, filter: verdict}
  - {id: dataset, publish: dataset, with: {views: [chat, sft, raw], licence: mit}}
"""
PAIRS = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a, licence: mit}}
  - {id: attempts, sample: chat, with: {model: student, prompt: math_short, samples: 4}}
  - {id: checked, verify: auto}
  - {id: dataset, publish: dataset, with: {views: [preference, raw], licence: mit}}
"""
TOOLS = """\
  - id: traces
    source: traces
    with: {paths: problems.jsonl, question: messages.0.content, answer: gold, messages: messages, tools: tools}
  - {id: checked, verify: auto}
  - {id: right, filter: verdict}
  - {id: dataset, publish: dataset, with: {views: [tool_use, rlvr, raw], licence: mit}}
"""
ASKED, CRITIQUED = "What is 40 + 2?", "The second step is wrong: 40 + 2 is not 43."
PYTHON = {
    "type": "function",
    "function": {"name": "python", "parameters": {"properties": {"code": {"type": "string"}}}},
}


def loaded(root: Path, view: str) -> list[dict[str, Any]]:
    """Load a configuration of the published dataset as a user does."""
    folder = root.parent / "out" / "t" / "1"
    return list(load_dataset(str(folder), view, split="train", cache_dir=str(root / "cache")))


def sums(count: int) -> str:
    return "".join(json.dumps({"q": f"What is {n} + 2?", "a": str(n + 2)}) + "\n" for n in range(40, 40 + count))


async def test_critique_and_correction(run_stages: RunStages) -> None:
    made = await run_stages(
        CRITIQUE,
        sums(1),
        student={"accuracy": 0.0, "style": "short"},
        critic={"reply": f"<think>Let me see.</think>{CRITIQUED}"},
        corrector={"reply": "40 + 2 = 42. The answer is \\boxed{42}."},
    )
    attempts = {trace.id: trace for trace in made.traces("kept")}
    critiques = {trace.id: trace for trace in made.traces("critiques")}
    corrected = made.traces("right")
    assert (len(attempts), len(critiques), len(corrected)) == (2, 2, 2)
    for trace in corrected:
        critique = critiques[trace.parent(ParentRole.REVISES) or ""]
        attempt = attempts[critique.parent(ParentRole.CRITIQUES) or ""]
        first, asks_critique, output, asks_again = trace.turns
        assert (first.role, first.content) == ("assistant", attempt.answer_text)
        assert (asks_critique.role, output.role, asks_again.role) == ("user", "assistant", "user")
        assert asks_critique.content.startswith("Check this solution")
        assert (output.content, output.reasoning) == (CRITIQUED, "Let me see.")
        assert trace.verdict is not None
        assert trace.verdict.outcome is Outcome.CORRECT
    (chat, _) = loaded(made.root, "chat")
    roles = ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert [message["role"] for message in chat["messages"]] == roles
    assert chat["messages"][0]["content"] == ASKED
    assert chat["messages"][3] == {"role": "assistant", "content": CRITIQUED, "reasoning_content": "Let me see."}
    (sft, _) = loaded(made.root, "sft")
    assert [message["role"] for message in sft["prompt"]] == roles[:-1]
    (raw, _) = loaded(made.root, "raw")
    assert raw["parents"] == [{"id": corrected[0].parents[0].id, "role": "revises", "step": None}]


async def test_a_conversation_is_paid_once(run_stages: RunStages) -> None:
    scripts: dict[str, Any] = {"student": {"accuracy": 0.0, "style": "short"}, "corrector": {"reply": "\\boxed{42}"}}
    first = await run_stages(CRITIQUE, sums(1), critic={"reply": CRITIQUED}, **scripts)
    assert first.paid() == 2 + 2 + 2
    again = await run_stages(CRITIQUE, sums(1), critic={"reply": CRITIQUED}, **scripts)
    assert again.paid() == 0
    longest = [len(trace.messages) for name in ("attempts", "critiques", "corrected") for trace in again.traces(name)]
    assert longest == [2, 2, 4, 4, 6, 6]
    other = await run_stages(CRITIQUE, sums(1), critic={"reply": "Step 1 is wrong."}, **scripts)
    assert other.paid() == 0  # the critic's name and messages are the same: its replies are those that were paid for


async def test_preference_pairs(run_stages: RunStages) -> None:
    made = await run_stages(PAIRS, sums(6), student={"accuracy": 0.5})
    outcomes = {trace.id: trace.verdict.outcome for trace in made.traces("checked") if trace.verdict}
    rows = loaded(made.root, "preference")
    assert rows
    for row in rows:
        assert (outcomes[row["id"]], outcomes[row["rejected_id"]]) == (Outcome.CORRECT, Outcome.INCORRECT)
        assert row["chosen"] != row["rejected"]
        assert [message["role"] for message in (*row["prompt"], *row["chosen"])] == ["user", "assistant"]
    each = {id_ for row in rows for id_ in (row["id"], row["rejected_id"])}
    assert len(each) == 2 * len(rows)  # nobody is in two pairs


def trajectory(question: str, code: str, printed: str, answer: str, gold: str) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "python", "arguments": json.dumps({"code": code})}}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "reasoning_content": "A program is safer.", "tool_calls": [call]},
        {"role": "tool", "content": printed, "tool_call_id": "c1", "name": "python"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "gold": gold, "tools": [PYTHON], "model": "someone"}


async def test_a_trajectory_with_tools(run_stages: RunStages) -> None:
    rows = [
        trajectory(ASKED, "print(40 + 2)", "42", "It is \\boxed{42}.", "42"),
        trajectory("What is 50 + 2?", "print(50 + 2)", "52", "It is \\boxed{53}.", "52"),
    ]
    made = await run_stages(TOOLS, "".join(json.dumps(row) + "\n" for row in rows))
    (trace,) = made.traces("right")
    assert [turn.role for turn in trace.messages] == ["user", "assistant", "tool", "assistant"]
    assert trace.turns[0].tool_calls[0].arguments == '{"code": "print(40 + 2)"}'
    (row,) = loaded(made.root, "tool_use")
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "python"
    assert row["messages"][1]["reasoning_content"] == "A program is safer."
    assert row["messages"][2]["tool_call_id"] == row["messages"][1]["tool_calls"][0]["id"] == "c1"
    assert json.loads(row["tools"])[0]["function"]["name"] == "python"
    (problem,) = loaded(made.root, "rlvr")
    assert problem["reward_model"] == {"style": "rule", "ground_truth": "42"}


def _tora(line: str) -> dict[str, Any] | None:
    """Return a ToRA trace (one program and its output, as text) as a trajectory; None for one of another form."""
    row = json.loads(line)
    parts = row["response"].split("```")
    if len(parts) != 5 or not parts[1].startswith("python\n") or not parts[3].startswith("output\n"):
        return None
    code, printed, answer = parts[1].removeprefix("python\n"), parts[3].removeprefix("output\n").strip(), parts[4]
    return {**trajectory(row["problem"].strip(), code, printed, answer.strip(), row["gold"]), "model": row["model"]}


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not on this machine")
async def test_real_trajectories_come_back_whole(run_stages: RunStages) -> None:
    with (SHARED / "traces" / "tora_gsm8k_program.jsonl").open() as file:
        rows = [row for row in map(_tora, file) if row is not None][:200]
    made = await run_stages(TOOLS, "".join(json.dumps(row) + "\n" for row in rows))
    assert made.stage("traces").tally.kept == len(rows) == 200
    published = {row["messages"][0]["content"]: row for row in loaded(made.root, "tool_use")}
    assert len(published) == made.stage("right").tally.kept > 100
    by_question = {row["messages"][0]["content"]: row for row in rows}
    for question, row in published.items():
        (output,) = row["messages"][1]["tool_calls"]
        assert output["function"] == by_question[question]["messages"][1]["tool_calls"][0]["function"]
        assert row["messages"][2]["content"] == by_question[question]["messages"][2]["content"]


@pytest.mark.parametrize(
    ("messages", "output"),
    [
        (None, "no list"),
        ("[", "not valid JSON"),
        ([], "no list"),
        ([{"role": "user", "content": "2 + 2?"}], "not an answer of the assistant"),
        ([{"role": "assistant", "content": "4"}], "is not the user's"),
        ([{"role": "human", "content": "2 + 2?"}], "message 0 has none of the roles"),
        ([{"role": "user", "content": ["2 + 2?"]}], "message 0: content is not text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}], "message 1 calls a tool"),
    ],
)
def test_what_is_no_conversation_is_named(messages: Any, output: str) -> None:
    with pytest.raises(BadConversation, match=output):
        read_conversation(messages)


async def test_rows_without_a_conversation_or_with_another_question_are_dropped(run_stages: RunStages) -> None:
    whole = trajectory(ASKED, "print(42)", "42", "It is \\boxed{42}.", "42")
    stages = TOOLS.replace("question: messages.0.content", "question: q")
    rows = [{"q": ASKED, **whole}, {"q": "What is 1 + 1?", **whole}, {"q": ASKED, **whole, "messages": "no"}]
    made = await run_stages(stages, "".join(json.dumps(row) + "\n" for row in rows))
    assert made.stage("traces").tally.reasons == {"other_question": 1, "no_conversation": 1}


async def test_any_of_several_gold_answers_is_right(run_stages: RunStages) -> None:
    rows = [
        {"q": "A prime between 24 and 32?", "a": "29", "others": ["31"], "response": "It is \\boxed{31}."},
        {"q": "A prime between 4 and 6?", "a": "5", "others": [], "response": "It is \\boxed{6}."},
    ]
    stages = "  - {id: t, source: traces, with: {paths: problems.jsonl, question: q, answer: a, answers: others}}\n"
    made = await run_stages(f"{stages}  - {{id: checked, verify: auto}}\n", "".join(json.dumps(r) + "\n" for r in rows))
    found = {trace.problem.answer: trace.verdict.outcome for trace in made.traces("checked") if trace.verdict}
    assert found == {"29": Outcome.CORRECT, "5": Outcome.INCORRECT}
