"""Completions that version 1 paid for, under keys of its own: they are found, and the traces keep their former ids."""

from __future__ import annotations

import json
import shutil
from typing import Any

import orjson
import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.test_requests import as_v1
from tracefactory.config import load_pipeline
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ChatRequest
from tracefactory.engine.plan import make_plan
from tracefactory.store.requests import compact

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a, verifier: math}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 3}}
"""
SUMS = "".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(4))
MODEL = "  teacher: {use: fake}\n"


@pytest.mark.parametrize("compacted", [False, True])
async def test_what_version_1_paid_for_is_not_paid_again(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    def with_former_seed(request: ChatRequest, **options: Any) -> dict[str, Any]:
        params = request.params if request.seed_v1 is None else {**request.params, "seed": request.seed_v1}
        return {**dump(request, **options), "params": params}

    dump = ChatRequest.model_dump
    with monkeypatch.context() as former:
        former.setattr(ChatRequest, "key", property(lambda request: request.key_v1))
        former.setattr(ChatRequest, "model_dump", with_former_seed)
        before = await run_stages(STAGES, SUMS, more_models=MODEL)
    assert before.paid() == 12
    (journal,) = (before.root / "requests").glob("journal-*")
    as_v1(journal)
    paid = {line["key"]: line["record"] for line in map(orjson.loads, journal.read_bytes().splitlines())}
    if compacted:
        compact(before.root, at_least=1)
    shutil.rmtree(before.root / "stages")
    pipeline = load_pipeline(before.root.parent / "pipelines" / "t.yaml")
    (to_pay,) = [one.to_pay for one in make_plan(pipeline, before.root).stages if one.to_pay]
    assert (to_pay.requests, to_pay.paid) == (0, 12)
    made = await run_stages(STAGES, SUMS, more_models=MODEL)
    assert made.paid() == 0
    traces = made.traces("sampled")
    assert {trace.request_key for trace in traces} == paid.keys()
    for trace in traces:
        request = paid[trace.request_key]["request"]
        assert trace.problem.question in request["messages"][-1]["content"]
        assert trace.sample_index == request["sample_index"]
        assert trace.answer_text == paid[trace.request_key]["completion"]["content"]
        former_id = {"stage": "sampled", "problem": trace.problem.id_v1, "request": trace.request_key}
        assert trace.id == digest(former_id)[:16]
        assert trace.problem.id_v1 != trace.problem.id


async def test_a_completion_of_this_version_is_found_under_its_own_key_alone(run_stages: RunStages) -> None:
    before = await run_stages(STAGES, SUMS, more_models=MODEL)
    (journal,) = (before.root / "requests").glob("journal-*")
    as_v1(journal)  # there may be keys of version 1 in it, so every request is looked up by both
    shutil.rmtree(before.root / "stages")
    made = await run_stages(STAGES, SUMS, more_models=MODEL)
    assert made.paid() == 0
    assert made.traces("sampled") == before.traces("sampled")
