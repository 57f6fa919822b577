"""The check that a pruned reasoning leads to the answer: it fails on nonsense, and says when it proves nothing."""

from types import SimpleNamespace

import pytest

from tracefactory.pruning import ConcludeItem, Conclusion, PruneItem, reverify
from tracefactory.pruning.base import keep
from tracefactory.pruning.conclusion import Check, shuffled, without_answer

TEXT = "Take 6 rows of 7.\n\nThen 5 * 7 = 35 eggs.\n\nAnd 35 + 7 = 42 eggs.\n\nSo the answer is 42."


def reads(item: ConcludeItem) -> str:
    """Conclude as a student that adds up what it is shown, and knows nothing else."""
    return f"It is \\boxed{{{42 if '35 + 7' in item.reasoning else 'unknown'}}}."


async def check(lab: SimpleNamespace, reasoning: str, student, **given):
    item = PruneItem.of(lab.trace(TEXT))
    result = keep(item, (), "The answer is 42.", added=reasoning)
    (checked,) = await reverify([item], [result], lab.verify, Check(**given), student)
    return checked


async def test_a_student_that_needs_the_reasoning_proves_it(lab: SimpleNamespace) -> None:
    student = lab.Student(reads)
    checked = await check(lab, "5 * 7 = 35. 35 + 7 = 42. So the answer is 42.", student)
    assert checked.result.reason is None
    assert (checked.evidence.passed, checked.evidence.known) == (True, False)
    (batch,) = student.batches  # the control is in the same batch
    assert {item.reasoning for item in batch} == {"5 * 7 = 35. 35 + 7 = 42.", ""}
    assert len(batch) == 8


@pytest.mark.parametrize(
    ("reasoning", "reason"),
    [
        ("Bananas are yellow, so the answer is 42 bananas.", "nothing_but_the_answer"),
        ("Bananas are yellow. They grow in bunches. The answer is \\boxed{42}.", "not_concluded"),
        ("The answer is 42. It must be 42, because the answer is 42.", "nothing_but_the_answer"),
        ("Lorem ipsum dolor sit amet.", "not_concluded"),
    ],
)
async def test_nonsense_that_states_the_answer_is_refused(lab: SimpleNamespace, reasoning: str, reason: str) -> None:
    """A student reads an answer off any text that states it, so that these pass where the statement is shown."""

    def believes(item: ConcludeItem) -> str:
        return f"It is \\boxed{{{42 if '42' in item.reasoning or '35 + 7' in item.reasoning else 'unknown'}}}."

    checked = await check(lab, reasoning, lab.Student(believes))
    assert checked.result.reason == reason
    assert checked.result.reasoning == TEXT
    assert checked.verdict is None


async def test_a_student_that_knows_the_answer_proves_nothing(lab: SimpleNamespace) -> None:
    checked = await check(lab, "Bananas are yellow. They grow in bunches.", lab.Student(lambda item: "\\boxed{42}"))
    assert checked.result.reason is None
    assert checked.evidence.known
    assert checked.evidence.controls["empty"].correct == 4


async def test_without_a_control_it_is_not_known_whether_the_check_proves_anything(lab: SimpleNamespace) -> None:
    student = lab.Student(reads)
    checked = await check(lab, "35 + 7 = 42.", student, controls=())
    assert not checked.evidence.known
    assert {item.reasoning for batch in student.batches for item in batch} == {"35 + 7 = 42."}


@pytest.mark.parametrize(("right", "passes"), [(0, False), (1, False), (2, True), (4, True)])
async def test_as_many_samples_as_asked_must_be_right(lab: SimpleNamespace, right: int, passes: bool) -> None:
    student = lab.Student(lambda item: "\\boxed{42}" if item.reasoning and item.sample < right else "\\boxed{41}")
    checked = await check(lab, "35 + 7 = 42.", student, samples=4, valid=2)
    assert (checked.result.reason is None) == passes
    assert checked.evidence.votes.correct == right


async def test_truncated_answers_do_not_count(lab: SimpleNamespace) -> None:
    student = lab.Student(lambda item: Conclusion(text="It is \\boxed{42}.", closed=False))
    assert (await check(lab, "35 + 7 = 42.", student)).result.reason == "not_concluded"


@pytest.mark.parametrize(
    ("error", "reason"), [("context_length", "too_long_to_conclude"), ("refused", "student_error")]
)
async def test_a_student_without_an_answer_leaves_the_parent(lab: SimpleNamespace, error: str, reason: str) -> None:
    student = lab.Student(lambda item: Conclusion(error=error))
    assert (await check(lab, "35 + 7 = 42.", student)).result.reason == reason


async def test_the_control_without_reasoning_is_asked_once_per_problem(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.trace(TEXT, name=name)) for name in "ab"]
    results = [keep(item, (0, 1, 2), "The answer is 42.") for item in items]
    student = lab.Student(reads)
    checked = await reverify(items, results, lab.verify, Check(controls=("empty", "shuffled")), student)
    empty = [item for item in student.batches[0] if not item.reasoning]
    assert {item.id for item in empty} == {items[0].trace.problem_id}
    assert len(empty) == 4
    assert [one.evidence.controls.keys() for one in checked] == [{"empty", "shuffled"}] * 2


async def test_parents_are_not_checked(lab: SimpleNamespace) -> None:
    item = PruneItem.of(lab.trace(TEXT))
    student = lab.Student(reads)
    (checked,) = await reverify([item], [keep(item, (), "The answer is 42.")], lab.verify, Check(), student)
    assert checked.result.reason == "empty_reasoning"
    assert (checked.evidence, student.batches) == (None, [])


def test_statements_of_the_answer_are_withheld_and_calculations_are_not() -> None:
    assert without_answer("5 * 7 = 35. 35 + 7 = 42. So the answer is 42.") == "5 * 7 = 35. 35 + 7 = 42."
    assert without_answer("Thus \\boxed{42}.") == ""
    assert without_answer("所以答案是42。") == ""
    assert without_answer("") == ""
    assert without_answer("Is the answer 42? Let me see: 6 * 7 = 42.").endswith("6 * 7 = 42.")


def test_a_shuffle_keeps_every_sentence_and_depends_on_the_text_alone() -> None:
    text = " ".join(f"Sentence number {number} is here." for number in range(12))
    mixed = shuffled(text, "t")
    assert mixed == shuffled(text, "t") != text
    assert sorted(mixed.split("\n")) == sorted(one.strip() + "." for one in text.split(".") if one)
