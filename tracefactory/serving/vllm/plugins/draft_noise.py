"""A logits processor for vLLM (V1 model runner): lets a server draft with the randomness that will decide.

Loaded into vLLM's own environment (see `vllm_site.py`). A request whose extra arguments hold `tracefactory_noise` gets,
for each token, the one that the model's own draw at that place is (`pools.py`, `noise.py`); any other request is left
alone. The client decides for itself all the same: a server without this only guesses worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tracefactory.sampling.candidates import NO_TOKEN, Sampling, pools_of
from tracefactory.sampling.noise import Noise


@dataclass(frozen=True)
class _Asked:
    """What a request asked for; `written` is vLLM's own growing list of its tokens."""

    key: int
    position: int
    stream: int
    sampling: Sampling
    written: list[int]


class DraftNoise(LogitsProcessor):  # type: ignore[misc]
    """Leaves of a request's logits only the token that will be drawn, as far as this server's arithmetic can tell."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._asked: dict[int, _Asked] = {}

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM that greedy requests are concerned too; drafts are requested so."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests that join, leave or move in the batch."""
        process_dict_updates(self._asked, batch_update, _asked)

    def apply(self, logits: Any) -> Any:
        """Leave one token in the rows [batch, vocabulary] of the requests that asked for it."""
        for stream in {one.stream for one in self._asked.values()}:
            chosen = [(row, one) for row, one in self._asked.items() if one.stream == stream]
            rows = [row for row, _ in chosen]
            noise = Noise(
                np.array([one.key for _, one in chosen], dtype=np.uint64),
                np.array([one.position + len(one.written) for _, one in chosen], dtype=np.int64),
            )
            drawn = pools_of(logits[rows], [one.sampling for _, one in chosen]).draw(noise, stream)
            for row, token in zip(rows, drawn.tolist(), strict=True):
                if token != NO_TOKEN:
                    logits[row] = float("-inf")
                    logits[row, token] = 0.0
        return logits


def _asked(params: Any, prompt: list[int] | None, written: list[int]) -> _Asked | None:
    told: Mapping[str, Any] | None = (params.extra_args or {}).get("tracefactory_noise")
    if told is None:
        return None
    sampling = Sampling(temperature=told["temperature"], top_p=told["top_p"], top_k=told["top_k"])
    return _Asked(told["key"], told["position"], told["stream"], sampling, written)
