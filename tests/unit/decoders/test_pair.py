"""A pair answers requests as a server would, and says who wrote what."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.decoders.conftest import byte_tokenizer
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.in_process import InProcessPair
from tracefactory.decoding.prompts import rollout_spec
from tracefactory.decoding.provenance import Decoded, Provenance
from tracefactory.decoding.rollout import Rollout, RolloutSpec
from tracefactory.decoding.vocabulary import compare
from tracefactory.students import Checkpoint


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[InProcessPair]:
    teacher, student = (Checkpoint(model=str(path), dtype="float64") for path in save_pair(tmp_path))
    opened = InProcessPair(teacher, student, 3, ("big", "small"))
    yield opened
    await opened.close()


def request(question: str, seed: int, tokens: int = 24, **changed: Any) -> ChatRequest:
    params = {**ReverseSpeculative(p=0.05).model_dump(), "decoder": "reverse_speculative", **changed}
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": "<think>"})
    return ChatRequest(model_identity={}, messages=messages, params={**params, "max_tokens": tokens, "seed": seed})


async def test_requests_in_one_batch_give_the_traces_of_single_requests(pair: InProcessPair) -> None:
    asked = [request(f"What is {n} + {n}?", n) for n in range(5)]
    together = await asyncio.gather(*map(pair.complete, asked))
    later = await pair.complete(asked[3])
    assert later.content == together[3].content
    assert later.provenance.token_ids == together[3].provenance.token_ids
    assert len({one.content for one in together}) == 5
    for one in together:
        assert (one.completion_tokens, one.finish_reason) in {(24, "length"), (one.completion_tokens, "stop")}
        assert 0 < one.prompt_tokens < 60


async def test_the_provenance_has_the_writer_of_every_token(pair: InProcessPair) -> None:
    decoded = await pair.complete(request("What is 1 + 1?", 5, 60, p=0.2, draws=1))
    provenance = Decoded.model_validate_json(decoded.model_dump_json()).provenance
    assert len(provenance.column("token_ids")) == decoded.completion_tokens
    assert 0 < provenance.by_student.mean() < 1
    spans = list(provenance.spans(decoded.content))
    assert "".join(text for _, text in spans) == decoded.content
    assert {role for role, _ in spans} == set(Role)
    accepted = provenance.column("student_logprobs")[~provenance.by_student]
    assert (accepted >= math.log(0.2) - 1e-6).all()
    assert (provenance.column("teacher_logprobs") <= 0).all()


async def test_a_prompt_longer_than_the_context_fails_only_its_request(
    pair: InProcessPair,
) -> None:
    long, short = await asyncio.gather(
        pair.complete(request("x" * 600, 1)), pair.complete(request("x", 1)), return_exceptions=True
    )
    assert isinstance(long, RequestFailed)
    assert (long.kind, long.retryable) == ("context_length", False)
    assert isinstance(short, Decoded)


def test_the_prompt_uses_the_students_template_and_continues_a_prefill(tmp_path: Path) -> None:
    save_pair(tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert (
        tokenizer.decode(rollout_spec(tokenizer, request("1 + 1", 0)).prompt) == "<|user|>1 + 1\n<|assistant|><think>"
    )


def test_spans_never_split_a_character() -> None:
    tokenizer = byte_tokenizer()
    run = Rollout(RolloutSpec((1,), ReverseSpeculative(), 0, 99), compare(tokenizer, tokenizer), tokenizer)
    text = "因为 12 ≤ x, así que √2 ≈ 1.41 🙂."
    ids = tokenizer.encode(text)
    for number, token in enumerate(ids):
        run.write(token, Role(number % 2), draw=number % 2, logprobs={}, stops=())
    assert run.written.text() == text
    spans = list(Provenance.of(run).spans(text))
    assert "".join(part for _, part in spans) == text
    cut = Rollout(RolloutSpec((1,), ReverseSpeculative(), 0, 99), compare(tokenizer, tokenizer), tokenizer)
    for token in ids[:-2]:  # ends inside of the emoji
        cut.write(token, Role.TEACHER, draw=1, logprobs={}, stops=())
    assert cut.written.text() == text[:-2]
    assert np.isnan(Provenance.of(cut).column("student_logprobs")).all()
