"""after_answer and verification_steps: where the answer is stated, and what follows it."""

import re
from types import SimpleNamespace

import pytest

from tracefactory.core.rows import Outcome, Problem, Thinking, Verdict
from tracefactory.pruners.after_answer import AfterAnswer
from tracefactory.pruners.verification_steps import VerificationSteps
from tracefactory.pruning import PruneItem, Tools, reverify

SOLVED = (
    "We need 6 * 7.\n\nSix sevens are 42, since 5 * 7 = 35 and 35 + 7 = 42.\n\nSo the answer is 42.\n\n"
    "Let me double-check: 7 * 6 = 42.\n\nFor the halves: 3 * 7 = 21, and 21 + 21 = 42.\n\nYes, that matches.\n\n"
    "Therefore, the answer is 42."
)


async def after(lab: SimpleNamespace, *traces, **params):
    return await AfterAnswer(**params).prune([PruneItem.of(trace) for trace in traces], Tools(verify=lab.verify))


async def checks(lab: SimpleNamespace, *traces):
    return await VerificationSteps().prune([PruneItem.of(trace) for trace in traces], Tools(verify=lab.verify))


async def test_steps_after_the_answer_are_cut_and_the_answer_text_is_kept(lab: SimpleNamespace) -> None:
    (result,) = await after(lab, lab.trace(SOLVED, "The product is 42: the answer is 42."))
    assert result.reasoning.endswith("So the answer is 42.")
    assert result.answer_text == "The product is 42: the answer is 42."
    assert result.calls == 0


async def test_an_unclosed_trace_gets_an_ending_from_what_it_stated(lab: SimpleNamespace) -> None:
    looping = SOLVED + "\n\nWait, is it? 42 = 42 = 42" + " = 42" * 500
    (result,) = await after(lab, lab.trace(looping, "", thinking=Thinking.OPEN))
    assert result.answer_text == "The final answer is \\boxed{42}."
    assert result.closed
    assert len(result.reasoning) < 120


async def test_thinking_that_stops_at_the_answer_without_being_closed_is_closed(lab: SimpleNamespace) -> None:
    """A closed one with nothing after its answer is left alone; an open one would never be trained on."""
    text = "We need 6 * 7.\n\nSo the answer is 42."
    (closed,) = await after(lab, lab.trace(text))
    assert closed.reason == "nothing_after_answer"
    (opened,) = await after(lab, lab.trace(text, "", thinking=Thinking.OPEN))
    assert (opened.reason, opened.closed, opened.reasoning) == (None, True, text)
    assert opened.answer_text == "The final answer is \\boxed{42}."


async def test_a_chinese_trace_ends_in_chinese(lab: SimpleNamespace) -> None:
    text = "六乘以七等于四十二。\n\n所以答案是42。\n\n等等，让我再想想这道题目的条件是不是都用上了。\n\n重新考虑一下"
    (result,) = await after(lab, lab.trace(text, "", thinking=Thinking.OPEN))
    assert result.reasoning.endswith("所以答案是42。")
    assert result.answer_text == "最终答案是\\boxed{42}。"


async def test_a_wrong_ending_is_not_kept_after_the_right_answer(lab: SimpleNamespace) -> None:
    (result,) = await after(lab, lab.trace(SOLVED + "\n\nWait, no. It is 41.", "The answer is 41."))
    assert result.answer_text == "The final answer is \\boxed{42}."


@pytest.mark.parametrize(
    "early",
    [
        "Is the answer 42?",
        "Maybe the answer is 42.",
        "If the answer is 42, then 42 / 7 = 6.",
        "The answer is 41.",
        "There are 42 days in six weeks.",
        "答案可能是42。",
    ],
)
async def test_guesses_questions_wrong_answers_and_other_numbers_state_no_answer(
    lab: SimpleNamespace, early: str
) -> None:
    (result,) = await after(lab, lab.trace(f"{early}\n\nNow let us compute.\n\nThe answer is 42.\n\nDone with 1 day."))
    assert result.kept == (0, 1, 2)


async def test_a_result_counts_only_with_the_evidence_result(lab: SimpleNamespace) -> None:
    text = "Six sevens: 35 + 7.\n\nSo we get 35 + 7 = 42.\n\nNow 3 weeks too.\n\nThe answer is 42.\n\nBye now 1."
    explicit, result = await after(lab, lab.trace(text)), await after(lab, lab.trace(text), evidence="result")
    assert explicit[0].kept == (0, 1, 2, 3)
    assert result[0].kept == (0, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Compute 6 * 7.\n\nThe answer is 42.", "nothing_after_answer"),
        ("Compute 6 * 7.\n\nIt is 42 I think.", "answer_not_stated"),
        ("", "no_reasoning"),
    ],
)
async def test_the_parent_is_kept_with_a_reason(lab: SimpleNamespace, text: str, reason: str) -> None:
    (result,) = await after(lab, lab.trace(text))
    assert (result.reason, result.reasoning) == (reason, text)


