"""Every variable of a prompt has a value in a stage that samples, or `check` refuses it; traces tell what was sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.core.errors import UserError
from tracefactory.core.keys import messages_digest
from tracefactory.core.spans import Span
from tracefactory.store.requests import RequestStore
from tracefactory.text.prompts import PROBLEM_VARIABLES, ROW_VARIABLES, TRACE_VARIABLES

PROBLEM = {"q": "What is 2 + 3?", "a": "5", "more": ["five"], "where": "sums", "hard": 0.25, "page": 7}
SOURCE = """\
  - id: problems
    source: files
    with:
      {paths: problems.jsonl, question: q, answer: a, answers: more, domain_field: where, measures: {level: hard},
       meta: [page]}
"""
ON_PROBLEMS = "  - {id: asked, sample: chat, from: problems, with: {model: teacher, prompt: everything, samples: 1}}\n"
ON_TRACES = """\
  - {id: first, sample: chat, from: problems, with: {model: teacher, prompt: math_long, samples: 1}}
  - {id: checked, verify: auto}
  - {id: asked, sample: chat, from: checked, with: {model: teacher, prompt: everything, samples: 1}}
"""
ROLLOUT = (
    "  - {id: asked, rollout: until_correct, from: problems, with: {model: teacher, prompt: everything, attempts: 1}}\n"
)


def prompt(tmp_path: Path, names: list[str]) -> None:
    """Write a prompt that shows every one of some variables, and has one of them in its system message."""
    folder = tmp_path / "project" / "prompts"
    folder.mkdir(parents=True)
    for shipped in (Path(__file__).parents[3] / "prompts").glob("*.md"):
        (folder / shipped.name).write_text(shipped.read_text())
    shown = "\n".join(f"<{name}={{{{ {name} }}}}>" for name in names)
    (folder / "everything.md").write_text(f"---\nstyle: long\nsystem: Gold {{{{ gold }}}}.\n---\n{shown}\n")


def sent(made, trace) -> list[dict[str, str]]:  # type: ignore[no-untyped-def]
    return list(RequestStore(made.root).get([trace.request_key])[trace.request_key]["request"]["messages"])


SHARED = [*PROBLEM_VARIABLES, *ROW_VARIABLES]


@pytest.mark.parametrize(
    ("stages", "names"),
    [(ON_PROBLEMS, SHARED), (ROLLOUT, SHARED), (ON_TRACES, [*SHARED, *TRACE_VARIABLES])],
    ids=["problems", "rollout", "traces"],
)
async def test_every_variable_is_filled(run_stages: RunStages, tmp_path: Path, stages: str, names: list[str]) -> None:
    prompt(tmp_path, names)
    made = await run_stages(SOURCE + stages, json.dumps(PROBLEM) + "\n", teacher={})
    (trace,) = made.traces("asked")
    messages = sent(made, trace)
    text = messages[-1]["content"]
    for name in names:
        assert f"<{name}=" in text
    for known in ("<gold=5>", "<domain=sums>" if "domain" in names else "", "level", "0.25", "page", "7", "five"):
        assert known in text
    if "reasoning" in names:
        (first,) = made.traces("checked")
        assert first.reasoning.strip()[:40] in text
        assert first.answer_text.strip() in text
        assert "correct" in text
        assert "pass_rate" in text  # measures of the trace
    # What was sent is on the trace: the rendered system message, and the digest of the rendered messages.
    assert trace.system == messages[0]["content"] == "Gold 5."
    assert trace.messages_digest == messages_digest(messages)
    assert trace.prompt_digest != trace.messages_digest
    assert made.stage("asked").rows(made.root).frame(Span.all(), ("messages_digest",))["messages_digest"].to_list() == [
        trace.messages_digest
    ]


@pytest.mark.parametrize("stages", [ON_PROBLEMS, ROLLOUT], ids=["chat", "rollout"])
@pytest.mark.parametrize("name", sorted(TRACE_VARIABLES))
async def test_what_only_a_trace_has_is_refused_on_problems(
    run_stages: RunStages, tmp_path: Path, stages: str, name: str
) -> None:
    prompt(tmp_path, [name])
    with pytest.raises(UserError, match=rf"t.yaml:\d+: stage 'asked': prompt 'everything' uses '{name}'.*available: "):
        await run_stages(SOURCE + stages, json.dumps(PROBLEM) + "\n", teacher={})


async def test_two_problems_of_one_prompt_have_two_rendered_digests(run_stages: RunStages, tmp_path: Path) -> None:
    prompt(tmp_path, ["question"])
    rows = json.dumps(PROBLEM) + "\n" + json.dumps({**PROBLEM, "q": "What is 3 + 3?", "a": "6"}) + "\n"
    made = await run_stages(SOURCE + ON_PROBLEMS.replace("samples: 1", "samples: 2"), rows, teacher={})
    traces = made.traces("asked")
    assert len({trace.prompt_digest for trace in traces}) == 1
    assert len({trace.messages_digest for trace in traces}) == 2
    assert {trace.system for trace in traces} == {"Gold 5.", "Gold 6."}
