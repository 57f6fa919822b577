"""Pruning against people's labels of redundant steps, as told in docs/pruning.md.

    python -m tests.bench.labelled_steps mr-math_redundant_errors.json

The file is `dataset/mr-math_redundant_errors.json` of ReasonEval (github.com/GAIR-NLP/ReasonEval, arXiv 2404.05692):
300 solutions from the test set of PRM800K. A label of 0 says that a step is correct and does not help to solve the
problem. Printed are the kinds of the steps as a sign of redundancy, and what `after_answer` cuts.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tracefactory.core.rows import Problem, Thinking, Trace, Verdict
from tracefactory.pruners.after_answer import AfterAnswer
from tracefactory.pruning import PruneItem, PruneResult, Tools, reverify
from tracefactory.pruning.answers import golds_of
from tracefactory.pruning.evaluated import unevaluated_end
from tracefactory.text.steps import Step, StepKind
from tracefactory.text.steps.classify import classify_all
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool

TURNS = (StepKind.VERIFICATION, StepKind.REFLECTION, StepKind.RESTART, StepKind.FILLER)
"""The kinds of steps that one might take for redundant."""


def labelled(file: Path, count: int | None = None) -> Iterator[tuple[PruneItem, list[bool]]]:
    """Yield solutions with the labels of their steps, without the step that repeats the answer as a heading.

    Every n-th solution is taken where not all are asked for: the first half of the file has no redundant steps.
    """
    rows = file.read_text("utf-8").splitlines()
    for row in map(json.loads, rows[:: len(rows) // (count or len(rows))][:count]):
        texts = [step[0] for step in row["model_output_step_format"]]
        kept = [index for index, text in enumerate(texts) if "# Answer" not in text]
        made = item(str(row["id"]), row["question"], row["ground_truth_answer"], [texts[index] for index in kept])
        yield made, [row["rating"][index] == 0 for index in kept]


def item(name: str, question: str, gold: str, texts: Sequence[str]) -> PruneItem:
    """Return a trace with exactly these steps."""
    problem = Problem.make(question=question, answer=gold, verifier="math")
    whole = [f"{text}\n\n" for text in texts[:-1]] + [texts[-1]]
    steps, at = [], 0
    for index, (text, (kind, rule)) in enumerate(zip(whole, classify_all(texts), strict=True)):
        steps.append(Step(index=index, start=at, end=at + len(text), kind=kind, rule=rule))
        at += len(text)
    answer = f"The answer is \\boxed{{{gold}}}."
    made = Trace(id=name, problem=problem, reasoning="".join(whole), answer_text=answer, thinking=Thinking.CLOSED)
    return PruneItem(trace=made, steps=tuple(steps))


def told(name: str, removed: Sequence[bool], redundant: Sequence[bool]) -> str:
    """Return one row of a table: how many redundant steps and how many others were removed, and the precision."""
    hits = sum(gone and right for gone, right in zip(removed, redundant, strict=True))
    wrong, others = sum(removed) - hits, len(redundant) - sum(redundant)
    precision = f"{hits / sum(removed):.2f}" if any(removed) else "-"
    shares = f"{hits} of {sum(redundant)} ({hits / sum(redundant):.0%}) | {wrong} of {others} ({wrong / others:.0%})"
    return f"| {name} | {shares} | {precision} |"


def gone(items: Sequence[PruneItem], results: Sequence[PruneResult]) -> list[bool]:
    """Return of every step whether it was removed."""
    pairs = zip(items, results, strict=True)
    return [step.index not in result.kept for one, result in pairs for step in one.steps]


async def main(file: Path) -> None:
    """Print the tables."""
    pairs = list(labelled(file))
    items, redundant = [one for one, _ in pairs], [label for _, labels in pairs for label in labels]
    print(f"{len(items)} solutions, {len(redundant)} steps, {sum(redundant) / len(redundant):.3f} of them redundant")
    for kinds in (TURNS, *((kind,) for kind in StepKind)):
        print(told(", ".join(kinds), [step.kind in kinds for one in items for step in one.steps], redundant))
    with VerifierPool(workers=2) as pool:

        async def verify(asked: list[tuple[Problem, str]]) -> list[Verdict]:
            return await pool.verify([VerifyTask(problem=problem, answer_text=text) for problem, text in asked])

        for evidence in ("explicit", "result"):
            results = await AfterAnswer(evidence=evidence).prune(items, Tools(verify=verify))
            checked = [one.result for one in await reverify(items, results, verify)]
            cut = [(one, result) for one, result in zip(items, checked, strict=True) if result.reason is None]
            early = [unevaluated_end(result.reasoning, golds_of(one.trace.problem)) for one, result in cut]
            print(f"after_answer, {evidence}: {len(cut)} cuts, {sum(map(bool, early))} end before a result")
            if cut:
                print(told(f"after_answer, {evidence}", gone(items, checked), redundant))
            for one, result in cut if "-v" in sys.argv else ():
                rest = one.trace.reasoning[len(result.reasoning) :]
                print(f"{one.trace.id}: {result.reasoning[-80:]!r} CUT {rest[:120]!r}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
