"""Compare the agreement of this package and of math-verify with labelled pairs.

Run as `python -m tracefactory.verification.agreement PAIRS...`. Each file has JSON lines with `gold`, `label` and one
of `prediction`, `answer` and `response`; rows without a label are skipped. A false positive is an incorrect answer that
was accepted, a false negative a correct answer that was not.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Frozen, Outcome
from tracefactory.maths.symbolic import library
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.single import make_task

_TEXT_FIELDS = ("response", "answer", "prediction")


class Pair(Frozen):
    """One labelled pair; with `response`, `text` is a whole completion."""

    gold: str
    text: str
    response: bool
    label: bool
    kind: str = "auto"


class Score(Frozen):
    """The result of one verifier on one corpus."""

    pairs: int
    false_positives: int
    false_negatives: int

    @property
    def agreement(self) -> float:
        """The share of pairs on which the verifier agrees with the label."""
        return 1 - (self.false_positives + self.false_negatives) / self.pairs


def read_pairs(path: Path) -> list[Pair]:
    """Read the labelled rows of a file.

    Raises:
        UserError: when the file is missing or a row is invalid.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        field = next((name for name in _TEXT_FIELDS if row.get(name) is not None), None)
        if field is None or "gold" not in row:
            raise UserError(f"{path}:{number}: a pair needs gold and one of {', '.join(_TEXT_FIELDS)}")
        if row.get("label") is not None and row["gold"] is not None:
            text, label = row[field], bool(row["label"])
            pairs.append(Pair(gold=str(row["gold"]), text=text, response=field == "response", label=label))
    return pairs


def verify_pairs(pairs: Sequence[Pair]) -> list[bool]:
    """Return for each pair whether this package's verifier accepts the answer."""
    tasks = [
        make_task(
            gold=pair.gold,
            answer=None if pair.response else pair.text,
            response=pair.text if pair.response else None,
            kind=pair.kind,
            question="",
            spec={},
            finish_reason="stop",
            policy={},
        )
        for pair in pairs
    ]
    with VerifierPool(workers=1) as pool:
        verdicts = asyncio.run(pool.verify(tasks))
    return [verdict.outcome is Outcome.CORRECT for verdict in verdicts]


def math_verify_pairs(pairs: Sequence[Pair]) -> list[bool]:
    """Return for each pair whether math-verify accepts the answer, with its defaults."""
    return [math_verify_accepts(pair.gold, pair.text) for pair in pairs]


def math_verify_accepts(gold: str, text: str) -> bool:
    """Return whether math-verify accepts one answer; the gold gets math delimiters, as its documentation requires."""
    wrapped = gold if any(sign in gold for sign in ("$", "\\boxed", "\\(", "\\[")) else f"${gold}$"
    return bool(library().verify(library().parse(wrapped), library().parse(text)))


def score(pairs: Sequence[Pair], decide: Callable[[Sequence[Pair]], list[bool]]) -> Score:
    """Count the disagreements of `decide` with the labels."""
    decided = list(zip(pairs, decide(pairs), strict=True))
    return Score(
        pairs=len(pairs),
        false_positives=sum(right and not pair.label for pair, right in decided),
        false_negatives=sum(pair.label and not right for pair, right in decided),
    )


def table(scores: Sequence[tuple[str, Score, Score]]) -> str:
    """Return the Markdown table of (corpus, score of this package, score of math-verify)."""
    lines = [
        "| corpus | pairs | agreement | false positives | false negatives | math-verify: agreement | FP | FN |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own, other in scores:
        cells: list[Any] = [name, own.pairs]
        for one in (own, other):
            cells += [f"{one.agreement:.1%}", one.false_positives, one.false_negatives]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the table for the given files."""
    if not arguments:
        raise SystemExit("usage: python -m tracefactory.verification.agreement PAIRS...")
    scores = []
    for argument in arguments:
        pairs = read_pairs(Path(argument))
        if pairs:
            scores.append((Path(argument).name, score(pairs, verify_pairs), score(pairs, math_verify_pairs)))
    print(table(scores))


if __name__ == "__main__":
    main(sys.argv[1:])