async def test_all_statements_of_a_batch_are_verified_at_once_and_repeats_once(lab: SimpleNamespace) -> None:
    loop = "So the answer is 41.\n\n" * 50
    await after(lab, lab.trace(loop, name="a"), lab.trace(loop, name="b"), lab.trace(loop, name="c", gold="7"))
    assert lab.verify.batches == [2]


async def test_only_checks_after_the_answer_are_dropped(lab: SimpleNamespace) -> None:
    item = PruneItem.of(lab.trace(SOLVED))
    (result,) = await checks(lab, item.trace)
    cut = [item.step(index).strip() for index in range(len(item.steps)) if index not in result.kept]
    assert cut == [
        "Let me double-check: 7 * 6 = 42.",
        "For the halves: 3 * 7 = 21, and 21 + 21 = 42.",
        "Yes, that matches.",
    ]
    assert result.reasoning.endswith("Therefore, the answer is 42.")


async def test_checks_before_the_answer_are_kept(lab: SimpleNamespace) -> None:
    text = "6 * 7 = 42.\n\nLet me double-check: 7 * 6 = 42, which matches.\n\nSo the answer is 42."
    (result,) = await checks(lab, lab.trace(text))
    assert result.reason == "no_checks_after_answer"


@pytest.mark.parametrize(
    "rest",
    [
        "Let me verify: 6 + 7 = 13, which does not match.\n\nRight, it is a product.",
        "Let me verify: 6 * 7 = 36 + 6.\n\nWait, that's not right as written.",
        "Let me verify: 6 * 7 = 36 + 6.\n\nAlternatively, add sevens: 7 + 7 = 14.",
        "验算一下：6+7=13，不等于42。",
    ],
)
async def test_a_check_that_fails_or_leads_to_a_doubt_is_kept(lab: SimpleNamespace, rest: str) -> None:
    (result,) = await checks(lab, lab.trace(f"6 * 7 = 42.\n\nSo the answer is 42.\n\n{rest}"))
    assert result.reason == "no_checks_after_answer"


@pytest.mark.parametrize(
    ("doubt", "kept"),
    [
        ("Wait, did I take all 6 rows?\n\nThey are 6 rows of 7.", (0, 1, 5)),
        ("Hmm, but there may be 8 rows.\n\nThey are 6 rows of 7.", (0, 1, 5)),
        ("Wait, I found a mistake in the rows.\n\nThey are 6 rows of 7.", (0, 1, 2, 3, 4, 5)),
        ("Alternatively, add sevens.\n\n7 + 7 = 14 and so on.", (0, 1, 2, 3, 4, 5)),
    ],
)
async def test_a_check_whose_doubt_settles_on_the_same_answer_goes_with_the_doubt(
    lab: SimpleNamespace, doubt: str, kept: tuple[int, ...]
) -> None:
    text = f"6 * 7 = 42.\n\nSo the answer is 42.\n\nLet me verify: 42 / 7 = 6.\n\n{doubt}\n\nSo the answer is 42."
    (result,) = await checks(lab, lab.trace(text))
    assert result.kept == kept
    assert (result.reason is None) == (len(kept) == 3)
    (result,) = await checks(lab, lab.trace(text.removesuffix("So the answer is 42.") + "So the answer is 41."))
    assert result.reason == "no_checks_after_answer"


async def test_other_work_after_the_answer_is_not_a_check(lab: SimpleNamespace) -> None:
    text = "The answer is 42.\n\nAlternatively, count: 7, 14.\n\nLet me verify: 42 / 7 = 6.\n\nSo the answer is 42."
    (result,) = await checks(lab, lab.trace(text))
    assert result.kept == (0, 1, 3)


async def test_the_doubt_that_leads_up_to_a_check_goes_with_it(lab: SimpleNamespace) -> None:
    text = "So the answer is 42.\n\nWait, maybe I made a mistake.\n\nLet me check: 42 / 7 = 6.\n\nSo the answer is 42."
    (result,) = await checks(lab, lab.trace(text))
    assert result.kept == (0, 3)


async def test_a_trace_that_never_closed_keeps_its_checks(lab: SimpleNamespace) -> None:
    (result,) = await checks(lab, lab.trace(SOLVED, "", thinking=Thinking.OPEN))
    assert result.reason == "thinking_not_closed"


