from __future__ import annotations

import json

import pytest

from tracefactory.core.model import ChatRequest
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer
from tracefactory.serving.logprobs import packed, unpacked


def reported(*tokens: bytes, alternatives: int = 0) -> dict[str, object]:
    other = [{"token": "x", "bytes": [120], "logprob": -9.0}] * alternatives
    return {
        "content": [
            {
                "token": token.decode(errors="replace"),
                "bytes": list(token),
                "logprob": -0.123456789 * n,
                "top_logprobs": other,
            }
            for n, token in enumerate(tokens)
        ]
    }


@pytest.mark.parametrize(
    "tokens", [(b"So", b" 42", b""), (b"\xe5\x8d", b"\x8a", b" a"), (b"cut \xe5\x8d",)], ids=["plain", "split", "cut"]
)
def test_bytes_and_numbers_survive(tokens: tuple[bytes, ...]) -> None:
    stored = packed(reported(*tokens))
    assert stored is not None
    bytes_, numbers = unpacked(stored)
    assert tuple(bytes_) == tokens
    assert numbers == pytest.approx([-0.123456789 * n for n in range(len(tokens))], abs=1e-5)


def test_what_is_stored_is_a_fraction_of_what_was_sent() -> None:
    answer = reported(*[b" token"] * 500, alternatives=1)
    stored = packed(answer)
    assert stored is not None
    assert len(stored) < len(json.dumps(answer)) / 8


@pytest.mark.parametrize("nothing", [{}, {"content": None}, {"content": []}])
def test_nothing_reported_is_nothing_stored(nothing: dict[str, object]) -> None:
    assert packed(nothing) is None


@pytest.mark.parametrize("place", ["inline", "reasoning_content"])
async def test_a_client_keeps_them_with_the_completion_only_when_asked(tmp_path, place: str) -> None:  # type: ignore[no-untyped-def]
    async with FakeServer(FakeScript(reasoning=place, style="long")) as server:  # type: ignore[arg-type]
        client = ChatClient.connect(OpenAISpec(model="fake", base_url=server.base_url), tmp_path)
        asked = ({"role": "user", "content": "What is 4 + 5?"},)
        plain = await client.complete(ChatRequest(model_identity={}, messages=asked))
        told = await client.complete(ChatRequest(model_identity={}, messages=asked, params={"logprobs": True}))
        await client.close()
    assert plain.logprobs is None
    assert told.content == plain.content  # asking changes nothing of what is said
    assert told.logprobs is not None
    tokens, numbers = unpacked(told.logprobs)
    output = b"".join(tokens).decode()
    assert (told.reasoning or "") in output
    assert output.endswith(told.content)
    assert all(-3.0 <= number <= 0.0 for number in numbers)
