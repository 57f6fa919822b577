"""vLLM's token endpoint over a model in this process, as `ChatClient.ask` reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from tracefactory.core.model import RequestFailed
from tracefactory.sampling.candidates import Sampling, candidates_of
from tracefactory.sampling.noise import Noise

T = TypeVar("T")
Choose = Callable[[torch.Tensor, Mapping[str, Any], int], int]


def greedy(logits: torch.Tensor, sampling: Mapping[str, Any], step: int) -> int:
    return int(logits.argmax())


def by_noise(logits: torch.Tensor, sampling: Mapping[str, Any], step: int) -> int:
    """What a server with the plugin samples."""
    told = sampling.get("extra_args", {}).get("tracefactory_noise")
    if told is None:
        return int(logits.argmax())
    place = Noise(np.array([told["key"]], dtype=np.uint64), np.array([told["position"] + step], dtype=np.int64))
    drawn = Sampling(told["temperature"], told["top_p"], told["top_k"])
    return int(candidates_of(logits.detach()[None], [drawn]).draw(place, told["stream"])[0])


class TokenServer:
    """Answers as a vLLM of one model would; what it samples is decided by `choose`."""

    def __init__(self, model: Any, choose: Choose = greedy, *, most: int = 1024, positions: int = 512) -> None:
        self.model, self.choose, self.most, self.positions = model, choose, most, positions
        self.spec = SimpleNamespace(model="m")
        self.owner, self.finish = "vllm", "length"
        self.requests: list[Mapping[str, Any]] = []
        self.failures: list[RequestFailed] = []

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], *, near: str = "") -> T:
        if body is None:
            assert path == "/v1/models"
            return read({"data": [{"id": "m", "owned_by": self.owner, "max_model_len": self.positions}]})
        assert path == "/inference/v1/generate"
        if self.failures:
            raise self.failures.pop()
        self.requests.append(body)
        return read(self.answer(list(body["token_ids"]), body["sampling_params"]))

    def answer(self, tokens: list[int], sampling: Mapping[str, Any]) -> dict[str, Any]:
        asked = max(sampling["logprobs"], sampling.get("prompt_logprobs") or 0)
        if asked > self.most:
            raise RequestFailed("bad_request", f"{asked} of {self.most}", attempts=1, retryable=False)
        logits = self.model(input_ids=torch.tensor([tokens])).logits[0].double()
        prompt = None
        if sampling.get("prompt_logprobs") is not None:
            rows = enumerate(tokens[1:])
            prompt = [None, *(self.tops(logits[at], token, sampling["prompt_logprobs"]) for at, token in rows)]
        content, sequence, drawn = [], list(tokens), logits[-1]
        for step in range(sampling["max_tokens"]):
            token = self.choose(drawn, sampling, step)
            entries = self.tops(drawn, token, sampling["logprobs"])
            listed = [{"token_id": int(one), **entry} for one, entry in entries.items()]
            content.append({"token_id": token, **entries[str(token)], "top_logprobs": listed})
            sequence.append(token)
            if token in sampling.get("stop_token_ids", ()):
                break
            drawn = self.model(input_ids=torch.tensor([sequence])).logits[0, -1].double()
        drawn_ids = sequence[len(tokens) :]
        usage = {"prompt_tokens": len(tokens), "prompt_tokens_details": {"cached_tokens": 0}}
        choice = {"logprobs": {"content": content}, "token_ids": drawn_ids, "finish_reason": self.finish}
        return {"choices": [choice], "usage": usage, "prompt_logprobs": prompt}

    @staticmethod
    def tops(logits: torch.Tensor, own: int, count: int) -> dict[str, dict[str, Any]]:
        values, ids = logits.log_softmax(0).sort(descending=True)
        best = zip(ids[:count].tolist(), values[:count].tolist(), strict=True)
        found = {str(token): {"rank": rank, "logprob": value} for rank, (token, value) in enumerate(best, 1)}
        if str(own) not in found:
            at = int((ids == own).nonzero().item())
            found[str(own)] = {"rank": at + 1, "logprob": values[at].item()}
        return found
