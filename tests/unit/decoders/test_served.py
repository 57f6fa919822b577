"""Two servers that decode together write, token by token, what both models write in one process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.decoders.test_pair import request
from tests.unit.decoders.token_server import TokenServer, by_noise, greedy
from tracefactory.core.errors import UserError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoding.decoder import DECODERS, STUDENT_WRITES, Decoder, PartialTrace, Role, Turn
from tracefactory.decoding.draft_schedule import ServedDraftScheduler
from tracefactory.decoding.in_process import InProcessPair
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.served import ServedModel, ServedPair
from tracefactory.sampling.acceptance import Acceptance
from tracefactory.sampling.candidates import Sampling, candidate_bounds, candidates_of
from tracefactory.sampling.noise import STUDENT, TEACHER
from tracefactory.students import Checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def blind(logits: torch.Tensor, sampling: Mapping[str, Any], step: int) -> int:
    """A server's own randomness, which knows nothing of ours."""
    return random.choice(logits.topk(3).indices.tolist())


def served(folders: tuple[Path, Path], choose: Any = greedy, fixed: int | None = None, **options: Any) -> ServedPair:
    sides = []
    for name, folder in zip(("big", "small"), folders, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        spec = Checkpoint(model=str(folder))
        sides.append(ServedModel(name, TokenServer(model, choose, **options), spec))  # type: ignore[arg-type]
    return ServedPair(*sides, fixed)


def asked(count: int, decoder: str = "reverse_speculative", tokens: int = 24, **changed: Any) -> list[ChatRequest]:
    params = {**DECODERS.get(decoder)().model_dump(mode="json"), **changed, "decoder": decoder, "max_tokens": tokens}
    found = [request(f"What is {n} + {n}?", 40 + n) for n in range(count)]
    return [one.model_copy(update={"params": {**params, "seed": one.params["seed"]}}) for one in found]


async def in_process(folders: tuple[Path, Path], requests: list[ChatRequest]) -> list[Decoded]:
    teacher, student = (Checkpoint(model=str(folder), dtype="float64") for folder in folders)
    pair = InProcessPair(teacher, student, 4, ("big", "small"))
    try:
        return await asyncio.gather(*map(pair.complete, requests))
    finally:
        await pair.close()


def columns(answers: list[Decoded]) -> list[tuple[str, list[int], list[int]]]:
    named = [(one.content, one.provenance) for one in answers]
    return [(text, one.column("token_ids").tolist(), one.column("draws").tolist()) for text, one in named]


@pytest.fixture(scope="module")
def written_in_process() -> list[Decoded]:
    """What one process writes, which is the same whatever the servers guess: the first test decodes it."""
    return []


@pytest.mark.parametrize(
    ("choose", "fixed"),
    [(greedy, 1), (greedy, 4), (blind, 7), (greedy, None)],
    ids=["single", "four", "blind", "paced"],
)
async def test_served_traces_equal_in_process_traces_for_any_guesses(
    folders: tuple[Path, Path], written_in_process: list[Decoded], choose: Any, fixed: int | None
) -> None:
    requests = asked(5, p=0.05)
    pair = served(folders, choose, fixed)
    answers = await asyncio.gather(*map(pair.complete, requests))
    if not written_in_process:
        written_in_process.extend(await in_process(folders, requests))
    expected = written_in_process
    assert columns(answers) == columns(expected)
    draws = np.concatenate([one.provenance.column("draws") for one in answers])
    assert (draws == 0).sum() > 3
    assert (draws > 1).sum() > 3
    for one, other in zip(answers, expected, strict=True):
        for name in ("teacher_logprobs", "student_logprobs"):
            told = one.provenance.column(name)
            there = ~np.isnan(told)
            assert there[one.provenance.column("draws") > 0].all()
            assert there.all() or name == "teacher_logprobs"  # the student may write what the teacher did not name
            np.testing.assert_allclose(told[there], other.provenance.column(name)[there], atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"tested": "tempered", "p": 0.04},
        {"tested": "tempered", "top_k": 30, "teacher_temperature": 1.3, "top_p": 0.6},
        {"top_p": 0.5, "draws": 2, "p": 0.1, "student_temperature": 1.4},
        {"teacher_temperature": 0.0, "p": 0.2},
        {"top_p": 1.0, "top_k": 5, "student_temperature": 1.0},
    ],
)
async def test_every_option_of_the_served_engine_gives_in_process_tokens(
    folders: tuple[Path, Path], changed: dict[str, Any]
) -> None:
    requests = asked(3, **changed)
    pair = served(folders, greedy, 5)
    answers = await asyncio.gather(*map(pair.complete, requests))
    assert columns(answers) == columns(await in_process(folders, requests))


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "reverse_speculative"])
async def test_served_decoders_without_rules_give_in_process_tokens(folders: tuple[Path, Path], decoder: str) -> None:
    given = {"tokens": 6} if "prefix" in decoder else {"lead": 3} if decoder == "foreal" else {"opening": 5}
    requests = asked(3, decoder, **given)
    pair = served(folders, greedy, 4)
    answers = await asyncio.gather(*map(pair.complete, requests))
    assert columns(answers) == columns(await in_process(folders, requests))


