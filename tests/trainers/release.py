"""A small published dataset with everything that could go wrong in a trainer, made with the fake teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tracefactory.core.rows import Problem, StepLabel, Thinking, Trace
from tracefactory.core.stage import Batch
from tracefactory.publish.writing import write_range

PIPELINE = """\
name: rows
version: "1"
models:
  teacher: {use: fake, model: teacher, script: {accuracy: 0.5, seed: 1}}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: attempts, sample: chat, with: {model: teacher, prompt: long, samples: 2}}
  - {id: checked, verify: auto}
  - {id: written, source: traces, with: {paths: traces.jsonl, question: q, answer: a, model: someone}}
  - {id: judged, verify: auto}
  - {id: cut, prune: verification_steps, with: {check: answer}}
  - {id: talks, source: traces, with: {paths: talks.jsonl, question: q, answer: a, messages: m, model: someone}}
  - {id: heard, verify: auto}
  - id: dataset
    publish: dataset
    from: [checked, cut, heard]
    with: {views: [messages, sft, chat, preference, ranking, masked, rlvr, raw], licence: mit}
  - id: agents
    source: traces
    with: {paths: agents.jsonl, question: q, answer: a, messages: m, tools: t, model: someone}
  - {id: right, verify: auto}
  - {id: called, publish: dataset, with: {name: called, views: [tool_use], licence: mit}}
run: {executor: inline}
"""
PROMPT = "---\nstyle: long\n---\nThink, then put the answer in \\boxed{}.\n\n{{ question }}\n"
CHECK = "Let me check: 42 / 7 = 6, which fits."
PRUNED = f"Take 6 rows of 7.\n\nThat makes 6 * 7 = 42.\n\nSo the answer is 42.\n\n{CHECK}\n\nIt is 42."
UNICODE = "Größe: ３ × ５ = 15 😀, d.h. 数えると 15.\n\n  \u200bSo e\u0301 = 15."
LONG = "".join(f"Step {number}: {number} + 1 = {number + 1}.\n\n" for number in range(8000))
"""More than 200 kB of reasoning."""
TOOL = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs a program.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}, "times": {"type": "integer"}}},
    },
}
AGENT: tuple[dict[str, Any], ...] = (
    {"content": "I run it.", "reasoning_content": "A program is safer.", "calls": [{"code": 'print("sum:",\n40 + 2)'}]},
    {"content": "", "reasoning_content": "Twice: ½.", "calls": [{"code": "1 + 1"}, {"code": "größe", "times": 2}]},
    {"content": "It is \\boxed{42}.", "reasoning_content": "Both printed it."},
)
"""Reasoning before every turn, text before a call, quotes and line breaks in arguments, two calls at once."""
PLAIN_AGENT: tuple[dict[str, Any], ...] = (
    {"content": "", "calls": [{"code": "50 + 2"}]},
    {"content": "It is \\boxed{52}."},
)


def make(root: Path) -> Path:
    """Publish the dataset in a project of its own and return the folder of the release.

    The traces that call tools are in a dataset of their own, see `called`.
    """
    for folder in ("pipelines", "prompts"):
        (root / folder).mkdir(parents=True)
    (root / "prompts" / "long.md").write_text(PROMPT)
    (root / "pipelines" / "rows.yaml").write_text(PIPELINE)
    _lines(root / "problems.jsonl", [{"q": f"What is {n} + 2?", "a": str(n + 2)} for n in range(40, 43)])
    traces = [
        {"q": "6 times 7?", "a": "42", "response": f"<think>{PRUNED}</think>So it is \\boxed{{42}}."},
        {"q": "３ × ５ 数?", "a": "15", "response": f"<think>{UNICODE}</think>Größe \\boxed{{15}} ✓"},
        {"q": "2 + 2?", "a": "4", "response": "It is \\boxed{4}."},
    ]
    _lines(root / "traces.jsonl", traces)
    turns = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "5 + 5?"},
        {"role": "assistant", "content": "It is 11.", "reasoning_content": "Five and five, quickly."},
        {"role": "user", "content": "That is wrong."},
        {"role": "assistant", "content": "It is \\boxed{10}.", "reasoning_content": "Count again: 5, 10."},
    ]
    _lines(root / "talks.jsonl", [{"q": "5 + 5?", "a": "10", "m": turns}])
    _lines(root / "agents.jsonl", [_agent("40 + 2?", "42", *AGENT), _agent("50 + 2?", "52", *PLAIN_AGENT)])
    command = [sys.executable, "-m", "tracefactory", "run", "pipelines/rows.yaml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "out" / "rows" / "1"


def called(release: Path) -> Path:
    """Return the folder of the release of traces that call tools, beside that of all others."""
    return release.parent.parent / "called" / "1"


def _agent(question: str, answer: str, *turns: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation in which the assistant calls tools before it answers."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for number, turn in enumerate(turns):
        message = {"role": "assistant", **{name: value for name, value in turn.items() if name != "calls"}}
        calls = [
            {
                "id": f"call{number}{place:04d}",
                "type": "function",
                "function": {"name": "python", "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for place, arguments in enumerate(turn.get("calls", ()))
        ]
        messages.append({**message, **({"tool_calls": calls} if calls else {})})
        messages += [{"role": "tool", "tool_call_id": one["id"], "name": "python", "content": answer} for one in calls]
    return {"q": question, "a": answer, "m": messages, "t": [TOOL]}


def make_by_hand(folder: Path, view: str, *traces: Trace) -> Path:
    """Write one view of some traces as a release has it: for rows that no stage makes."""
    part = write_range(folder / "scratch", 0, [view], [Batch(traces=list(traces))], [])
    assert part.views[view].file is not None, (part.refused, part.views[view].left_out)
    place = folder / "data" / view / "train-00000.parquet"
    place.parent.mkdir(parents=True)
    part.views[view].file.rename(place)
    files = f"  data_files:\n  - split: train\n    path: data/{view}/*.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {view}\n{files}---\n")
    return folder


def long_trace() -> Trace:
    return _trace(LONG, "The last number is 8000.")


def stepped_trace() -> Trace:
    """Return a trace whose steps are labelled: right, wrong."""
    reasoning = "6 * 7 = 42.\n\n42 + 1 = 44.\n\n"
    steps = (
        StepLabel(start=0, end=13, label="correct", source="judge"),
        StepLabel(start=13, end=27, label="incorrect", source="judge"),
    )
    return _trace(reasoning, "It is 44.", steps=steps)


def _trace(reasoning: str, answer: str, **rest: Any) -> Trace:
    problem = Problem.make(question="What comes out?", answer="8000")
    rest = {"thinking": Thinking.CLOSED, **rest}
    return Trace(id="a" * 16, problem=problem, reasoning=reasoning, answer_text=answer, **rest)


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
