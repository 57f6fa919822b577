"""Reverse speculative decoding inside of one real vLLM engine: the tokens are those of the in-process engine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.vllm.rsd import Judge, asked, fields, in_process, save_student
from tracefactory.core.environment import Environment
from tracefactory.decoding.fused import FusedPair
from tracefactory.decoding.in_process import InProcessPair
from tracefactory.decoding.served import ServedModel
from tracefactory.decoding.vllm_specs import FusedSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.client import ChatClient

pytestmark = pytest.mark.vllm
TIE = 5e-3  # nats: two engines in float32 that add up in different orders
COUNT, TOKENS = 6, 48


async def test_one_engine_parts_from_in_process_runs_only_at_near_ties(vllm_environ, tmp_path, record_property):
    teacher = vllm_environ["TRACEFACTORY_TEST_CHECKPOINT"]
    student = save_student(teacher, tmp_path / "student")
    length = {"speculative_config": {"num_speculative_tokens": 4}}
    specs = [VLLMSpec.model_validate(one) for one in (fields(teacher), fields(student, **length))]
    spec = FusedSpec.of(specs[1], specs[0], Environment())
    client = ChatClient.connect(spec, tmp_path / "logs", Environment())
    side = ServedModel("small", client, specs[1].checkpoint(Environment()))
    pair = FusedPair(side, ("big", specs[0].checkpoint(Environment())), spec.draft_length)
    requests = asked(COUNT, TOKENS, p=0.05)
    try:
        together = await asyncio.gather(*map(pair.complete, requests))
        alone = [await pair.complete(requests[0])]
    finally:
        await client.close()
    inside = InProcessPair(in_process(teacher), in_process(student), COUNT, ("big", "small"))
    expected = await asyncio.gather(*map(inside.complete, requests))
    await inside.close()
    judge = Judge(teacher, student)
    compared = [judge.compare(requests, together, expected), judge.compare(requests[:1], alone, expected[:1])]
    print(compared)
    record_property("compared", str(compared))
    assert all(margin < TIE for one in compared for margin in one.margins)
    assert compared[0].tokens > COUNT * 5
    draws = np.concatenate([answer.provenance.column("draws") for answer in together])
    assert {0, 1} <= set(draws.tolist())
    for one, other in zip(together, expected, strict=True):
        if one.content == other.content:
            for name in ("teacher_logprobs", "student_logprobs"):
                np.testing.assert_allclose(one.provenance.column(name), other.provenance.column(name), atol=5e-3)
