"""What a dataset did to a student, measured by `tracefactory teach`, for the card of its release."""

from __future__ import annotations

from tracefactory.core.rows import Frozen


class TaughtDataset(Frozen):
    """One dataset of a comparison.

    Attributes:
        name: its name in the comparison; `this` says whether it is the release of the card.
        about: how its rows were made.
        correct: the share of correct answers of its students, with the 95% interval `low` to `high`.
        against: the difference from the baseline in words, "" of the baseline itself.
        truncated: the share of answers that ended at the limit of tokens.
        with_answer: the share of answers that state an answer.
        tokens: mean tokens of an answer.
    """

    name: str
    this: bool
    about: str
    correct: float
    low: float
    high: float
    against: str
    truncated: float
    with_answer: float
    tokens: float


class TaughtLine(Frozen):
    """One comparison that a release took part in.

    Attributes:
        comparison: its name and version.
        student: the model that was trained.
        amount, axis: the budget of each dataset, such as 20,000 tokens.
        seeds: trainings of each dataset.
        questions: questions that count.
        baseline: the dataset that the others are compared with.
        datasets: all datasets, and the student without training.
        command: how to run it again.
    """

    comparison: str
    student: str
    amount: int
    axis: str
    seeds: int
    questions: int
    baseline: str
    datasets: tuple[TaughtDataset, ...]
    command: str
