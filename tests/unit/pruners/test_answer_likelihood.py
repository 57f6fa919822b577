"""answer_likelihood: steps are removed by what the student expects of the answer and of the steps after them."""

from collections.abc import Callable, Sequence
from math import isclose
from types import SimpleNamespace

import pytest

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Thinking
from tracefactory.pruners.answer_likelihood import EMPTY, KEPT, WHOLE, AnswerLikelihood
from tracefactory.pruning import PRUNERS, PruneItem, ScoreItem, TextScores, Tools, reverify

FILLER = "Bananas are yellow."
FIVE, REST, SUM = "Five sevens are 35.", "One more seven is left.", "So 35 + 7 = 42."
STEPS = [FIVE, FILLER, REST, SUM]
TEXT = "\n\n".join(STEPS)


class Scorer:
    """A student with one token for each paragraph, whose log-probabilities are computed by hand.

    `after(paragraph, above)` is that of a paragraph after a text, `answer(text)` that of the answer.
    """

    def __init__(
        self,
        answer: Callable[[str], float],
        after: Callable[[str, str], float] = lambda paragraph, above: -1.0,
        error: Callable[[ScoreItem], str | None] = lambda item: None,
    ) -> None:
        self.answer, self.after, self.error = answer, after, error
        self.batches: list[list[ScoreItem]] = []

    async def score(self, items: Sequence[ScoreItem]) -> list[TextScores]:
        self.batches.append(list(items))
        return [self._score(item) for item in items]

    def _score(self, item: ScoreItem) -> TextScores:
        if self.error(item):
            return TextScores(error=self.error(item))
        ends, logprobs, at = [], [], 0
        for paragraph in item.reasoning.split("\n\n") if item.reasoning else []:
            end = min(at + len(paragraph) + 2, len(item.reasoning))
            if end > item.since:
                ends.append(end)
                logprobs.append(self.after(paragraph, item.reasoning[:at]))
            at = end
        # The answer has two tokens, of which the mean counts.
        value = self.answer(item.reasoning)
        return TextScores(ends=tuple(ends), logprobs=tuple(logprobs), answer=(2 * value, 0.0))

    @property
    def asked(self) -> list[str]:
        return [item.reasoning for batch in self.batches for item in batch]


def sees(text: str) -> float:
    """Answer as a student does: from the step that has the answer, else worse, without any reasoning worst."""
    return -0.01 if "= 42" in text else -2.0 if "35" in text else -3.0


def expects(paragraph: str, above: str) -> float:
    """Expect "35 + 7" only where the 35 was calculated and the seven is left."""
    if paragraph == SUM:
        return -1.0 - 6.0 * (FIVE not in above) - 4.0 * (REST not in above)
    return -1.0


async def prune(lab: SimpleNamespace, scorer: Scorer, *texts: str, **params):
    items = [PruneItem.of(lab.trace(text, name=str(number))) for number, text in enumerate(texts)]
    return await AnswerLikelihood(**params).prune(items, Tools(lab.verify, scorer=scorer))


async def test_a_step_that_nothing_after_it_needs_is_removed(lab: SimpleNamespace) -> None:
    (result,) = await prune(lab, Scorer(sees, expects), TEXT)
    assert result.reasoning == TEXT.replace(f"{FILLER}\n\n", "")
    assert (result.reason, result.kept) == (None, (0, 2, 3))
    assert result.answer_text == "The answer is 42."
    assert result.measures == {WHOLE: -0.01, EMPTY: -3.0, KEPT: -0.01}


async def test_the_answer_alone_does_not_tell_a_needed_step(lab: SimpleNamespace) -> None:
    """The last step gives the answer away, so that only the rules hold back what defines a value."""
    (result,) = await prune(lab, Scorer(sees, expects), TEXT, over="answer")
    assert result.kept == (0, 3)


