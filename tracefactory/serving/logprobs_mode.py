"""Find out whether a server reports the model's own log-probabilities, or those after temperature and top-p.

vLLM's engine argument `logprobs_mode` decides it, and no endpoint tells it. Processed log-probabilities change with the
sampling parameters, so they compare with no student. Two requests for one token after the same prompt, at two
temperatures, tell them apart: the gap between two tokens of the first position is the same when they are the model's
own, and inversely proportional to the temperature when they are processed.

Of the tokens of a prompt, vLLM 0.32 reports the model's own log-probabilities also with `processed_logprobs`, but the
logits with `raw_logits` and `processed_logits` (https://github.com/vllm-project/vllm/pull/47680). Other versions and
servers may do otherwise, so they are asked twice too: `prompt_logprobs_fault`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import Any

from tracefactory.core.model import ChatRequest, RequestFailed

Ask = Callable[[ChatRequest], Awaitable[Mapping[str, Any]]]
"""Sends a request and returns the JSON of the answer, in the format of OpenAI's chat protocol."""

TEMPERATURES = (0.5, 2.0)
_LIKELIEST = 5  # the most that every provider reports
_LEAST_GAP = 0.05  # nats; a smaller one is within the noise of half precision
_LEAST = -1000.0  # vLLM writes -9999 for a token that cannot be drawn
_MESSAGES = ({"role": "user", "content": "Name one animal."},)
_LEAST_MASS = 0.01  # of the likeliest tokens together, at the most certain position
_NOISE = 0.1  # nats; the same tokens in two batches of half precision differ by less, and two temperatures by far more
_REMEDY = "start it with `--logprobs-mode raw_logprobs` (a managed vLLM: without `logprobs_mode` in `engine_args`)"
_UNKNOWN = (
    "sample without `logprobs: true`, or set `skip_checks: [logprobs]` of the model if you know that they are raw"
)


async def logprobs_fault(request: ChatRequest, ask: Ask) -> tuple[str, str] | None:
    """Return what is wrong with a server's log-probabilities and the remedy; None when they are the model's own.

    Args:
        request: a request to the model, of which only the model is used.
        ask: sends a request.

    Raises:
        RequestFailed: when the server does not answer for a reason that may pass.
    """
    found: list[Mapping[str, float]] = []
    for temperature in TEMPERATURES:
        params = {"temperature": temperature, "max_tokens": 1, "logprobs": True, "top_logprobs": _LIKELIEST}
        probe = request.model_copy(update={"messages": _MESSAGES, "params": params, "sample_index": 0})
        try:
            found.append(_likeliest(await ask(probe)))
        except RequestFailed as failed:
            if failed.retryable:
                raise
            return f"it refuses to tell the {_LIKELIEST} likeliest tokens ({failed})", _UNKNOWN
    return _fault(*found)


def _likeliest(answer: Mapping[str, Any]) -> dict[str, float]:
    """Return the likeliest first tokens of an answer with their log-probabilities; empty when there are none."""
    content = (answer["choices"][0].get("logprobs") or {}).get("content") or [{}]
    entries = content[0].get("top_logprobs") or ()
    return {one["token"]: float(one["logprob"]) for one in entries if float(one["logprob"]) > _LEAST}


def _fault(cold: Mapping[str, float], hot: Mapping[str, float]) -> tuple[str, str] | None:
    if any(value > 0.01 for value in (*cold.values(), *hot.values())):
        return "it reports logits in place of log-probabilities", _REMEDY
    both = sorted(cold.keys() & hot.keys(), key=cold.__getitem__)
    if len(both) < 2 or (gap := cold[both[-1]] - cold[both[0]]) < _LEAST_GAP:
        return (
            "its log-probabilities cannot be told from processed ones, since it names no other likely tokens",
            _UNKNOWN,
        )
    ratio, scale = gap / max(hot[both[-1]] - hot[both[0]], 1e-9), TEMPERATURES[1] / TEMPERATURES[0]
    if ratio > scale**0.5:
        return "its log-probabilities change with the temperature: they are processed, not the model's own", _REMEDY
    return None


Position = Sequence[float]
"""The log-probabilities at one position of a prompt: that of its token, then those of the likeliest tokens."""


def prompt_logprobs_fault(cold: Sequence[Position], hot: Sequence[Position]) -> tuple[str, str] | None:
    """Return what is wrong with the log-probabilities of a prompt and the remedy; None if they are the model's own.

    Args:
        cold: the positions of a prompt, asked for at the first of `TEMPERATURES`.
        hot: the same positions, asked for at the second one.
    """
    masses = [sum(map(math.exp, likeliest)) for _, *likeliest in (*cold, *hot) if likeliest]
    highest = max((value for position in (*cold, *hot) for value in position), default=0.0)
    if highest > 0.01 or max(masses, default=1.0) > 1.01 or max(masses, default=1.0) < _LEAST_MASS:
        return "it reports logits in place of the log-probabilities of a prompt's tokens", _REMEDY
    positions = zip(cold, hot, strict=True)
    changes = [abs(one - other) for pair in positions for one, other in zip(*pair, strict=False)]
    if not changes or len(cold) < 2:
        return "it reports no log-probabilities of a prompt's tokens", _REMEDY
    if median(changes) > _NOISE:
        return "the log-probabilities of a prompt's tokens change with the temperature: they are processed", _REMEDY
    return None
