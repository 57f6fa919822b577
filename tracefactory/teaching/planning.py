"""What a comparison will take, before it is begun: trainings, tokens, hours by a measured rate, and its power."""

from __future__ import annotations

from tracefactory.core.rows import Frozen
from tracefactory.core.teach import Teach
from tracefactory.teaching.comparison import Comparison
from tracefactory.teaching.power import DISCORDANT, assumed_seed_sd, detectable, questions_for
from tracefactory.teaching.report import in_seeds

_STEPS = 3
"""Steps of the training that measures the rate."""
_ASKED = 8
"""The fewest questions whose answers measure the rate: as many as are answered at once."""


class PlannedDataset(Frozen):
    """One dataset of a comparison: its rows, tokens in the loss of a row, and how often the budget repeats it."""

    name: str
    about: str
    rows: int
    mean_tokens: float
    epochs: int


class ComparisonPlan(Frozen):
    """What a comparison will take.

    Attributes:
        datasets: those to train on.
        trainings: how many trainings there are; `rates` of them are with a learning rate that will not be chosen.
        tokens: tokens in the loss of all trainings.
        questions: questions that count; `development` is the number of those that choose the learning rates.
        answers: answers of all students.
        loss_tokens_per_s: the measured rate of training.
        answers_per_s: the measured rate of answers.
        hours: the time of all trainings and answers at these rates; what is stored already is not subtracted.
        bytes: the space that the trained students take, until they are deleted.
        detectable: the smallest true difference that is found with a power of 80%.
        for_two_points: questions that a difference of two points needs; None where no number is enough.
    """

    datasets: tuple[PlannedDataset, ...]
    trainings: int
    rates: int
    tokens: int
    questions: int
    development: int
    answers: int
    loss_tokens_per_s: float
    answers_per_s: float
    hours: float
    bytes: int
    detectable: float
    for_two_points: int | None

    def lines(self, teach: Teach) -> list[str]:
        """Return the plan in sentences."""
        each = ", ".join(f"{one.name} {one.rows:,} rows x {one.epochs}" for one in self.datasets)
        sd = assumed_seed_sd(teach.seeds)
        between = f" and seeds by {100 * sd:g} points" if sd else ""
        found = [
            f"{self.trainings} trainings: {len(self.datasets)} datasets x {in_seeds(teach.seeds)}, "
            f"and {self.rates} more to choose the learning rates",
            f"{teach.amount:,} {teach.axis} of each: {self.tokens:,} tokens in the loss ({each})",
            f"{self.answers:,} answers to {self.questions:,} questions that count and {self.development:,} that choose "
            "the learning rates",
            f"about {self.hours:.1f} h: {self.loss_tokens_per_s:,.0f} tokens in the loss and "
            f"{self.answers_per_s:.2f} answers per second, as measured here",
            f"{self.bytes / 1e9:,.1f} GB for the trained students; `tracefactory gc --plan` lists them afterwards",
            f"finds true differences of {100 * self.detectable:.1f} points (power 80%, 95% intervals), if students "
            f"differ on {DISCORDANT:.0%} of the questions{between}",
        ]
        needed = "no number of questions" if self.for_two_points is None else f"{self.for_two_points:,} questions"
        return [*found, f"a difference of 2 points would need {needed} with {in_seeds(teach.seeds)}"]


def plan_of(comparison: Comparison) -> ComparisonPlan:
    """Return what a comparison will take. Rates are measured by a few steps of training and a few answers.

    Raises:
        UserError: for mistakes in the file, and releases that cannot be read.
        RunError: when the training or the answers that measure the rate fail.
    """
    teach, made = comparison.teach, comparison.datasets
    students = {
        name: comparison.students.taught(one, 0, teach.training.learning_rates[0]) for name, one in made.items()
    }
    taken = {name: one.taken for name, one in students.items() if one.taken is not None}
    counted = max(comparison.counted, 1)
    # A student of the first seed is trained with each rate; the one with the rate that is chosen counts as well.
    more = len(teach.training.learning_rates) - 1
    rates, trainings = len(made) * more, len(made) * (teach.seeds + more)
    tokens = sum(one.tokens for one in taken.values()) * (teach.seeds + more)
    all_questions = len(comparison.questions)
    asked = (len(made) * teach.seeds + 1) * all_questions + rates * len(comparison.development)
    at_once = max(_ASKED, comparison.pipeline.models[teach.answers].concurrency)
    measured = comparison.students.rates(next(iter(made.values())), _STEPS, min(at_once, all_questions))
    answers = round(asked * measured.answers_per_question)
    seed_sd = assumed_seed_sd(teach.seeds)
    return ComparisonPlan(
        datasets=tuple(
            PlannedDataset(
                name=name,
                about=one.about,
                rows=len(one.encoded.table),
                mean_tokens=one.mean_tokens,
                epochs=taken[name].epochs,
            )
            for name, one in made.items()
        ),
        trainings=trainings,
        rates=rates,
        tokens=tokens,
        questions=counted,
        development=len(comparison.development),
        answers=answers,
        loss_tokens_per_s=measured.loss_tokens_per_s,
        answers_per_s=measured.answers_per_s,
        hours=(tokens / measured.loss_tokens_per_s + answers / measured.answers_per_s) / 3600,
        bytes=trainings * measured.student_bytes,
        detectable=detectable(counted, teach.seeds, seed_sd=seed_sd),
        for_two_points=questions_for(0.02, teach.seeds, seed_sd=seed_sd),
    )
