"""Compare the verdicts of this package and of math-verify with labelled pairs.

Run as `python -m tracefactory.verification.agreement PAIRS...`; `make agreement` without PAIRS writes the table of
docs/verdicts.md. Each file has JSON lines with `gold`, `label` and either a whole completion (`text` or `response`) or
the answer alone (`answer` or `prediction`); `verifier`, `finish` and `question` are optional. A label is true or
false, or `correct`, `incorrect` or `no_answer`; rows without one are skipped.

A verdict agrees with the label when a right answer is accepted, a wrong one is not, and a text without an answer is
judged neither way. math-verify gets each pair in three forms: the text as given; the text with the answer that this
package found in it between `$` signs, for an answer alone the whole of it; and only that answer, in a box.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.reference import MathVerify, wrapped
from tracefactory.verification.single import make_task

Label = Literal["correct", "incorrect", "no_answer"]
FORMS = ("as given", "wrapped", "extracted")
_COMPLETION, _ANSWER = ("text", "response"), ("answer", "prediction")
_LABELS: dict[object, Label] = {
    True: "correct",
    False: "incorrect",
    "correct": "correct",
    "incorrect": "incorrect",
    "no_answer": "no_answer",
}
_MATHS = ("auto", "math", "numeric")
_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "tracefactory" / "docs" / "verdicts.md"
_BEGIN, _END = "<!-- agreement -->", "<!-- /agreement -->"


class Pair(Frozen):
    """One labelled pair; `text` is a whole completion, or with `bare` the answer alone."""

    gold: str
    text: str
    bare: bool
    label: Label
    verifier: str = "auto"
    finish: str = "stop"
    question: str = ""

    @property
    def task(self) -> VerifyTask:
        """The task for this package's verifier."""
        answer, response = (self.text, None) if self.bare else (None, self.text)
        return make_task(self.gold, answer, response, self.verifier, self.question, {}, self.finish, {})


class Score(Frozen):
    """How often the verdicts on a corpus agree with its labels."""

    pairs: int = 0
    agreed: int = 0
    false_positives: int = 0
    """Accepted, although there is no answer or a wrong one."""
    false_negatives: int = 0
    """Right answers that were not accepted."""
    no_answer: int = 0
    """Stated answers on which there is no verdict; the right ones are false negatives, too."""
    timeouts: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(**{name: getattr(self, name) + getattr(other, name) for name in Score.model_fields})

    @property
    def agreement(self) -> float:
        """The share of pairs on which the verdict agrees with the label."""
        return self.agreed / self.pairs


class Row(Frozen):
    """The scores of one corpus: this package's, and math-verify's for each of `FORMS` (empty without maths)."""

    name: str
    own: Score
    others: tuple[Score, ...]


def read_pairs(path: Path) -> list[Pair]:
    """Read the labelled rows of a file.

    Raises:
        UserError: when the file is missing or a row is invalid.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        field = next((name for name in (*_COMPLETION, *_ANSWER) if row.get(name) is not None), None)
        if field is None or "gold" not in row:
            raise UserError(f"{path}:{number}: a pair needs gold and one of {', '.join((*_COMPLETION, *_ANSWER))}")
        if row.get("label") is None or row["gold"] is None:
            continue
        if row["label"] not in _LABELS:
            raise UserError(f"{path}:{number}: a label is true, false, correct, incorrect or no_answer")
        more = {name: row[name] for name in ("verifier", "finish", "question") if name in row}
        text, label = str(row[field]), _LABELS[row["label"]]
        pairs.append(Pair(gold=str(row["gold"]), text=text, bare=field in _ANSWER, label=label, **more))
    return pairs


def verify_pairs(pairs: Sequence[Pair], workers: int = 1) -> list[Verdict]:
    """Return this package's verdicts."""
    with VerifierPool(workers=workers) as pool:
        return asyncio.run(pool.verify([pair.task for pair in pairs]))


def agrees(label: Label, outcome: Outcome) -> bool:
    """Return whether a verdict agrees with a label."""
    if label == "no_answer":
        return outcome is Outcome.UNVERIFIABLE
    return (outcome is Outcome.CORRECT) == (label == "correct")


