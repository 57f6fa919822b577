"""The result of a comparison, as it is stored in `teach.json`."""

from __future__ import annotations

from collections.abc import Mapping

from tracefactory import __version__
from tracefactory.core.rows import Frozen
from tracefactory.teaching.budget import Taken
from tracefactory.teaching.examination import Marks
from tracefactory.teaching.statistics import Difference, Summary

RESULT = "teach.json"
"""The name of the file that holds a result."""


class SeedResult(Frozen):
    """One student.

    Attributes:
        seed: the seed of its training; None of the untouched student.
        marks: its answers, counted.
        seconds: the time of its training, and `steps` the steps of the optimizer.
        requests: the answers that this run paid for; 0 where they were stored.
        reused: whether it had been trained and asked before.
    """

    seed: int | None
    marks: Marks
    seconds: float
    steps: int
    requests: int
    reused: bool


class DatasetResult(Frozen):
    """What the students learned from one dataset.

    Attributes:
        name: its name; `untouched` is the student without training.
        about: how its rows were made.
        release: the digest of the contents of the release, of a dataset that is one.
        rows: the rows that it has, and `refused` those that the student's template cannot render, by reason.
        mean_tokens: tokens in the loss of a row.
        measures: means of what its pipeline measured of the traces, such as pass rates or surprisal.
        taken: what one training took of it for the budget.
        learning_rate: the rate that was chosen.
        rates: share of correct answers to the development questions, by learning rate.
        students: one per seed.
        summary: the share of correct answers, with its intervals.
        difference: against the baseline; None of the baseline itself.
    """

    name: str
    about: str
    release: str = ""
    rows: int = 0
    refused: Mapping[str, int] = {}
    mean_tokens: float = 0.0
    measures: Mapping[str, float] = {}
    taken: Taken | None = None
    learning_rate: float | None = None
    rates: Mapping[str, float] = {}
    students: tuple[SeedResult, ...]
    summary: Summary
    difference: Difference | None = None


class Result(Frozen):
    """A whole comparison.

    Attributes:
        name, version: those of its file.
        student: the model, and `student_key` the digest of its weights and arithmetic.
        axis, amount: the budget of each training.
        baseline: what the others are compared with.
        questions: questions that count; `development` ones chose the learning rates and do not, and `leaked` ones are
            in training rows.
        detectable: the smallest true difference that such a comparison finds with a power of 80%, if students and seeds
            differ as much as in this one.
        left_out: controls that were not made.
        command: how to run it again.
        mask: the mask of one row as the trainer collated it.
        versions: the packages that trained.
    """

    name: str
    version: str
    student: str
    student_key: str
    axis: str
    amount: int
    seeds: int
    baseline: str
    questions: int
    development: int
    leaked: int = 0
    detectable: float
    datasets: tuple[DatasetResult, ...]
    left_out: tuple[str, ...] = ()
    command: str = ""
    mask: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}
    tracefactory: str = __version__
