"""A readable diff of a pruned trace and its parent."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from tracefactory.pruning.base import PruneItem, PruneResult


def diff(item: PruneItem, result: PruneResult, context: int = 1) -> str:
    """Return the parent's steps with cuts marked `-` and additions marked `+`; long runs of kept steps are folded.

    Steps have their numbers in the parent.

    Args:
        item: the parent in steps.
        result: the pruned result.
        context: the number of kept steps shown before and after a cut.
    """
    kept = set(result.kept)
    cut = [step for step in item.steps if step.index not in kept]
    lost = sum(step.end - step.start for step in cut)
    lines = [
        f"{item.trace.id}: {len(kept)} of {len(item.steps)} steps kept, "
        f"{lost:,} of {len(item.trace.reasoning):,} characters cut" + (f" ({result.reason})" if result.reason else "")
    ]
    runs = [(stays, [step.index for step in run]) for stays, run in groupby(item.steps, lambda s: s.index in kept)]
    for number, (stays, run) in enumerate(runs):
        if stays:
            lines += _folded(item, run, context if number else 0, context if number < len(runs) - 1 else 0)
        else:
            kinds = Counter(item.steps[index].kind.value for index in run)
            lines.append(f"@@ cut {_range(run)}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
            lines += [line for index in run for line in _marked(item, index, "-")]
    if result.added:
        lines.append("@@ added")
        lines += [f"+ {line}" for line in result.added.strip().splitlines()]
    if result.answer_text != item.trace.answer_text:
        lines.append("@@ answer text")
        lines += [f"- {line}" for line in item.trace.answer_text.strip().splitlines()]
        lines += [f"+ {line}" for line in result.answer_text.strip().splitlines()]
    return "\n".join(lines) + "\n"


def _folded(item: PruneItem, run: list[int], head: int, tail: int) -> list[str]:
    """Return the lines of the first `head` and the last `tail` steps of a kept run, with a line for those between."""
    if len(run) <= head + tail + 1:
        head, tail = len(run), 0
    hidden = run[head : len(run) - tail]
    lines = [line for index in run[:head] for line in _marked(item, index, " ")]
    if hidden:
        lines.append(f"  ... {_range(hidden)} kept")
    return lines + [line for index in run[len(run) - tail :] for line in _marked(item, index, " ")]


def _range(run: list[int]) -> str:
    return f"step {run[0]}" if len(run) == 1 else f"steps {run[0]}-{run[-1]}"


def _marked(item: PruneItem, index: int, mark: str) -> list[str]:
    kind = item.steps[index].kind.value
    first, *rest = item.step(index).strip().splitlines() or [""]
    return [f"{mark} [{index} {kind}] {first}", *(f"{mark} {line}".rstrip() for line in rest)]
