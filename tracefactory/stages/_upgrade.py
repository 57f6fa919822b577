"""What other versions of the verifiers change about the verdicts that a stage has stored.

Stored rows are verified again with the quick parts of the verifiers alone: in this process, without computer algebra,
and without running code. That is enough to list changes before a run; the run verifies all rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tracefactory.core.marks import split_version
from tracefactory.core.rows import Outcome, Trace, Verdict
from tracefactory.core.spans import Span
from tracefactory.core.stage import RowReader
from tracefactory.core.upgrade import ChangedVerdicts, ComparedVerdicts, Upgrade
from tracefactory.verification.base import VERIFIERS

COMPARED_ROWS = 2000
"""The maximum number of stored rows that are verified again."""
COMPARED_SECONDS = 5.0
"""Time after which no more rows are verified again."""
_BATCH_PROBLEMS = 64
_TEXT = 60  # characters of an example
_DECIDED = (Outcome.CORRECT, Outcome.INCORRECT)

Again = Callable[[Sequence[Trace]], Sequence[Verdict | None]]
"""Returns the verdicts of all samples of a problem, in order, None for each that needs a process."""


def upgrade_of_verdicts(
    before: Mapping[str, Any], versions: Mapping[str, str], rows: RowReader | None, again: Again
) -> Upgrade:
    """Return what other versions of verifiers change about the stored verdicts of a stage.

    Args:
        before: the identity of the stage as it was stored.
        versions: the versions of the verifiers now, by name.
        rows: the stored rows, None for words alone.
        again: verifies the samples of a problem.
    """
    words = _words(before["uses"].get("versions", {}), versions)
    return Upgrade(words=tuple(words), verdicts=None if rows is None else compared(rows, again))


def compared(rows: RowReader, again: Again) -> ComparedVerdicts:
    """Compare stored verdicts with those that verifiers give now.

    Args:
        rows: the stored rows.
        again: verifies the samples of a problem.
    """
    owners = rows.frame(Span.all(), ())["problem_id"]
    seen = needs_process = 0
    changed: dict[tuple[Outcome, Outcome, str], list[tuple[Trace, Verdict]]] = {}
    for samples in _samples(rows, list(owners.head(COMPARED_ROWS))):
        for trace, now in zip(samples, again(samples), strict=True):
            seen += trace.verdict is not None
            if trace.verdict is None:
                continue
            needs_process += now is None
            if now is not None and now.outcome is not trace.verdict.outcome:
                reason = "" if now.outcome in _DECIDED else now.method
                changed.setdefault((trace.verdict.outcome, now.outcome, reason), []).append((trace, now))
    by_count = sorted(changed.items(), key=lambda one: (-len(one[1]), one[0]))
    return ComparedVerdicts(
        stored=owners.len(),
        compared=seen - needs_process,
        needs_process=needs_process,
        changed=tuple(_changed(*one) for one in by_count),
    )


def _samples(rows: RowReader, owners: Sequence[str]) -> Iterator[Sequence[Trace]]:
    """Yield the samples of the problems of the first rows, a problem at a time, until the limits are reached.

    Ids of problems are hashes, so the first rows are as good as any others.
    """
    if not owners:
        return
    end, seen = time.monotonic() + COMPARED_SECONDS, 0
    for batch in rows.batches(Span(owners[0], owners[-1]), _BATCH_PROBLEMS):
        for samples in batch.groups():
            seen += len(samples)
            # The samples of one problem vote together, so it is taken whole or not at all, unless there is no other.
            if (seen > COMPARED_ROWS and seen > len(samples)) or time.monotonic() > end:
                return
            yield samples


def _changed(what: tuple[Outcome, Outcome, str], rows: Sequence[tuple[Trace, Verdict]]) -> ChangedVerdicts:
    (before, after, reason), (trace, now) = what, rows[0]
    return ChangedVerdicts(
        before=before, after=after, reason=reason, count=len(rows), row=trace.id, text=_read_text(trace, now)
    )


def _read_text(trace: Trace, now: Verdict) -> str:
    """Return the line of the answer text that states the answer, or its last line; of a long line the end."""
    text = trace.answer_text
    stated = [one.span_end for one in (now, trace.verdict) if one is not None and one.span_end]
    before = text[: stated[0]].rstrip() if stated else text.rstrip()
    line = before[before.rfind("\n") + 1 :]
    rest = text[len(before) :].split("\n", 1)[0].rstrip()
    line = line + rest if len(line) + len(rest) <= _TEXT else line
    return line.strip() if len(line) <= _TEXT else "..." + line[3 - _TEXT :]


def _words(before: Mapping[str, str], versions: Mapping[str, str]) -> Iterator[str]:
    """Yield what each version after `before` has changed; verifiers that changed alike are named together."""
    by_text: dict[str, list[str]] = {}
    for name, version in versions.items():
        if name in before and before[name] != version:
            changes = VERIFIERS.get(name).changes
            for one in _between(split_version(before[name])[0], split_version(version)[0], changes):
                by_text.setdefault(changes[one], []).append(f"{name} {one}")
    for text, names in by_text.items():
        yield f"{', '.join(names)}: {text}"


def _between(before: str, after: str, known: Mapping[str, str]) -> list[str]:
    """Return the known versions after one version, up to another; versions that are no numbers have no order."""
    if before.isdecimal() and after.isdecimal():
        return sorted((one for one in known if one.isdecimal() and int(before) < int(one) <= int(after)), key=int)
    return [after] if after in known and before != after else []
