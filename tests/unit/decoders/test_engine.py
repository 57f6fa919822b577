"""Drafting, batching and caching change nothing: every trace is the one that is written token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.decoders.conftest import make_engine, prompts
from tests.unit.decoders.reference import reference
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.draft_schedule import DraftPlan, DraftScheduler
from tracefactory.decoding.engine import Engine
from tracefactory.decoding.rollout import Rollout, RolloutSpec

TOKENS = 30


def run_all(engine: Engine, specs: list[RolloutSpec]) -> list[Rollout]:
    runs = [engine.add(spec) for spec in specs]
    while engine.busy:
        engine.round()
    return runs


def specs(decoder: ReverseSpeculative, count: int, tokens: int = TOKENS) -> list[RolloutSpec]:
    return [RolloutSpec(tuple(p), decoder, 77 + i, tokens) for i, p in enumerate(prompts(count))]


@pytest.fixture(scope="module")
def expected(teacher: Any, student: Any) -> list[list[tuple[int, int]]]:
    found = []
    for spec in specs(ReverseSpeculative(), 6):
        steps = reference(teacher, student, list(spec.prompt), spec.decoder, spec.key, TOKENS, frozenset({256}))
        found.append([(step.token, step.draw) for step in steps])
    return found


def test_the_reference_takes_every_branch(expected: list[list[tuple[int, int]]]) -> None:
    """Otherwise equality with it would show little: first draws, later draws and the student's own must all occur."""
    draws = [draw for trace in expected for _, draw in trace]
    assert draws.count(1) > 30
    assert sum(draw > 1 for draw in draws) > 5
    assert draws.count(0) > 5


@pytest.mark.parametrize(("length", "rows"), [(1, 4), (3, 1), (3, 4), (16, 4)])
@pytest.mark.parametrize("drafter", list(Role))
def test_chunked_and_batched_runs_equal_the_reference(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    expected: list[list[tuple[int, int]]],
    drafter: Role,
    length: int,
    rows: int,
) -> None:
    engine = make_engine(teacher, student, tokenizer, rows=rows, scheduler=DraftScheduler(DraftPlan(drafter, length)))
    runs = run_all(engine, specs(ReverseSpeculative(), 6))
    assert [list(zip(run.tokens, run.draws, strict=True)) for run in runs] == expected


def test_the_draft_scheduler_does_not_change_tokens(
    teacher: Any, student: Any, tokenizer: Any, expected: list[list[tuple[int, int]]]
) -> None:
    runs = run_all(make_engine(teacher, student, tokenizer, rows=4), specs(ReverseSpeculative(), 6))
    assert [list(zip(run.tokens, run.draws, strict=True)) for run in runs] == expected


@pytest.mark.parametrize(
    "decoder",
    [
        ReverseSpeculative(tested="tempered"),
        ReverseSpeculative(tested="tempered", top_k=3, teacher_temperature=1.3),
        ReverseSpeculative(p=0.2, draws=1, top_p=0.5),
        ReverseSpeculative(p=0.05, draws=2, top_p=1, top_k=50, student_temperature=0.3),
    ],
)
def test_every_decoder_option_equals_the_reference(
    teacher: Any, student: Any, tokenizer: Any, decoder: ReverseSpeculative
) -> None:
    runs = run_all(make_engine(teacher, student, tokenizer, rows=3), specs(decoder, 3))
    for run in runs:
        steps = reference(teacher, student, list(run.spec.prompt), decoder, run.spec.key, TOKENS, frozenset({256}))
        assert list(zip(run.tokens, run.draws, strict=True)) == [(step.token, step.draw) for step in steps]


def test_rollouts_have_the_log_probabilities_of_both_models(teacher: Any, student: Any, tokenizer: Any) -> None:
    run = run_all(make_engine(teacher, student, tokenizer, rows=1), specs(ReverseSpeculative(), 1))[0]
    whole = torch.tensor([[*run.spec.prompt, *run.tokens]])
    for role, model in ((Role.TEACHER, teacher), (Role.STUDENT, student)):
        logp = model(input_ids=whole).logits[0].log_softmax(-1)[len(run.spec.prompt) - 1 : -1]
        expected = logp.gather(1, torch.tensor(run.tokens)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(run.logprobs[role], expected, atol=1e-9)


def test_a_prompt_in_the_kv_cache_is_not_computed_again(teacher: Any, student: Any, tokenizer: Any) -> None:
    decoder = ReverseSpeculative()
    twins = [RolloutSpec(tuple(prompts(1)[0]), decoder, key, 12) for key in (1, 2, 3, 4)]
    alone = [run_all(make_engine(teacher, student, tokenizer, rows=1), [one])[0].tokens for one in twins]
    engine = make_engine(teacher, student, tokenizer, rows=3, scheduler=DraftScheduler(DraftPlan(Role.TEACHER, 4)))
    runs = [engine.add(spec) for spec in twins]
    engine.round()
    assert engine.models[Role.STUDENT].passes == 2  # one for the prompt, one to score the draft
    while engine.busy:
        engine.round()
    assert [run.tokens for run in runs] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


def test_a_stop_token_ends_a_trace_and_is_not_in_its_text(teacher: Any, student: Any, tokenizer: Any) -> None:
    one = specs(ReverseSpeculative(), 1)
    whole = run_all(make_engine(teacher, student, tokenizer, rows=1), one)[0]
    assert whole.finish == "length"
    stop = whole.tokens[20]
    at = whole.tokens.index(stop)
    engine = make_engine(teacher, student, tokenizer, rows=1, stops=frozenset({stop}))
    stopped = run_all(engine, one)[0]
    assert (stopped.finish, stopped.tokens) == ("stop", whole.tokens[: at + 1])
    assert stopped.written.text() == whole.written.text()[: len(stopped.written.text())]
    assert stopped.written.pieces[-1] == ""


def test_a_round_ends_traces_at_different_lengths_and_fills_their_rows(
    teacher: Any, student: Any, tokenizer: Any
) -> None:
    decoder = ReverseSpeculative()
    mixed = [RolloutSpec(tuple(p), decoder, i, 3 + 7 * i) for i, p in enumerate(prompts(9))]
    alone = [run_all(make_engine(teacher, student, tokenizer, rows=1), [one])[0].tokens for one in mixed]
    together = run_all(make_engine(teacher, student, tokenizer, rows=4), mixed)
    assert [run.tokens for run in together] == alone
    assert [len(run.tokens) for run in together if run.finish == "length"] == [
        run.spec.max_tokens for run in together if run.finish == "length"
    ]