class Alternating(Decoder):
    """Three tokens under a rule, two of the student's, three under another rule, and so on."""

    name, version = "alternating", "1"

    def turn(self, written: PartialTrace) -> Turn:
        at = len(written) % 8
        if 3 <= at < 5:
            return STUDENT_WRITES
        return Turn(Role.TEACHER, Acceptance(p=1e-6 if at < 3 else 0.3, draws=2))


async def test_a_draft_ends_where_another_rule_or_writer_begins(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracefactory.decoding.prompts.decoder_of", lambda request: Alternating())
    requests = asked(3)
    alike = (folders[0], folders[0])  # so that drafts hold up to where the rule ends, and would hold on
    pair = served(alike, by_noise, 6)
    answers = await asyncio.gather(*map(pair.complete, requests))
    assert columns(answers) == columns(await in_process(alike, requests))
    assert all((one.provenance.column("draws")[[3, 4, 11, 12]] == 0).all() for one in answers)


async def test_correct_guesses_save_rounds(folders: tuple[Path, Path]) -> None:
    requests = asked(2, teacher_temperature=0.0, p=0.001)  # what the server guesses is what is drawn here
    asks: dict[int, int] = {}
    for fixed in (1, 8):
        pair = served(folders, greedy, fixed)
        await asyncio.gather(*map(pair.complete, requests))
        asks[fixed] = sum(len(served_model.client.requests) for served_model in pair.models.values())  # type: ignore[attr-defined]
    assert asks[8] < asks[1] / 2


async def test_more_tokens_are_requested_only_for_undetermined_decisions(folders: tuple[Path, Path]) -> None:
    requests = asked(3, p=0.05, top_p=0.5)
    pair = served(folders, greedy, 4)
    answers = await asyncio.gather(*map(pair.complete, requests))
    assert columns(answers) == columns(await in_process(folders, requests))
    bodies = [one for served_model in pair.models.values() for one in served_model.client.requests]  # type: ignore[attr-defined]
    wide = [one for one in bodies if one["sampling_params"]["logprobs"] > 21]
    assert 0 < len(wide) == 2 * pair.widened < sum(one.completion_tokens for one in answers)


async def test_a_server_that_returns_few_tokens_suffices(folders: tuple[Path, Path]) -> None:
    pair = served(folders, greedy, 4, most=24)
    answers = await asyncio.gather(*map(pair.complete, asked(3, p=0.05, top_p=0.5)))
    assert pair.widened
    assert all(one.completion_tokens == 24 or one.finish_reason == "stop" for one in answers)


def test_candidate_bounds_enclose_the_exact_candidates() -> None:
    """What both bounds agree on must be so, and they must agree nearly always."""
    torch.manual_seed(1)
    tokens = 400
    logits = torch.randn(400, tokens, dtype=torch.float64) * 2.5
    for temperature, tested in ((0.7, "raw"), (0.7, "tempered"), (1.3, "tempered"), (1.0, "raw")):
        samplings = [Sampling(temperature=temperature, top_p=0.9, tested=tested)] * len(logits)  # type: ignore[arg-type]
        whole = candidates_of(logits, samplings)
        values, ids = logits.log_softmax(1).topk(24)
        rows = [list(zip(*one, strict=True)) for one in zip(ids.tolist(), values.tolist(), strict=True)]
        least, most = candidate_bounds(rows, samplings, tokens + 50)
        assert (least.ids == whole.ids).all()
        drawable = [np.isfinite(one.weights) for one in (least, whole, most)]
        assert (drawable[0] <= drawable[1]).all()
        assert (drawable[1] <= drawable[2]).all()
        if tested == "tempered":  # a probability that both can draw lies between
            both = drawable[0]
            assert (most.tested[both] <= whole.tested[both] + 1e-12).all()
            assert (whole.tested[both] <= least.tested[both] + 1e-12).all()
        else:
            np.testing.assert_allclose(least.tested, whole.tested, atol=1e-12)
        if temperature == 1.0:
            assert (drawable[0] == drawable[2]).all()


async def test_a_failed_server_fails_only_its_trace(folders: tuple[Path, Path]) -> None:
    pair = served(folders, greedy, 4)
    gone = RequestFailed("connection", "gone", attempts=7, retryable=True)
    pair.models[Role.STUDENT].client.failures.append(gone)  # type: ignore[attr-defined]
    outcomes = await asyncio.gather(*map(pair.complete, asked(3)), return_exceptions=True)
    assert [one for one in outcomes if isinstance(one, RequestFailed)] == [gone]
    assert sum(isinstance(one, Decoded) for one in outcomes) == 2
    with pytest.raises(RequestFailed, match="context_length"):
        await pair.complete(asked(1, tokens=600)[0])


async def test_a_partial_response_fails_the_request(folders: tuple[Path, Path]) -> None:
    pair = served(folders)
    pair.models[Role.TEACHER].client.finish = "abort"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="aborted"):  # the client turns it into a failed attempt
        await pair.complete(asked(1)[0])


