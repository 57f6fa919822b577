"""Answers that are written together: each is what the model writes alone, whatever is beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.decoders.conftest import prompts
from tracefactory.decoding.chat_batch import CANCELLED, Answer, AnswerSpec, ChatBatch
from tracefactory.decoding.kv_cache import CachedModel, Feed

STOPS = frozenset({256})
ROWS = 3


def written(
    model: Any, tokenizer: Any, specs: list[AnswerSpec], rows: int = ROWS, pass_tokens: int = 64
) -> list[Answer]:
    batch = ChatBatch(CachedModel(model, rows), tokenizer, STOPS, pass_tokens)
    answers = [batch.add(spec) for spec in specs]
    while batch.busy:
        batch.round()
    return answers


def greedy(prompt: list[int], max_tokens: int, **more: Any) -> AnswerSpec:
    return AnswerSpec(tuple(prompt), max_tokens, temperature=0.0, **more)


def test_greedy_answers_are_those_of_the_model_alone(teacher: Any, tokenizer: Any) -> None:
    """Eleven prompts of different lengths in three rows; two are the same, and two begin with the same tokens."""
    given = prompts(8)
    given += [given[1], given[2] + [7, 8, 9], [5]]
    answers = written(teacher, tokenizer, [greedy(one, 4 + 3 * at) for at, one in enumerate(given)])
    for prompt, answer in zip(given, answers, strict=True):
        alone = teacher.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=answer.spec.max_tokens,
            do_sample=False,
            eos_token_id=256,
            pad_token_id=256,
        )[0, len(prompt) :].tolist()
        assert answer.tokens == alone
        assert answer.finish == ("stop" if alone[-1] == 256 else "length")


def test_a_seed_decides_an_answer_whatever_is_beside_it(teacher: Any, tokenizer: Any) -> None:
    given = prompts(6)
    asked = AnswerSpec(tuple(given[0]), 40, temperature=1.0, top_p=0.95, seed=2**64 - 5)
    (alone,) = written(teacher, tokenizer, [asked])
    beside = [AnswerSpec(tuple(one), 5 + 9 * at, temperature=0.5 * at, seed=at) for at, one in enumerate(given)]
    among = written(teacher, tokenizer, [*beside, asked], rows=4)[-1]
    other = written(teacher, tokenizer, [AnswerSpec(asked.prompt, 40, temperature=1.0, top_p=0.95, seed=3)])[0]
    assert alone.tokens == among.tokens
    assert other.tokens != alone.tokens
    # a position has a number of its own: one number for all would draw by its size alone
    assert len(set(alone.tokens)) > 5


def test_an_answer_ends_at_a_stop_text_a_stop_token_and_its_length(teacher: Any, tokenizer: Any) -> None:
    prompt = prompts(1)[0]
    (whole,) = written(teacher, tokenizer, [greedy(prompt, 30)])
    text = whole.text
    assert (whole.finish, len(whole.tokens)) == ("length", 30)
    stop = next(text[at : at + 2] for at in range(5, len(text)) if text[at : at + 2].isascii())
    (cut,) = written(teacher, tokenizer, [greedy(prompt, 30, stop=("never there", stop))])
    assert (cut.finish, cut.text) == ("stop", text[: text.index(stop)])
    last = whole.tokens[9]
    batch = ChatBatch(CachedModel(teacher, 1), tokenizer, frozenset({last}), 64)
    answer = batch.add(greedy(prompt, 30))
    while batch.busy:
        batch.round()
    assert answer.finish == "stop"
    assert answer.tokens == whole.tokens[: whole.tokens.index(last) + 1]
    assert text.startswith(answer.text)


def test_log_probabilities_are_the_models_own(teacher: Any, tokenizer: Any) -> None:
    prompt = prompts(2)[1]
    spec = AnswerSpec(tuple(prompt), 12, temperature=2.0, top_p=0.9, seed=1, likeliest=2)
    (answer,) = written(teacher, tokenizer, [spec])
    logits = teacher(torch.tensor([[*prompt, *answer.tokens]])).logits[0].log_softmax(dim=1)
    for at, (token, one) in enumerate(zip(answer.tokens, answer.logprobs, strict=False)):
        row = logits[len(prompt) - 1 + at]
        assert one.logprob == pytest.approx(float(row[token]))
        assert [value for _, value in one.likeliest] == pytest.approx(row.topk(2).values.tolist())
    assert "".join(one.text for one in answer.logprobs) == answer.text


def test_a_cancelled_answer_frees_its_row(teacher: Any, tokenizer: Any) -> None:
    batch = ChatBatch(CachedModel(teacher, 1), tokenizer, STOPS, 64)
    first, second, third = (batch.add(greedy(one, 5)) for one in prompts(3))
    batch.round()
    first.finish = second.finish = CANCELLED
    assert batch.round() == [first]
    while batch.busy:
        batch.round()
    assert (len(first.tokens), second.tokens, len(third.tokens)) == (2, [], 5)


def test_a_pass_over_prompts_is_bounded(teacher: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = CachedModel.forward

    def counted(self: CachedModel, feeds: list[Feed]) -> Any:
        passes.append(len(feeds) * max(len(one.tokens) for one in feeds))
        return forward(self, feeds)

    monkeypatch.setattr(CachedModel, "forward", counted)
    given = [[at, *one] for at, one in enumerate(prompts(8))]  # no common beginning
    written(teacher, tokenizer, [greedy(one, 2) for one in given], rows=8, pass_tokens=40)
    assert max(passes) <= 40
    assert len(passes) > 4