def score(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> Score:
    """Count the agreements and disagreements of verdicts with the labels."""
    decided = [(pair.label, outcome) for pair, outcome in zip(pairs, outcomes, strict=True)]
    verdicts = (Outcome.CORRECT, Outcome.INCORRECT)
    return Score(
        pairs=len(decided),
        agreed=sum(agrees(label, outcome) for label, outcome in decided),
        false_positives=sum(outcome is Outcome.CORRECT and label != "correct" for label, outcome in decided),
        false_negatives=sum(outcome is not Outcome.CORRECT and label == "correct" for label, outcome in decided),
        no_answer=sum(outcome not in verdicts and label != "no_answer" for label, outcome in decided),
        timeouts=sum(outcome is Outcome.VERIFIER_ERROR for _, outcome in decided),
    )


def forms(pair: Pair, verdict: Verdict) -> tuple[str, str, str]:
    """Return the text of a pair as given, with its answer between `$` signs, and its answer alone in a box."""
    extracted = "" if verdict.extracted is None else rf"\boxed{{{verdict.extracted}}}"
    if pair.bare:
        return pair.text, wrapped(pair.text), extracted
    text, start, end = pair.task.answer_text, verdict.span_start, verdict.span_end
    if start is None or end is None or not text[start:end].strip():
        return pair.text, pair.text, extracted
    between = text[start:end] if text[:start].endswith(("$", "{", "\\(", "\\[")) else wrapped(text[start:end])
    return pair.text, text[:start] + between + text[end:], extracted


def compare(name: str, pairs: Sequence[Pair], other: MathVerify) -> Row:
    """Return the scores of one corpus; math-verify gets the pairs that need no other kind of verifier."""
    verdicts = verify_pairs(pairs)
    own = score(pairs, [verdict.outcome for verdict in verdicts])
    maths = [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if pair.verifier in _MATHS]
    found = [[other.judge(pair.gold, text) for text in forms(pair, verdict)] for pair, verdict in maths]
    given = [pair for pair, _ in maths]
    return Row(name=name, own=own, others=tuple(score(given, column) for column in zip(*found, strict=True)))


def total(name: str, rows: Sequence[Row]) -> Row:
    """Return the sum of several corpora; math-verify's is over those that it was given."""
    columns = zip(*(row.others for row in rows if row.others), strict=True)
    own = sum((row.own for row in rows), Score())
    return Row(name=name, own=own, others=tuple(sum(column, Score()) for column in columns))


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of the scores."""
    lines = [
        "| corpus | pairs | agreement | false positives | false negatives | no answer | "
        + " | ".join(f"math-verify {form}" for form in FORMS)
        + " |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        own = row.own
        cells: list[Any] = [row.name, own.pairs, f"{own.agreement:.1%}"]
        cells += [own.false_positives, own.false_negatives, own.no_answer]
        cells += [_cell(own, one) for one in row.others] or ["-"] * len(FORMS)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _cell(own: Score, one: Score) -> str:
    pairs = "" if one.pairs == own.pairs else f" of {one.pairs}"
    return f"{one.agreement:.1%}{pairs} ({one.false_positives}, {one.false_negatives}, {one.no_answer})"


def timeouts(rows: Sequence[Row]) -> str:
    """Return the sentence about time-outs."""
    theirs = [sum(row.others[index].timeouts for row in rows if row.others) for index in range(len(FORMS))]
    return (
        f"Time-outs, which are no verdict: {sum(row.own.timeouts for row in rows)} of ours; of math-verify "
        + ", ".join(f"{count} {form}" for count, form in zip(theirs, FORMS, strict=True))
        + "."
    )


def scored(paths: Sequence[Path], other: MathVerify) -> list[Row]:
    """Return the scores of each file that has labelled pairs."""
    corpora = [(path.stem, read_pairs(path)) for path in paths]
    return [compare(name, pairs, other) for name, pairs in corpora if pairs]


def write_docs(other: MathVerify) -> str:
    """Write the table of docs/verdicts.md: pairs beside the checkout if they are there, and tests/corpus by kind."""
    beside = _ROOT.parent / "shared" / "data" / "verifier" / "math_pairs.jsonl"
    given = scored([beside] if beside.is_file() else [], other)
    kinds = scored(sorted((_ROOT / "tests" / "corpus").glob("*.jsonl")), other)
    rows = [*given, total("tests/corpus", kinds), *kinds]
    text = f"{table(rows)}\n\n{timeouts([*given, *kinds])}"
    before, _, rest = _DOCS.read_text("utf-8").partition(_BEGIN)
    _DOCS.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}", "utf-8")
    return text


def main(arguments: Sequence[str]) -> None:
    """Print the table for the given files; without files, write that of the docs."""
    with MathVerify() as other:
        if not arguments:
            print(write_docs(other))
            return
        rows = scored([Path(argument) for argument in arguments], other)
        print(f"{table(rows)}\n\n{timeouts(rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
