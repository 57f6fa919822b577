"""Token ids in, token ids and log-probabilities out, against the same checkpoint in transformers."""

import random

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.vllm.conftest import FIELDS
from tracefactory.core.environment import Environment
from tracefactory.core.model import RequestFailed
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.tokens import TokenClient

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
NEAR = 2e-3  # float32 on two engines that add up in different orders
TEXT = "The sum of 12 and 30 is 42, because 10 + 30 = 40 and 40 + 2 = 42. A second way: 12 = 2 * 6. " * 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tokens(vllm_environ, tmp_path_factory):
    spec = VLLMSpec.model_validate(FIELDS)
    client = ChatClient.connect(spec, tmp_path_factory.mktemp("logs"), Environment())
    yield TokenClient(client)
    await client.close()


@pytest.fixture(scope="module")
def reference(vllm_environ):
    """log-probabilities [position, vocabulary] of the token after each position, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(vllm_environ["TRACEFACTORY_TEST_CHECKPOINT"], dtype=torch.float32)

    def logprobs(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    return logprobs


@pytest.fixture(scope="module")
def text_ids(vllm_environ):
    tokenizer = AutoTokenizer.from_pretrained(vllm_environ["TRACEFACTORY_TEST_CHECKPOINT"])
    return tokenizer(TEXT)["input_ids"]


def check(rows, ids, start, expected):
    """Compare rows for ids[start:] with the reference; positions count from `start`."""
    assert [row.token_id for row in rows] == ids[start : start + len(rows)]
    for position, row in enumerate(rows, start):
        dist = expected[position - 1]
        assert row.logprob == pytest.approx(float(dist[row.token_id]), abs=NEAR)
        strictly_better = int((dist > dist[row.token_id] + NEAR).sum())
        at_most_better = int((dist > dist[row.token_id] - NEAR).sum())
        assert strictly_better < row.rank <= max(at_most_better, 1)
        best = dist.topk(max(1, len(row.likeliest))).values.tolist()
        assert [logprob for _, logprob in row.likeliest] == pytest.approx(best[: len(row.likeliest)], abs=NEAR)
        for token_id, logprob in row.likeliest:
            assert logprob == pytest.approx(float(dist[token_id]), abs=NEAR)


async def test_scores_in_one_request_and_in_chunks_are_those_of_transformers(tokens, reference, text_ids):
    ids = text_ids[:330]
    expected = reference(ids)
    for chunk in (1000, 100, 33):
        random.seed(chunk)
        salted = [random.randrange(100, 40000), *ids[1:]]  # nothing of it is cached yet
        here = reference(salted)
        scored = await tokens.score(salted, likeliest=3, chunk=chunk)
        check(scored.rows, salted, 1, here)
        assert len(scored.rows) == len(salted) - 1
        assert all(len(row.likeliest) == 3 for row in scored.rows)
        assert scored.next[0][0] == int(here[-1].argmax())
        # Chunks share the cache: little is computed twice (blocks of up to 128 tokens on a CPU).
        assert scored.computed_tokens <= len(salted) + 129 * (len(salted) // chunk + 1)
    again = await tokens.score(ids, likeliest=3, chunk=33)
    check(again.rows, ids, 1, expected)


async def test_a_repeated_request_is_not_answered_from_left_over_memory(tokens, reference, text_ids):
    ids = text_ids[5:300]
    expected = reference(ids)
    for _ in range(2):  # the second time nearly all of it is cached, and those rows would be garbage
        check((await tokens.score(ids, start=10, likeliest=2)).rows, ids, 10, expected)


async def test_a_draft_behind_a_cached_beginning_computes_only_what_is_new(tokens, reference, text_ids):
    ids = text_ids[:16] + text_ids[40:560]
    expected = reference(ids[:528])
    first = await tokens.score(ids[:449], start=440, near="trace")
    assert first.computed_tokens >= 449 - 128
    computed = []
    for end in range(465, 529, 16):
        drafted = await tokens.score(ids[:end], start=end - 16, likeliest=20, near="trace")
        check(drafted.rows, ids, end - 16, expected)
        computed.append(drafted.computed_tokens)
    assert min(computed) <= 16 + 128 < 465  # whole blocks are cached, of 128 tokens on a CPU


async def test_drawn_tokens_come_with_their_own_and_the_likeliest_log_probabilities(tokens, reference, text_ids):
    prompt = text_ids[:40]
    drawn = await tokens.draw(prompt, max_tokens=8, temperature=0.7, top_p=0.95, seed=3, likeliest=5)
    ids = [*prompt, *(row.token_id for row in drawn.rows)]
    assert (len(drawn.rows), drawn.finish_reason, drawn.prompt_tokens) == (8, "length", 40)
    check(drawn.rows, ids, 40, reference(ids))  # raw: the model's own, not those left after temperature and top-p
    again = await tokens.draw(prompt, max_tokens=8, temperature=0.7, top_p=0.95, seed=3, likeliest=5)
    assert [row.token_id for row in again.rows] == [row.token_id for row in drawn.rows]
    greedy = await tokens.draw(prompt, max_tokens=1, temperature=0.0)
    assert greedy.rows[0].token_id == int(reference(prompt)[-1].argmax())
    assert greedy.rows[0].likeliest == ()
    stopped = await tokens.draw(prompt, max_tokens=8, temperature=0.0, stop_token_ids=[greedy.rows[0].token_id])
    assert (len(stopped.rows), stopped.finish_reason) == (1, "stop")


async def test_a_prompt_that_does_not_fit_is_a_failure_that_is_not_tried_again(tokens):
    with pytest.raises(RequestFailed) as caught:
        await tokens.draw([5] * 1100, max_tokens=1, temperature=0.0)
    assert not caught.value.retryable
    with pytest.raises(ValueError, match=r"cannot score .* from token 0"):
        await tokens.score([5, 6], start=0)