@pytest.mark.parametrize(("max_drop_after", "kept"), [(0.0, (0, 2, 3)), (3.9, (0, 2, 3)), (4.0, (0, 3))])
async def test_the_loss_of_the_steps_after_is_summed_over_their_tokens(
    lab: SimpleNamespace, max_drop_after: float, kept: tuple[int, ...]
) -> None:
    (result,) = await prune(lab, Scorer(sees, expects), TEXT, max_drop_after=max_drop_after)
    assert result.kept == kept


@pytest.mark.parametrize(("max_drop", "removed"), [(0.0, False), (1.9, False), (2.0, True)])
async def test_the_loss_of_the_answer_is_a_mean_over_its_tokens(
    lab: SimpleNamespace, max_drop: float, removed: bool
) -> None:
    """Without the last step, the two tokens of the answer have -4 and 0 instead of -0.02 and 0: 1.99 for each."""
    text = "Six rows of seven hens.\n\nThey have 35 hens more.\n\nAltogether = 42 hens."
    scorer = Scorer(sees, lambda paragraph, above: -9.0 if above.count("\n\n") < 2 and "=" in paragraph else -1.0)
    (result,) = await prune(lab, scorer, text, max_drop=max_drop, max_drop_after=1.0)
    assert (2 not in result.kept) == removed


async def test_losses_are_from_the_best_and_do_not_add_up(lab: SimpleNamespace) -> None:
    """Each step costs 0.06, and the first removal gains 0.05, which is not lost again."""
    steps = [f"Hens like row number {word}." for word in ("one", "two", "three", "four", "five")]

    def answer(text: str) -> float:
        missing = sum(step not in text for step in steps[:4])
        return -0.1 - 0.06 * missing + 0.05 * (steps[4] not in text)

    (result,) = await prune(lab, Scorer(answer), "\n\n".join(steps), max_drop=0.1)
    assert len(result.kept) == 3  # the gain, one loss of 0.06; a second one would be 0.12 below the best
    assert isclose(result.measures[KEPT], -0.1 - 0.06 + 0.05)


async def test_the_order_decides_which_of_two_equal_steps_stays(lab: SimpleNamespace) -> None:
    five = "Then 5 * 7 = 35."
    twice = f"{five}\n\nHens are birds.\n\n{five}\n\n{SUM}"
    needs = Scorer(sees, lambda paragraph, above: -1.0 - 6.0 * (paragraph == SUM and five not in above))
    for order, kept in (("last_first", (0, 3)), ("first_first", (2, 3))):
        (result,) = await prune(lab, needs, twice, order=order)
        assert result.kept == kept


async def test_a_step_that_defines_a_value_is_kept_without_being_scored(lab: SimpleNamespace) -> None:
    scorer = Scorer(lambda text: 0.0)
    text = "Each row has 6 * 29 = 174 eggs.\n\nHens lay eggs.\n\nThen 174 + 3 are left, which is nice."
    (result,) = await prune(lab, scorer, text)
    assert 0 in result.kept or 2 not in result.kept
    assert not [one for one in scorer.asked if one.startswith("Hens lay eggs.\n\nThen 174")]


async def test_n_steps_cost_at_most_n_scores_and_two(lab: SimpleNamespace) -> None:
    for count in (2, 5, 30):
        scorer = Scorer(lambda text: -1.0)
        item = PruneItem.of(lab.numbered(count))
        (result,) = await AnswerLikelihood().prune([item], Tools(lab.verify, scorer=scorer))
        assert result.calls == len(scorer.asked) <= count + 2
        assert len(result.kept) == 1  # never all


async def test_traces_are_tested_together_and_the_control_once_per_problem(lab: SimpleNamespace) -> None:
    scorer = Scorer(sees, expects)
    results = await prune(lab, scorer, TEXT, TEXT, TEXT)
    assert [result.kept for result in results] == [(0, 2, 3)] * 3
    assert scorer.asked.count("") == 1
    assert len(scorer.batches) <= 1 + len(STEPS)
    assert sum(result.calls for result in results) == len(scorer.asked)
    (alone,) = await prune(lab, Scorer(sees, expects), TEXT)
    assert alone.kept == results[1].kept


