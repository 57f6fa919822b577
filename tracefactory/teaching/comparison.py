"""Compare datasets by what a student learns from them: train on each, examine each student, and say what differs.

1. The datasets and the controls are read and encoded in the student's tokens; no question may be in a training row.
2. Of each dataset, rows are taken for the budget, in an order that the seed decides.
3. With the first seed, the learning rates are tried on the development questions.
4. With the best rate, a student is trained for each seed, and answers all questions.
5. The shares of correct answers are compared, question by question, with those of the baseline.

Trainings and answers are stored under what decides them, so the same command goes on where it was stopped, and a second
run trains nothing and asks nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from tracefactory.config.command import run_command
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Kind, Problem
from tracefactory.core.stage import kinds_of
from tracefactory.core.teach import CONTROLS, UNTOUCHED
from tracefactory.engine.run import Watch, run_pipeline
from tracefactory.teaching.budget import Taken
from tracefactory.teaching.datasets import Dataset, datasets_of
from tracefactory.teaching.examination import examination, leaked, refuse_leaks
from tracefactory.teaching.power import detectable
from tracefactory.teaching.result import DatasetResult, Result, SeedResult
from tracefactory.teaching.statistics import UNTRAINED, Scores, compare, summary
from tracefactory.teaching.students import Answered, Say, Students


class Comparison:
    """One comparison.

    Args:
        pipeline: a pipeline with a section `teach:`.
        watch: displays the runs in which students answer.
        say: called with sentences about what goes on.

    Raises:
        UserError: when the pipeline compares nothing, or names an environment variable that is not set.
    """

    def __init__(self, pipeline: Pipeline, watch: Watch, say: Say) -> None:
        if pipeline.teach is None:
            raise UserError(f"{pipeline.file}: it has no section `teach:`, so there is nothing to compare")
        self.pipeline, self.teach, self.watch, self.say = pipeline, pipeline.teach, watch, say
        checkpoint = pipeline.models[self.teach.student].checkpoint(Environment(root=pipeline.project.root))
        assert isinstance(checkpoint, Checkpoint)
        self.students = Students(pipeline, self.teach, checkpoint, watch, say)

    def __call__(self) -> Result:
        """Run the comparison, and return its result.

        Raises:
            UserError: for mistakes in the file, releases that cannot be read, and questions in training rows.
            RunError: when a training or a run of answers fails; the same command goes on.
        """
        if self.teach.leaks == "refuse":
            refuse_leaks(self.leaked, len(self.questions))
        if not self.counted:
            raise UserError(
                f"{self.pipeline.file}: no question is left to count: each chooses the learning rate, or is in "
                "training rows"
            )
        self.say(UNTOUCHED)
        untouched = self.students.answered(self.students.untouched(), without=self.not_counted)
        taught = [_Taught(UNTOUCHED, "the student without any training", {UNTRAINED: untouched})]
        taught += [self._taught(one) for one in self.datasets.values()]
        return self._result(taught)

    @cached_property
    def datasets(self) -> Mapping[str, Dataset]:
        """The datasets and the controls by name."""
        from tracefactory.serving.loading import load_tokenizer
        from tracefactory.students.render import Renderer

        student = self.students.checkpoint
        renderer = Renderer(load_tokenizer(student), student.reasoning)
        return datasets_of(self.teach, self.pipeline.project.root, self.students.root / "hub", renderer)

    @cached_property
    def questions(self) -> list[Problem]:
        """All questions, those of the development among them."""
        return self._problems(None)

    @cached_property
    def development(self) -> frozenset[str]:
        """The ids of the questions that choose the learning rates."""
        first = self._problems(self.teach.development) if self.teach.development else []
        return frozenset(one.id for one in first)

    @cached_property
    def leaked(self) -> Mapping[str, Sequence[Problem]]:
        """The questions that are in training rows, by dataset."""
        return leaked(self.questions, {name: one.rows for name, one in self.datasets.items()})

    @cached_property
    def trained_on(self) -> frozenset[str]:
        """The ids of the questions that are in training rows."""
        return frozenset(one.id for problems in self.leaked.values() for one in problems)

    @property
    def not_counted(self) -> frozenset[str]:
        """The ids of the questions that choose the learning rates, and of those in training rows."""
        return self.development | self.trained_on

    @property
    def counted(self) -> int:
        """The number of questions that count."""
        return len({one.id for one in self.questions} - self.not_counted)

    def _problems(self, limit: int | None) -> list[Problem]:
        """Return the first questions of the source; reading them asks no model."""
        kinds = kinds_of(self.pipeline)
        sources = tuple(one for one in self.pipeline.stages if kinds[one.id] is Kind.PROBLEMS)
        only = examination(self.pipeline, self.teach, None, limit).model_copy(update={"stages": sources})
        outcome = asyncio.run(run_pipeline(only, self.watch))
        rows = outcome.stages[-1].rows(self.pipeline.project.state_dir).rows()
        return [row for row in rows if isinstance(row, Problem)]

    def _taught(self, dataset: Dataset) -> _Taught:
        """Train the students of one dataset and let them answer."""
        rates = self._rates(dataset)
        chosen = max(rates, key=lambda rate: (rates[rate], -rate))
        answered, taken = {}, None
        for seed in range(self.teach.seeds):
            self.say(f"{dataset.name}: seed {seed}, learning rate {chosen:g}")
            student = self.students.taught(dataset, seed, chosen)
            answered[seed] = self.students.answered(student, without=self.not_counted)
            taken = taken or student.taken
            if seed == 0 and dataset is next(iter(self.datasets.values())):
                self.say("\n".join(["the first row as the trainer had it:", *answered[seed].mask]))
        return _Taught(dataset.name, dataset.about, answered, dataset, taken, chosen, rates)

    def _rates(self, dataset: Dataset) -> dict[float, float]:
        """Return the share of correct development answers by learning rate; nan of the only one, which is not tried."""
        rates = self.teach.training.learning_rates
        if len(rates) == 1:
            return {rates[0]: math.nan}
        found = {}
        for rate in rates:
            student = self.students.taught(dataset, 0, rate)
            answered = self.students.answered(student, limit=self.teach.development, without=self.trained_on)
            marks = answered.marks
            found[rate] = marks.correct / max(marks.answers - marks.not_judged, 1)
            self.say(
                f"{dataset.name}: learning rate {rate:g}: {found[rate]:.1%} of the development answers are correct"
            )
        return found

    def _result(self, taught: Sequence[_Taught]) -> Result:
        teach = self.teach
        name = teach.baseline or next(iter(teach.arms))
        baseline = next(one for one in taught if one.name == name)
        trained = next(one for one in taught if one.dataset is not None).answered[0]
        datasets = tuple(one.result(baseline) for one in taught)
        return Result(
            name=self.pipeline.name,
            version=self.pipeline.version,
            student=self.pipeline.models[teach.student].model,
            student_key=self.students.checkpoint.key(),
            axis=teach.axis,
            amount=teach.amount,
            seeds=teach.seeds,
            baseline=name,
            questions=self.counted,
            development=len(self.development),
            leaked=len(self.trained_on),
            detectable=_detectable(datasets, self.counted, teach.seeds),
            datasets=datasets,
            left_out=tuple(one for one in CONTROLS if one not in self.datasets),
            command=run_command(self.pipeline, "teach"),
            mask=trained.mask,
            versions=trained.versions,
        )


def _detectable(datasets: Sequence[DatasetResult], questions: int, seeds: int) -> float:
    """Return the smallest true difference that is found, by how much students and seeds differed in this comparison."""
    variances = [one.summary.seed_sd**2 for one in datasets if one.summary.seed_sd is not None]
    discordant = fmean(one.difference.discordant for one in datasets if one.difference is not None)
    seed_sd = math.sqrt(fmean(variances)) if variances and seeds > 1 else 0.0
    return detectable(questions, seeds, discordant=max(discordant, 1 / questions), seed_sd=seed_sd)


@dataclass(frozen=True)
class _Taught:
    """The students of one dataset by seed, with the learning rate that was chosen, and all that were tried."""

    name: str
    about: str
    answered: Mapping[int, Answered]
    dataset: Dataset | None = None
    taken: Taken | None = None
    learning_rate: float | None = None
    rates: Mapping[float, float] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        return {seed: one.scores for seed, one in self.answered.items()}

    def result(self, baseline: _Taught) -> DatasetResult:
        """Return the line of the result."""
        difference = (
            compare(self.scores, baseline.scores, names=(self.name, baseline.name)) if self is not baseline else None
        )
        encoded = None if self.dataset is None else self.dataset.encoded
        return DatasetResult(
            name=self.name,
            about=self.about,
            release="" if self.dataset is None else self.dataset.release,
            rows=0 if encoded is None else len(encoded.table),
            refused={} if encoded is None else encoded.reasons,
            mean_tokens=0.0 if self.dataset is None else self.dataset.mean_tokens,
            measures={} if self.dataset is None else self.dataset.measures,
            taken=self.taken,
            learning_rate=self.learning_rate,
            rates={f"{rate:g}": share for rate, share in self.rates.items() if not math.isnan(share)},
            students=tuple(
                SeedResult(
                    seed=None if seed == UNTRAINED else seed,
                    **one.model_dump(include={"marks", "seconds", "steps", "requests", "reused"}),
                )
                for seed, one in self.answered.items()
            ),
            summary=summary(self.scores, name=self.name),
            difference=difference,
        )
