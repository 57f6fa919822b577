"""The canary of a model: what the first answers of a stage show before many requests are paid for.

Its requests are the first ones of the stage, so it costs nothing, and their completions are stored like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, get_args

from tracefactory.core.fingerprint import canonical
from tracefactory.core.model import CanaryCheck, ChatRequest, Completion, ModelSpec
from tracefactory.core.rows import Thinking
from tracefactory.text.reasoning import opens_thinking, split_reasoning

REQUESTS = 4
"""Requests of one canary; they are pairs of siblings where rows have several samples."""

CHECKS: frozenset[CanaryCheck] = frozenset(get_args(CanaryCheck))

_SIBLING_TOKENS = 100  # shorter answers may be equal by chance
_COPIED = 80  # characters of the reasoning that must not be in the answer


OF_ANY_STAGE: frozenset[CanaryCheck] = frozenset({"empty", "logprobs", "model"})
"""The checks for stages that sample no traces, such as a judge whose answers may be one word."""


class Answered(NamedTuple):
    """A request of the canary and its completion."""

    request: ChatRequest
    completion: Completion


class Fault(NamedTuple):
    """A fault that a canary has found: the check, what was seen, and what to change."""

    check: CanaryCheck
    seen: str
    remedy: str


def faults(answers: Sequence[Answered], spec: ModelSpec, checks: Collection[CanaryCheck] = CHECKS) -> list[Fault]:
    """Return the faults in the first answers of a model, without those of `spec.skip_checks`.

    Args:
        answers: the requests with their completions, at least one.
        spec: the model.
        checks: what is looked at.
    """
    wanted = set(checks) - set(spec.skip_checks)
    return [fault for fault in _faults(answers, spec) if fault.check in wanted]


def chosen(requests: Sequence[ChatRequest]) -> list[ChatRequest]:
    """Return the requests of the canary: two samples of each of two rows, or one of each of four."""
    by_messages: defaultdict[str, list[ChatRequest]] = defaultdict(list)
    for request in requests:
        by_messages[canonical([dict(message) for message in request.messages])].append(request)
        if len(by_messages) > REQUESTS:
            break
    groups = sorted(by_messages.values(), key=len, reverse=True)
    siblings = [one for group in groups[:2] if len(group) > 1 for one in group[:2]]
    return [*siblings, *(group[0] for group in groups[len(siblings) // 2 :])][:REQUESTS]


def _faults(answers: Sequence[Answered], spec: ModelSpec) -> Iterator[Fault]:
    many = f"all of the first {len(answers)} answers" if len(answers) > 1 else "the first answer"
    completions = [one.completion for one in answers]
    parts = [
        split_reasoning(
            one.content,
            one.reasoning,
            opened_in_prompt=request.has_prefill and opens_thinking(request.messages[-1]["content"]),
        )
        for request, one in answers
    ]
    ended = [(one, part) for one, part in zip(completions, parts, strict=True) if one.finish_reason == "stop"]
    if all(not one.content and not one.reasoning and not one.refusal for one in completions):
        yield Fault("empty", f"{many} are empty", "check the model's chat template and the server's reasoning parser")
        return
    if len(answers) > 2 and all(one.finish_reason == "length" for one in completions):
        tokens = max(one.completion_tokens for one in completions)
        yield Fault("truncated", f"{many} are cut off after {tokens} tokens", "raise max_tokens, or ask for less")
    reasons = [reasoning for reasoning, _, _ in parts]
    wanted = spec.expects_reasoning
    if wanted and not any(reasons):
        yield Fault("reasoning", f"{many} have no reasoning, which `reasoning:` asks for", _REASONING)
    if wanted is False and any(reasons):
        yield Fault("reasoning", "answers have reasoning, which `reasoning: off` forbids", _REASONING)
    for one in completions:
        start = (one.reasoning or "").strip()[:_COPIED]
        if len(start) == _COPIED and start in one.content:
            yield Fault("duplicate", "the answer repeats the reasoning of its own field", "change the reasoning parser")
            break
    if ended and all(thinking is Thinking.OPEN for _, (_, _, thinking) in ended):
        if any(one.reasoning for one, _ in ended):
            yield Fault("answer", "all text is reasoning, and there is no answer outside of it", _REASONING)
        else:
            seen = "thinking is opened and never closed, though the answers ended by themselves"
            yield Fault("unclosed", seen, "the chat template or the server's parser loses </think>")
    yield from _between(answers, spec)


def _between(answers: Sequence[Answered], spec: ModelSpec) -> Iterator[Fault]:
    """Yield faults that show between requests and completions, or between siblings."""
    pairs = [
        (one.completion, other.completion)
        for one, other in pairwise(answers)
        if one.request.messages == other.request.messages and one.request.params.get("temperature", 1.0) > 0
    ]
    equal = [one for one, other in pairs if (one.content, one.reasoning) == (other.content, other.reasoning)]
    if len(pairs) > 1 and len(equal) == len(pairs) and min(one.completion_tokens for one in equal) >= _SIBLING_TOKENS:
        seen = "samples of one prompt with different seeds are the same, byte for byte, for two prompts"
        yield Fault("siblings", seen, "the provider ignores seed and temperature: take one sample, or another one")
    if any(one.request.params.get("logprobs") and one.completion.logprobs is None for one in answers):
        yield Fault(
            "logprobs",
            "the response has no log-probabilities, which the stage asks for",
            "the provider has none for it",
        )
    served = next((one.completion.served_model for one in answers if one.completion.served_model), "")
    if served and spec.names_served_model and not _same_model(served, spec.model):
        yield Fault("model", f"the server says that {served!r} answered, not {spec.model!r}", "check `model:`")


_REASONING = "check `reasoning:`, `extra:` and the server's reasoning parser"


def _same_model(served: str, asked: str) -> bool:
    """Return whether two names may be of one model; providers add owners, paths, dates and variants."""
    short = [name.lower().rstrip("/").rpartition("/")[2].partition(":")[0] for name in (served, asked)]
    return short[0].startswith(short[1]) or short[1].startswith(short[0])