async def test_a_server_other_than_vllm_raises_user_error(folders: tuple[Path, Path]) -> None:
    pair = served(folders)
    pair.models[Role.TEACHER].client.owner = "llamacpp"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"big: .* needs vLLM servers, but .* reports 'llamacpp'.*max-logprobs"):
        await pair.complete(asked(1)[0])


async def test_a_draft_request_has_the_noise_of_its_positions(folders: tuple[Path, Path]) -> None:
    pair = served(folders, greedy, 3)
    await pair.complete(asked(1, "student_prefix", 12)[0])
    told = [
        (role, one["sampling_params"]["extra_args"]["tracefactory_noise"])
        for role, served_model in pair.models.items()
        for one in served_model.client.requests  # type: ignore[attr-defined]
        if "extra_args" in one["sampling_params"]
    ]
    assert {(role, one["stream"]) for role, one in told} == {(Role.STUDENT, STUDENT)}
    assert [one["position"] for _, one in told] == sorted({one["position"] for _, one in told})
    assert {one["key"] for _, one in told} == {40}
    assert TEACHER != STUDENT


async def test_a_long_prompt_is_cached_before_it_is_scored(folders: tuple[Path, Path]) -> None:
    """A server keeps logits of all tokens that it scores and has not cached: gigabytes for a long prompt."""
    pair = served(folders, greedy, 4, positions=1024)
    await pair.complete(request("What is 7 + 7? " * 36, 40, tokens=1))
    for served_model in pair.models.values():
        cached = 0
        for one in served_model.client.requests:  # type: ignore[attr-defined]
            if one["sampling_params"].get("prompt_logprobs") is not None:
                assert len(one["token_ids"]) - cached <= 512
            cached = len(one["token_ids"])
        assert cached > 512


@pytest.mark.parametrize(
    ("agreement", "seconds_per_token", "shortest", "longest"), [(0.1, 0.01, 1, 1), (0.98, 1e-4, 24, 32)]
)
def test_drafts_are_as_long_as_the_models_agree(
    agreement: float, seconds_per_token: float, shortest: int, longest: int
) -> None:
    scheduler = ServedDraftScheduler()
    for step in range(300):
        length = scheduler.length()
        scheduler.record_draft(length, 0.001 + seconds_per_token * length)
        scheduler.record_score(0.002)
        scheduler.record_guess(correct=step % 100 < 100 * agreement)
    assert shortest <= scheduler.length() <= longest
