"""Real long traces with gold: every pruner holds its promises on them."""

import json
import re
from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracefactory.core.rows import Thinking, Trace
from tracefactory.pruners.after_answer import AfterAnswer
from tracefactory.pruners.binary_cut import BinaryCut
from tracefactory.pruners.verification_steps import VerificationSteps
from tracefactory.pruning import ConcludeItem, PruneItem, Tools, masked, reverify
from tracefactory.text.steps import StepKind

FILE = Path(__file__).parents[3].parent / "shared" / "data" / "traces" / "aime25_long_cot.jsonl"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="needs the shared traces")


@pytest.fixture(scope="module")
def items(make_trace: Callable[..., Trace]) -> list[PruneItem]:
    found = []
    for number, line in enumerate(FILE.read_text().splitlines()):
        row = json.loads(line)
        reasoning, closed, answer = row["response"].removeprefix("<Begin_of_Draft>").partition("<End_of_Draft>")
        thinking = Thinking.CLOSED if closed else Thinking.OPEN
        given = {"gold": str(row["gold"]), "thinking": thinking, "question": row["problem"]}
        found.append(PruneItem.of(make_trace(reasoning, answer, name=str(number), **given)))
    return found


@pytest.mark.parametrize("pruner", [AfterAnswer(), AfterAnswer(evidence="result"), VerificationSteps()])
async def test_rule_based_pruners_shorten_without_touching_what_leads_to_the_answer(
    lab: SimpleNamespace, items: list[PruneItem], pruner: AfterAnswer | VerificationSteps
) -> None:
    results = [one.result for one in await reverify(items, await pruner.prune(items, Tools(lab.verify)), lab.verify)]
    cut = [(item, result) for item, result in zip(items, results, strict=True) if result.reason is None]
    assert len(cut) >= 2
    for item, result in cut:
        assert result.reasoning == item.join(result.kept).rstrip()
        assert len(result.kept) <= len(item.steps)
        assert lab.judge(item.trace.problem, result.answer_text).extracted == item.trace.problem.answer
        form = masked(item, result)
        assert sum(end - start for start, end in form.spans) == len(item.trace.reasoning) - len(item.join(result.kept))
    for item, result in zip(items, results, strict=True):
        if result.reason is not None:
            assert result.reasoning == item.trace.reasoning


async def test_a_scripted_student_finds_prefixes_of_real_traces_within_the_bound(
    lab: SimpleNamespace, items: list[PruneItem]
) -> None:
    """The student here gives the gold once the reasoning holds it as a number of its own."""

    def reads(item: ConcludeItem) -> str:
        gold = gold_of[item.id]
        return f"The answer is {gold if gold in re.findall(r'[0-9]+', item.reasoning) else 'unknown'}."

    gold_of = {item.trace.id: item.trace.problem.answer for item in items}
    student = lab.Student(reads)
    results = await BinaryCut().prune(items, Tools(lab.verify, student))
    found = [result for result in results if result.reason is None]
    assert len(found) >= 10
    for item, result in zip(items, results, strict=True):
        assert result.calls <= ceil(log2(len(item.steps))) + 1
        if result.reason is None:
            assert gold_of[result.id] in result.reasoning
    assert len(student.batches) <= ceil(log2(max(len(item.steps) for item in items))) + 1


def test_long_traces_have_steps_of_several_kinds(items: list[PruneItem]) -> None:
    for item in items:
        if len(item.trace.reasoning) > 20_000 and item.trace.thinking is Thinking.CLOSED:
            assert len({step.kind for step in item.steps}) >= 3
            assert any(step.kind is StepKind.DERIVATION for step in item.steps)
