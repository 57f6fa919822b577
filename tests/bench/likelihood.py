"""How well `prune: answer_likelihood` tells needed steps from others, as the table in docs/pruning.md.

    python -m tests.bench.likelihood MODEL.gguf [--problems 10] [--labelled FILE --rows 30] [--over answer]

Worked GSM8K solutions get one irrelevant sentence as a further step, at a random place: it should be removed, and the
steps of the solution should not. With `--labelled`, the steps that are removed are compared with people's labels, in
the format of `mr-math_redundant_errors.json` of ReasonEval (arXiv 2404.05692), and so are the kinds of the steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.labelled_steps import TURNS, gone, item, labelled, told
from tracefactory.core.rows import Outcome, Problem, Verdict
from tracefactory.pruners.answer_likelihood import EMPTY, WHOLE, AnswerLikelihood
from tracefactory.pruning import PruneItem, Tools
from tracefactory.stages.measure.student import ScoredStudent
from tracefactory.stages.prune._scorer import StudentScorer
from tracefactory.store.scores import ScoreStore
from tracefactory.students import Checkpoint, open_student
from tracefactory.students.in_process import InProcess

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "problems" / "gsm8k_test.jsonl"
FIRST = 45  # rows before it were used to choose the default limits
FILLERS = (
    "Bananas are yellow and grow in bunches.",
    "The weather is nice on most days of the year.",
    "Mathematics is useful in everyday life.",
    "Many people like to go for a walk in the evening.",
    "Okay, let me think about this for a moment.",
    "This is a question about everyday things.",
)


def filled(count: int, seed: int = 1) -> Iterator[tuple[PruneItem, list[bool]]]:
    """Yield worked solutions with a filler among their steps, and which of the steps can be removed."""
    draw = random.Random(seed)
    rows = GSM8K.read_text("utf-8").splitlines()[FIRST : FIRST + count]
    for number, row in enumerate(map(json.loads, rows)):
        body, _, gold = re.sub(r"<<.*?>>", "", row["answer"]).partition("####")
        texts = [line.strip() for line in body.splitlines() if line.strip()]
        redundant = [False] * len(texts)
        at = draw.randrange(len(texts))
        texts.insert(at, draw.choice(FILLERS))
        redundant.insert(at, True)
        yield item(str(number), row["question"], gold.strip().replace(",", ""), texts), redundant


async def nothing(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    """Verify nothing: the pruner asks no verifier."""
    return [Verdict(outcome=Outcome.UNVERIFIABLE, method="none", verifier="none", version="1") for _ in pairs]


async def main() -> None:
    """Print the rows of the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model")
    asked.add_argument("--problems", type=int, default=10)
    asked.add_argument("--labelled", type=Path)
    asked.add_argument("--rows", type=int, default=30)
    asked.add_argument("--max-drop", type=float, default=AnswerLikelihood().max_drop)
    asked.add_argument("--max-drop-after", type=float, default=AnswerLikelihood().max_drop_after)
    asked.add_argument("--over", default="answer_and_after")
    given = asked.parse_args()
    pruner = AnswerLikelihood(max_drop=given.max_drop, max_drop_after=given.max_drop_after, over=given.over)
    student = InProcess(open_student(Checkpoint(model=given.model, max_batch_tokens=2000, chunk=256)))
    pairs = list(filled(given.problems) if given.labelled is None else labelled(given.labelled, given.rows))
    items, redundant = [one for one, _ in pairs], [label for _, labels in pairs for label in labels]
    with tempfile.TemporaryDirectory() as folder:
        scorer = StudentScorer(ScoredStudent(student, ScoreStore(Path(folder), "none")))
        begin = time.monotonic()
        results = await pruner.prune(items, Tools(verify=nothing, scorer=scorer))
    print(told(Path(given.model).stem, gone(items, results), redundant))
    if given.labelled is not None:
        kinds = [step.kind in TURNS for one in items for step in one.steps]
        print(told("kind of the step", kinds, redundant))
    whole, empty = (sum(one.measures.get(name, 0.0) for one in results) / len(results) for name in (WHOLE, EMPTY))
    calls, seconds = sum(one.calls for one in results), time.monotonic() - begin
    print(
        f"{len(items)} traces, {calls} scored sequences, {seconds:.0f} s; answer {whole:.2f}, control {empty:.2f} nats"
    )


if __name__ == "__main__":
    asyncio.run(main())
