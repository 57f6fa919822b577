"""Reading token scores around the server's prefix cache, against a server that fails as vLLM's two model runners do."""

import math
import random

import pytest
from aiohttp import web

from tracefactory.core.errors import UserError
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.managed import FixedEndpoint
from tracefactory.serving.tokens import TokenClient

BLOCK = 16


def truth(ids, position):
    """A made-up model: what stands at `position` depends on everything before it."""
    return -((sum((i + 1) * one for i, one in enumerate(ids[:position])) * 31 + ids[position]) % 977) / 100


class Server:
    """Caches whole blocks, and says nonsense about tokens in them (`runner` 1) or leaves their rows out (2)."""

    def __init__(self, runner, refuses=0.0, details=True):
        self.runner, self.refuses, self.details = runner, refuses, details
        self.cache = set()
        self.asked = []
        self.random = random.Random(5)

    async def answer(self, request):
        body = await request.json()
        ids, sampling = body["token_ids"], body["sampling_params"]
        cached = 0
        if not sampling.get("skip_reading_prefix_cache", False):
            while cached + BLOCK < len(ids) and tuple(ids[: cached + BLOCK]) in self.cache:
                cached += BLOCK
        self.cache |= {tuple(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK)}
        self.asked.append((len(ids), cached, request.host))
        if cached and "prompt_logprobs" in sampling and self.random.random() < self.refuses:
            error = {"message": "Out of range float values are not JSON compliant", "code": 400}
            return web.json_response({"error": error}, status=400)
        rows = [None]
        for position in range(1, len(ids)):
            if position > cached:
                own = {"logprob": truth(ids, position), "rank": 3}
                rows.append({str(ids[position]): own, "7": {"logprob": -0.1, "rank": 1}})
            elif self.runner == 1:
                rows.append({str(ids[position]): {"logprob": 12345.0, "rank": -7}})
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        if self.details:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        top = [{"token_id": 9, "logprob": -2.0, "rank": 2}, {"token_id": 8, "logprob": -1.0, "rank": 1}]
        drawn = {"content": [{"token_id": 9, "logprob": -2.0, "rank": 2, "top_logprobs": top}]}
        choice = {"token_ids": [9], "logprobs": drawn, "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": usage, "prompt_logprobs": rows})


@pytest.fixture
async def tokens_of(tmp_path):
    closing = []

    async def serve(*servers):
        urls = []
        for server in servers:
            app = web.Application()
            app.router.add_post("/inference/v1/generate", server.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            urls.append(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1")
            closing.append(runner.cleanup)
        client = ChatClient(OpenAISpec(model="m", base_url=tuple(urls)), FixedEndpoint(urls), tmp_path)
        closing.insert(0, client.close)
        return TokenClient(client)

    yield serve
    for close in closing:
        await close()


def check(scored, ids, start):
    assert [row.token_id for row in scored.rows] == ids[start:]
    assert [row.logprob for row in scored.rows] == [truth(ids, position) for position in range(start, len(ids))]
    assert all(row.rank == 3 and row.likeliest == ((7, -0.1),) for row in scored.rows)
    assert scored.next == ((8, -1.0),)


@pytest.mark.parametrize("runner", [1, 2])
@pytest.mark.parametrize("refuses", [0.0, 0.5])
async def test_no_row_ever_comes_out_of_the_cached_part(runner, refuses, tokens_of):
    server = Server(runner, refuses)
    tokens = await tokens_of(server)
    rng = random.Random(1)
    ids = [rng.randrange(100, 900) for _ in range(200)]
    for _ in range(40):
        end = rng.randrange(2, 200)
        start = rng.randrange(1, end)
        check(
            await tokens.score(ids[:end], start=start, likeliest=1, chunk=rng.choice([2, 7, 32, 500])), ids[:end], start
        )
    assert any(cached for _, cached, _ in server.asked)


@pytest.mark.parametrize("runner", [1, 2])
async def test_chunks_and_drafts_are_computed_once(runner, tokens_of):
    server = Server(runner)
    tokens = await tokens_of(server)
    ids = list(range(100, 420))
    whole = await tokens.score(ids, likeliest=1, chunk=64)
    check(whole, ids, 1)
    chunks = math.ceil(319 / 64)
    assert len(server.asked) == chunks
    assert max(count - cached for count, cached, _ in server.asked) <= 64 + 2 * BLOCK
    assert whole.computed_tokens <= 320 + chunks * BLOCK
    draft = [*ids[:300], *range(600, 608)]
    drafted = await tokens.score(draft, start=300, likeliest=1, chunk=64)
    check(drafted, draft, 300)
    assert drafted.computed_tokens <= 2 * (8 + BLOCK)


async def test_one_trace_stays_with_one_server_and_many_use_all(tokens_of):
    servers = [Server(2), Server(2), Server(2)]
    tokens = await tokens_of(*servers)
    for trace in range(30):
        before = [len(server.asked) for server in servers]
        for _ in range(3):
            await tokens.draw([trace, 1, 2], max_tokens=1, temperature=1.0, near=f"trace {trace}")
        grown = [len(server.asked) - count for server, count in zip(servers, before, strict=True)]
        assert sorted(grown) == [0, 0, 3]
    assert all(len(server.asked) >= 9 for server in servers)


async def test_drawn_tokens_are_read_with_the_likeliest_in_order(tokens_of):
    tokens = await tokens_of(Server(2))
    drawn = await tokens.draw([1, 2, 3], max_tokens=1, temperature=0.7, seed=4, likeliest=2)
    (row,) = drawn.rows
    assert (row.token_id, row.logprob, row.rank, row.likeliest) == (9, -2.0, 2, ((8, -1.0), (9, -2.0)))
    assert (drawn.finish_reason, drawn.prompt_tokens, drawn.cached_tokens) == ("length", 3, 0)


async def test_a_server_that_hides_its_cache_is_not_trusted(tokens_of):
    tokens = await tokens_of(Server(1, details=False))
    with pytest.raises(UserError, match="--enable-prompt-tokens-details"):
        await tokens.score([1, 2, 3])
