"""Answers of servers that follow no protocol: mutations of valid ones, the same for a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

OPENAI = {
    "id": "1",
    "model": "served",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The answer is 7.", "reasoning_content": "4 and 3."},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "7", "bytes": [55], "logprob": -0.5}]},
        }
    ],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
ANTHROPIC = {
    "id": "1",
    "type": "message",
    "model": "served",
    "content": [{"type": "thinking", "thinking": "4 and 3."}, {"type": "text", "text": "The answer is 7."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 1},
}
GEMINI = {
    "modelVersion": "served",
    "candidates": [
        {"content": {"parts": [{"text": "4 and 3.", "thought": True}, {"text": "The answer is 7."}]},
         "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 1,
                      "cachedContentTokenCount": 1},
}  # fmt: skip
ANSWERS = {"openai": OPENAI, "anthropic": ANTHROPIC, "gemini": GEMINI}

_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**9 + 1, 10**30, -(10**30), 1e308, float("nan"), float("inf"), float("-inf"),
    "", "text", "\ud800", "\x00", "7" * 50, [], [[]], [None], [1], ["a", "b"], {}, {"text": "a"}, {"text": 3},
    {"a": {"b": []}}, [{"type": "text", "text": "a"}], [{"type": "text", "text": None}], {"message": "no"},
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _mutated(value: Any, chance: random.Random) -> Any:
    """Return a copy in which one place is dropped, replaced, wrapped or repeated."""
    value = copy.deepcopy(value)
    *head, last = chance.choice([path for path in _places(value) if path])
    inside = value
    for key in head:
        inside = inside[key]
    match chance.randrange(5):
        case 0:
            del inside[last]
        case 1 | 2:
            inside[last] = copy.deepcopy(chance.choice(_VALUES))
        case 3:
            for _ in range(chance.choice([1, 2, 60])):
                inside[last] = [inside[last]] if chance.random() < 0.5 else {"text": inside[last]}
        case _:
            inside[last] = [inside[last]] * chance.choice([0, 2, 12])
    return value


def _text_level(text: str, chance: random.Random) -> str:
    """Return a body that is hostile as text: cut, nested deeply, with a key twice, or with a number without end."""
    match chance.randrange(8):
        case 0:
            return text[: chance.randrange(len(text))]
        case 1:
            return "[" * 100_000 + "]" * 100_000
        case 2:
            return text.replace("5", "5" * 5000, 1)
        case 3:
            return text[:-1] + "," + text[1:-1].replace("stop", "length") + "}"
        case 4:
            return text.replace('"The answer is 7."', '{"a":' * 50_000 + "1" + "}" * 50_000, 1)
        case 5:
            return text.replace("2", chance.choice(["NaN", "Infinity", "-Infinity", "1e999", "-0", "2.0"]), 1)
        case 6:
            return chance.choice(["", "null", "0", '""', "[]", "{}", "true", '{"error": {}}', '{"error": "no"}'])
        case _:
            return text.replace("7", chance.choice(["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u202e"]))


def bodies(protocol: str, count: int, seed: int) -> Iterator[str]:
    """Yield bodies of responses that begin as valid ones of a protocol.

    Args:
        protocol: a key of `ANSWERS`.
        count: how many.
        seed: the same seed gives the same bodies.
    """
    chance = random.Random(f"{protocol} {seed}")
    for _ in range(count):
        value: Any = ANSWERS[protocol]
        for _ in range(chance.choice([1, 1, 2, 4])):
            if isinstance(value, dict) and value:
                value = _mutated(value, chance)
        text = json.dumps(value)
        yield _text_level(text, chance) if chance.random() < 0.25 and text else text
