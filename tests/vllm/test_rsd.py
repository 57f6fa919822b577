"""Reverse speculative decoding by two real vLLM servers: the tokens are those of the in-process engine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import pytest_asyncio
import torch

from tests.vllm.rsd import Judge, asked, fields, in_process, save_student
from tracefactory.core.environment import Environment
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.in_process import InProcessPair
from tracefactory.decoding.served import ServedModel, ServedPair
from tracefactory.decoding.vllm_specs import DraftingSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.client import ChatClient

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
TIE = 5e-3  # nats: two engines in float32 that add up in different orders
COUNT, TOKENS = 6, 48


@pytest.fixture(scope="module")
def folders(vllm_environ, tmp_path_factory):
    torch.set_num_threads(2)
    teacher = vllm_environ["TRACEFACTORY_TEST_CHECKPOINT"]
    return teacher, save_student(teacher, tmp_path_factory.mktemp("student"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(folders, tmp_path_factory):
    """Both servers; the teacher's knows the noise."""
    specs = [DraftingSpec.model_validate(fields(folders[0])), VLLMSpec.model_validate(fields(folders[1]))]
    logs = tmp_path_factory.mktemp("logs")
    clients = [ChatClient.connect(spec, logs / str(number), Environment()) for number, spec in enumerate(specs)]
    found = (
        ServedModel(n, c, s.checkpoint(Environment())) for n, c, s in zip(("big", "small"), clients, specs, strict=True)
    )
    yield tuple(found)
    await asyncio.gather(*(client.close() for client in clients))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(folders):
    pair = InProcessPair(*map(in_process, folders), COUNT, ("big", "small"))
    answers = await asyncio.gather(*map(pair.complete, asked(COUNT, TOKENS, p=0.05)))
    await pair.close()
    return answers


@pytest.fixture(scope="module")
def judge(folders):
    return Judge(*folders)


async def test_every_draft_length_and_number_of_traces_parts_from_in_process_runs_only_at_near_ties(
    sides, expected, judge, record_property
):
    requests = asked(COUNT, TOKENS, p=0.05)
    found = {}
    for fixed, together in ((1, COUNT), (6, 2), (16, COUNT), (None, COUNT)):
        pair = ServedPair(*sides, fixed)
        slots = asyncio.Semaphore(together)

        async def one(request, pair=pair, slots=slots):
            async with slots:
                return await pair.complete(request)

        answers = await asyncio.gather(*map(one, requests))
        compared = judge.compare(requests, answers, expected)
        draws = np.concatenate([answer.provenance.column("draws") for answer in answers])
        first, agreement = float((draws == 1).mean()), pair.schedulers[Role.TEACHER, True].agreement
        found[fixed, together] = (compared, round(agreement, 3), round(first, 3), pair.widened)
        print(fixed, together, found[fixed, together])
        assert all(margin < TIE for margin in compared.margins), found
        assert (draws == 0).any()
        # the server knows the noise: its guesses fail where the student refuses, and hardly elsewhere
        assert agreement > first - 0.1
    record_property("compared", str(found))


async def test_the_small_decoders_run_on_servers_as_they_are(sides, folders):
    requests = asked(2, 24, "student_prefix", tokens=8, student_temperature=0.0, teacher_temperature=0.0)
    pair = ServedPair(*sides)
    served = await asyncio.gather(*map(pair.complete, requests))
    inside = InProcessPair(*map(in_process, folders), 2, ("big", "small"))
    expected = await asyncio.gather(*map(inside.complete, requests))
    await inside.close()
    assert [one.content for one in served] == [one.content for one in expected]
    assert all(answer.provenance.by_student.tolist() == [True] * 8 + [False] * 16 for answer in served)
