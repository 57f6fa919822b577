"""The most that a `prune:` stage can ask of its models, known from the traces before anything is paid for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracefactory.core.model import prompt_bytes
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.stage import AtMost
from tracefactory.pruning import PruneItem
from tracefactory.stages.prune._params import asked_model, concluder, prompts_of
from tracefactory.text.steps.label import label_items


def bounds(params: Any, items: Sequence[PruneItem], pipeline: Pipeline) -> Mapping[str, AtMost]:
    """Return, by model, the most that pruning `items` asks.

    Every prompt is taken to show the whole reasoning, and without the model's tokenizer a prompt is bounded by its
    bytes: no tokenizer makes more tokens than bytes.
    """
    found: defaultdict[str, AtMost] = defaultdict(AtMost)
    for item in items:
        for model, asked in (*_typing(params, item, pipeline), *_pruning(params, item, pipeline)):
            found[model] += asked
    concludes = concluder(params)
    if concludes is None:
        return dict(found)
    per_trace = concludes.samples * (1 + ("shuffled" in concludes.controls))
    render = pipeline.prompts[concludes.prompt].render
    for item in items:
        size = prompt_bytes(render(question=item.trace.problem.question, reasoning=item.trace.reasoning))
        found[concludes.model] += AtMost(per_trace, per_trace * size, per_trace * concludes.max_tokens)
    if "empty" in concludes.controls:
        for question in {item.trace.problem_id: item.trace.problem.question for item in items}.values():
            size, count = prompt_bytes(render(question=question, reasoning="")), concludes.samples
            found[concludes.model] += AtMost(count, count * size, count * concludes.max_tokens)
    return dict(found)


def _typing(params: Any, item: PruneItem, pipeline: Pipeline) -> Iterator[tuple[str, AtMost]]:
    types, trace = params.types, item.trace
    if types is None:
        return
    prompt = pipeline.prompts[types.prompt]
    for shown in label_items(trace.id, trace.problem.question, trace.reasoning, item.steps):
        size = prompt_bytes(prompt.render(question=shown.question, reasoning=shown.numbered()))
        yield types.model, AtMost(1, size, types.max_tokens)


def _pruning(params: Any, item: PruneItem, pipeline: Pipeline) -> Iterator[tuple[str, AtMost]]:
    model, asks = asked_model(params), params.asks_at_most(item)
    if model is None:
        return
    trace = item.trace
    values = {
        "question": trace.problem.question,
        "reasoning": trace.reasoning,
        "answer_text": trace.answer_text,
        "words": len(trace.reasoning),
    }
    named = prompts_of(params)
    counted = [(asks.answers, named["prompt"], params.max_tokens)]
    if asks.continuations:
        counted.append((asks.continuations, params.continue_prompt, params.continue_max_tokens))
    for count, name, most in counted:
        yield model, AtMost(count, count * prompt_bytes(pipeline.prompts[name].render(**values)), count * most)