async def test_only_what_follows_a_step_is_scored_again(lab: SimpleNamespace) -> None:
    scorer = Scorer(sees, expects)
    await prune(lab, scorer, TEXT)
    tested = [item for batch in scorer.batches[1:] for item in batch]
    assert len({item.since for item in tested}) == len(tested) > 1
    for item in tested:
        assert item.reasoning[: item.since] == TEXT[: item.since].rstrip() or item.since < len(item.reasoning)
        assert item.reasoning[item.since :] in TEXT


@pytest.mark.parametrize(
    ("text", "given", "params", "reason"),
    [
        ("", {}, {}, "no_reasoning"),
        ("One step.", {}, {}, "one_step"),
        (TEXT, {"gold": None}, {}, "no_gold"),
        (TEXT, {"thinking": Thinking.OPEN}, {}, "thinking_not_closed"),
        (TEXT, {}, {"max_steps": 3}, "too_many_steps"),
        (TEXT, {}, {"max_tokens": 50}, "too_long_to_score"),
    ],
)
async def test_a_trace_that_is_not_scored_is_kept_with_a_reason(
    lab: SimpleNamespace, text: str, given: dict, params: dict, reason: str
) -> None:
    scorer = Scorer(sees, expects)
    item = PruneItem.of(lab.trace(text, **given))
    (result,) = await AnswerLikelihood(**params).prune([item], Tools(lab.verify, scorer=scorer))
    assert (result.reason, scorer.asked) == (reason, [])


@pytest.mark.parametrize(
    ("error", "reason"), [("context_length", "too_long_to_score"), ("server_error", "student_error")]
)
@pytest.mark.parametrize("at", ["", FILLER])
async def test_a_failure_keeps_the_parent(lab: SimpleNamespace, error: str, reason: str, at: str) -> None:
    scorer = Scorer(
        sees, expects, lambda item: error if at not in item.reasoning or (not at and item.reasoning) else None
    )
    (result,) = await prune(lab, scorer, TEXT)
    assert (result.reason, result.detail) == (reason, error)
    assert result.calls == len(scorer.asked)


async def test_a_control_that_cannot_be_rendered_is_left_out(lab: SimpleNamespace) -> None:
    scorer = Scorer(sees, expects, lambda item: None if item.reasoning else "no_reasoning")
    (result,) = await prune(lab, scorer, TEXT)
    assert result.kept == (0, 2, 3)
    assert EMPTY not in result.measures


async def test_nothing_to_remove_is_a_reason_and_has_the_measures(lab: SimpleNamespace) -> None:
    text = "\n\n".join((FIVE, REST, SUM))
    (result,) = await prune(lab, Scorer(sees, expects), text)
    assert result.reason == "nothing_to_remove"
    assert result.measures == {WHOLE: -0.01, EMPTY: -3.0, KEPT: -0.01}


async def test_the_result_passes_the_check_of_every_pruner(lab: SimpleNamespace) -> None:
    item = PruneItem.of(lab.trace(TEXT))
    results = await AnswerLikelihood().prune([item], Tools(lab.verify, scorer=Scorer(sees, expects)))
    (checked,) = await reverify([item], results, lab.verify)
    assert (checked.result.reason, checked.states) == (None, "none")
    assert checked.result.measures[KEPT] == -0.01


async def test_it_needs_a_student_that_scores(lab: SimpleNamespace) -> None:
    assert PRUNERS.get("answer_likelihood") is AnswerLikelihood
    with pytest.raises(UserError, match="needs a student that scores text"):
        await AnswerLikelihood().prune([PruneItem.of(lab.trace(TEXT))], Tools(lab.verify))