async def calculating(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    """Verify as a real verifier does, which calculates what it is shown."""
    verdicts = []
    for problem, text in pairs:
        stated = re.findall(r"\\boxed\{([^}]*)\}|answer is[ :]*([\d+*/. -]*\d)", text)
        value = (stated[-1][0] or stated[-1][1]).strip(" $.") if stated else None
        number = re.fullmatch(r"(?:[\d+*/. -]+)(?= eggs|$)(?: eggs)?", value or "")
        outcome = Outcome.UNVERIFIABLE
        if number:
            right = eval(number.group().removesuffix(" eggs")) == float(problem.answer)
            outcome = Outcome.CORRECT if right else Outcome.INCORRECT
        verdicts.append(Verdict(outcome=outcome, extracted=value, method="test", verifier="test", version="1"))
    return verdicts


REST = "\n\nThat is 3 rows of 4, and then 6 more.\n\nSo the total is 18 eggs.\n\nNow to sell them in 2 days."


@pytest.mark.parametrize("pruner", [AfterAnswer, VerificationSteps])
@pytest.mark.parametrize(
    "early",
    [
        "So we have 3*4+6",
        "So the total is 3 * 4 + 6.",
        "So the total is 3 * 4 + 6 eggs.",
        "Thus the answer is 3*4+6.",
        "So each gets = 54/3 =",
        "Therefore x = 54/3",
        "So we get 18 + 0 for now.",
        "Hence x = 1 or x = 18.",
        "Thus the answer is 18 * 1, with one more step.",
    ],
)
async def test_an_expression_that_has_yet_to_be_calculated_states_no_answer(
    lab: SimpleNamespace, pruner: type, early: str
) -> None:
    text = f"{early}{REST}" if pruner is AfterAnswer else f"{early}\n\nLet me check: 3 * 4 = 12, which fits.{REST}"
    item = PruneItem.of(lab.trace(text, "The answer is 18.", gold="18"))
    (result,) = await pruner(evidence="result").prune([item], Tools(verify=calculating))
    assert result.reason == ("no_checks_after_answer" if pruner is VerificationSteps else None)
    if pruner is AfterAnswer:
        assert result.reasoning.endswith("So the total is 18 eggs.")


async def test_the_gold_answer_may_be_an_expression_itself(lab: SimpleNamespace) -> None:
    text = "Count them.\n\nSo the total is 3 * 4 + 6.\n\nNow 3 weeks too."
    item = PruneItem.of(lab.trace(text, "The answer is 3*4+6.", gold="18"))
    asked = item.trace.problem.model_copy(update={"answers": ("3*4+6",)})
    item = item.model_copy(update={"trace": item.trace.model_copy(update={"problem": asked})})
    (result,) = await AfterAnswer(evidence="result").prune([item], Tools(verify=calculating))
    assert result.kept == (0, 1)


async def test_the_last_relation_of_a_sentence_gives_its_result(lab: SimpleNamespace) -> None:
    text = "Count them.\n\nSo 12 is the number of rows, and 12 + 6 = 18.\n\nNow 3 weeks too."
    item = PruneItem.of(lab.trace(text, "The answer is 18.", gold="18"))
    (result,) = await AfterAnswer(evidence="result").prune([item], Tools(verify=calculating))
    assert result.kept == (0, 1)


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ("So 18 eggs can be sold.", 3),
        ("This is my final answer.", 3),
        ("So 18 eggs can be sold for 36 dollars.", 2),  # it calculates
        ("Let me check the 18 again.", 2),
        ("Wait, is it 18 of them?", 2),
        ("Now to sell them.", 2),
        ("They are 18. " + "Eggs are sold by the dozen. " * 8, 2),
    ],
)
async def test_a_step_that_only_repeats_a_result_stays_with_it(lab: SimpleNamespace, after: str, kept: int) -> None:
    text = f"Count 3 * 4 + 6 of them.\n\nSo the total is 3 * 4 + 6 = 18.\n\n{after}\n\nSell them.\n\nBye."
    item = PruneItem.of(lab.trace(text, "The answer is \\boxed{18}.", gold="18"))
    results = await AfterAnswer(evidence="result").prune([item], Tools(verify=calculating))
    assert results[0].kept == tuple(range(kept))
    assert (await reverify([item], results, calculating))[0].result.reason is None
    announced = lab.trace(text.replace("total is 3 * 4 + 6 = 18", "answer is 18"), "The answer is 18.", gold="18")
    (result,) = await AfterAnswer(evidence="result").prune([PruneItem.of(announced)], Tools(verify=calculating))
    assert result.kept == (0, 1)
