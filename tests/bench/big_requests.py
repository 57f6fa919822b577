"""A request store with many completions of 20 KB."""

from __future__ import annotations

import asyncio
import random
from hashlib import sha256
from pathlib import Path

from tracefactory.store.requests import RequestStore, compact

CHARACTERS = 20_000


def fill(root: Path, count: int) -> list[str]:
    """Pay for `count` completions, compacting as a run does; return their keys."""
    return asyncio.run(_fill(root, count))


async def _fill(root: Path, count: int) -> list[str]:
    source = random.Random(7)
    words = ["".join(source.choices("etaoinshrdlu", k=source.randrange(2, 9))) for _ in range(4096)]
    pool = " ".join(source.choices(words, k=400_000))
    store, keys = RequestStore(root), []
    for number in range(count):
        key = sha256(str(number).encode()).hexdigest()
        start = source.randrange(len(pool) - CHARACTERS)
        completion = {
            "content": pool[start : start + CHARACTERS],
            "finish_reason": "stop",
            "prompt_tokens": 40,
            "completion_tokens": 5000,
            "created": 0.0,
            "seconds": 1.0,
        }
        request = {"messages": [{"role": "user", "content": f"What is {number}?"}], "params": {"seed": number}}
        record = {"request": request, "completion": completion, "cost": 0.0, "run": "bench"}
        await store.put(key, record, near=key[:16])
        keys.append(key)
        if number % 10_000 == 0:
            await asyncio.to_thread(compact, root)
    store.close()
    await asyncio.to_thread(compact, root)
    return keys
