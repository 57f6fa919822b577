"""Compute log-probability, rank and entropy from hidden states, in chunks, without the logits of a whole trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tracefactory.core.token_scores import Floats, Ints


class ScoringHead:
    """The student's output layer in float32, applied to `chunk` positions at a time.

    In addition to the hidden states and the weight, scoring n positions needs at most

        peak_bytes(chunk, vocab) = 8 * chunk * vocab

    bytes, for the float32 logits and one work array of their size, which are reused for every chunk. This does not
    depend on n. With the default chunk of 256 it is 311 MB for a vocabulary of 151,936, compared with 20 GB for the
    float32 logits of 32,768 tokens.

    A checkpoint in half precision gets a float32 copy of the output weight (vocab * hidden * 4 bytes): in bfloat16,
    hundreds of logits and therefore ranks would be tied.
    """

    def __init__(self, layer: Any, chunk: int) -> None:
        self._weight = layer.weight.float()
        self._bias = None if layer.bias is None else layer.bias.float()
        self._chunk = chunk

    def score(self, hidden: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
        """Score tokens from the hidden states before them.

        Args:
            hidden: the hidden states, [n, d].
            targets: the token that follows each state, [n].

        Returns:
            Log-probabilities, ranks, entropies and the likeliest tokens, each [n]. They stay on the device, in float32
            and int32, so that chunks do not synchronise with the host.
        """
        rows = min(self._chunk, len(hidden))
        shape = (rows, self._weight.shape[0])
        with torch.inference_mode():
            # two arrays for all chunks: allocating memory for each chunk costs more than the computation
            logits = torch.empty(shape, dtype=torch.float32, device=hidden.device)
            work = torch.empty_like(logits)
            parts = [
                self._score_chunk(states.float(), wanted, logits[: len(states)], work[: len(states)])
                for states, wanted in zip(hidden.split(self._chunk), targets.split(self._chunk), strict=True)
            ]
            logprobs, ranks, entropies, likeliest = zip(*parts, strict=True)
            return torch.cat(logprobs), torch.cat(ranks), torch.cat(entropies), torch.cat(likeliest)

    def logits(self, states: Any) -> Any:
        """Return the logits after some hidden states, [n, vocabulary], all at once."""
        found = states.float() @ self._weight.T
        return found if self._bias is None else found + self._bias

    def _score_chunk(self, states: Any, wanted: Any, logits: Any, work: Any) -> tuple[Any, Any, Any, Any]:
        torch.mm(states, self._weight.T, out=logits)
        if self._bias is not None:
            logits += self._bias
        target = logits.gather(1, wanted[:, None])
        # sums of ones in float32 are exact up to 2^24 tokens, and faster than sums of booleans
        ranks = torch.gt(logits, target, out=work).sum(dim=1).int() + 1
        top, likeliest = logits.max(dim=1, keepdim=True)
        logits -= top
        total = torch.exp(logits, out=work).sum(dim=1)
        log_total = total.log()
        # H = log Z - sum(e^l * l) / Z for logits l shifted by their maximum
        entropies = log_total - work.mul_(logits).sum(dim=1) / total
        return (target - top)[:, 0] - log_total, ranks, entropies, likeliest[:, 0].int()


def peak_bytes(chunk: int, vocab: int) -> int:
    """Return the peak memory in bytes of `ScoringHead.score` without its inputs, for any number of positions."""
    return 8 * chunk * vocab


def to_host(logprobs: Any, ranks: Any, entropies: Any, likeliest: Any) -> tuple[Floats, Ints, Floats, Ints]:
    """Copy scores to the host.

    Raises:
        ArithmeticError: when the student's logits are not finite, which half precision can cause.
    """
    if not bool(torch.isfinite(logprobs).all() & torch.isfinite(entropies).all()):
        raise ArithmeticError("the student's logits are not finite: set `dtype: float32`, or the checkpoint is broken")
    return (
        logprobs.cpu().numpy().astype(np.float32, copy=False),
        ranks.cpu().numpy().astype(np.int32, copy=False),
        entropies.cpu().numpy().astype(np.float32, copy=False),
        likeliest.cpu().numpy().astype(np.int32, copy=False),
    )
