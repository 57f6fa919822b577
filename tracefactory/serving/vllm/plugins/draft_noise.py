"""A logits processor for vLLM (V1 model runner): the server drafts with the random numbers that will decide.

It is loaded into vLLM's own environment (see `plugin_dir.py`). A request with the extra argument `tracefactory_noise`
gets at each position the model's own draw with the numbers of that position (`candidates.py`, `noise.py`); other
requests are not changed. The client decides every token itself, so a server without the plugin only guesses worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tracefactory.sampling.candidates import NO_TOKEN, Sampling, candidates_of
from tracefactory.sampling.noise import Noise


@dataclass(frozen=True)
class _DraftRequest:
    """A request with `tracefactory_noise`; `written` is vLLM's own list of its tokens, which grows."""

    key: int
    position: int
    stream: int
    sampling: Sampling
    written: list[int]


class DraftNoise(LogitsProcessor):  # type: ignore[misc]
    """Masks all logits of a request except that of the token to draw, up to the rounding error of this server."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._requests: dict[int, _DraftRequest] = {}

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM to process greedy requests too: drafts are greedy requests."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Track the requests that are added to, removed from or moved in the batch."""
        process_dict_updates(self._requests, batch_update, _draft_request)

    def apply(self, logits: Any) -> Any:
        """Mask all but one token in the rows [batch, vocabulary] of the requests with `tracefactory_noise`."""
        for stream in {one.stream for one in self._requests.values()}:
            chosen = [(row, one) for row, one in self._requests.items() if one.stream == stream]
            rows = [row for row, _ in chosen]
            noise = Noise(
                np.array([one.key for _, one in chosen], dtype=np.uint64),
                np.array([one.position + len(one.written) for _, one in chosen], dtype=np.int64),
            )
            drawn = candidates_of(logits[rows], [one.sampling for _, one in chosen]).draw(noise, stream)
            for row, token in zip(rows, drawn.tolist(), strict=True):
                if token != NO_TOKEN:
                    logits[row] = float("-inf")
                    logits[row, token] = 0.0
        return logits


def _draft_request(params: Any, prompt: list[int] | None, written: list[int]) -> _DraftRequest | None:
    options: Mapping[str, Any] | None = (params.extra_args or {}).get("tracefactory_noise")
    if options is None:
        return None
    sampling = Sampling(temperature=options["temperature"], top_p=options["top_p"], top_k=options["top_k"])
    return _DraftRequest(options["key"], options["position"], options["stream"], sampling, written)
