"""Trained students: their trainings, and their answers to the questions, each made once.

.tracefactory/teaching/
    rows/<digest16>.parquet    the rows of one training, in the student's tokens
    <training key16>/          one training, see `teaching.job`
    answers/<digest16>.json    the marks and scores of one student: its weights may be deleted afterwards
    untouched-<key16>/         the student before any training, where its weights are a GGUF file
    gguf/<key16>.gguf          weights for llama.cpp, while a student answers
    hub/<ORG>--<REPO>@<TAG>/   a release of the Hub
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.files import write_json
from tracefactory.core.fingerprint import digest
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.teach import UNTOUCHED, Teach, TrainingBudget
from tracefactory.engine.identity import identities
from tracefactory.engine.run import Watch
from tracefactory.serving.gguf_checkpoint import convert
from tracefactory.store.garbage import size_of
from tracefactory.store.trainings import ANSWERS, TEACHING
from tracefactory.teaching.budget import Taken, plan_rows, write_plan
from tracefactory.teaching.datasets import Dataset
from tracefactory.teaching.examination import Examined, examination, examine
from tracefactory.teaching.gguf import write_gguf
from tracefactory.teaching.job import Arguments, TrainingJob
from tracefactory.teaching.training import train

Say = Callable[[str], None]
_TELL_S = 10.0


class Answered(Examined):
    """A student's answers, and the training that it has had; of the untouched one only the answers.

    Attributes:
        student: the key of its weights.
        requests: the answers that were paid for now; 0 where they were stored.
        reused: whether nothing was trained and asked now.
        answer_s: the time of the run that it answered in, with the start of its server.
        seconds: the time of its training, and `steps` the steps of the optimizer.
        tokens: tokens in the loss, repeats counted.
        mask: the mask of its first row as the trainer collated it.
        versions: the packages that trained it.
    """

    student: str = ""
    reused: bool = False
    answer_s: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    mask: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}


class _Rows(NamedTuple):
    """The rows of one training in their file, the digest of its contents, and what was taken for the budget."""

    file: Path
    digest: str
    taken: Taken


class Student(NamedTuple):
    """A student that can be examined: the key of its weights, and its training, None of the untouched one."""

    key: str
    job: TrainingJob | None
    taken: Taken | None


class Rates(NamedTuple):
    """What was measured on this machine: tokens in the loss and answers per second, answers to a question, bytes."""

    loss_tokens_per_s: float
    answers_per_s: float
    answers_per_question: float
    student_bytes: int
    """Of the folder of one training."""


class Students:
    """The students of one comparison.

    Args:
        pipeline: the pipeline of the comparison.
        teach: its section `teach:`.
        checkpoint: the student before any training.
        watch: displays the runs in which students answer.
        say: called with sentences about what goes on.
    """

    def __init__(self, pipeline: Pipeline, teach: Teach, checkpoint: Checkpoint, watch: Watch, say: Say) -> None:
        self.pipeline, self.teach, self.checkpoint, self.watch, self.say = pipeline, teach, checkpoint, watch, say
        self.root = pipeline.project.state_dir / TEACHING
        self._rows: dict[tuple[str, int, str, int], _Rows] = {}
        self._told = 0.0

    def untouched(self) -> Student:
        """Return the student before any training."""
        return Student(digest([UNTOUCHED, self.checkpoint.identity()]), None, None)

    def taught(
        self, dataset: Dataset, seed: int, learning_rate: float, budget: TrainingBudget | None = None
    ) -> Student:
        """Return the student of a dataset, which need not be trained yet; its rows are written.

        Args:
            dataset: what it is trained on.
            seed: the seed of its training.
            learning_rate: the learning rate.
            budget: how much it is trained on; by default that of the section `teach:`.

        Raises:
            UserError: when the dataset has no row, or too few for the budget.
        """
        options = self.teach.training
        rows = self._planned(dataset, seed, budget or self.teach)
        at_once = min(options.rows_at_once, options.rows_per_step)
        shared = options.model_dump(include={*Arguments.model_fields})
        arguments = Arguments(
            learning_rate=learning_rate, batch_rows=at_once, accumulate=options.rows_per_step // at_once, **shared
        )
        job = TrainingJob(
            student=self.checkpoint, rows=rows.file, rows_digest=rows.digest, arguments=arguments, seed=seed
        )
        return Student(job.key(), job, rows.taken)

    def answered(self, student: Student, *, limit: int | None = None, without: Collection[str] = ()) -> Answered:
        """Return the answers of a student, which is trained and asked if it was not before.

        Args:
            student: the student.
            limit: only the first questions of the source.
            without: ids of questions that do not count.

        Raises:
            UserError: when the training needs something that is not there.
            RunError: when the training or the run fails; the same call goes on.
        """
        path = self._answers(student, limit, without)
        with suppress(FileNotFoundError, ValidationError):
            stored = Answered.model_validate_json(path.read_bytes())
            return stored.model_copy(update={"requests": 0, "reused": True})
        trained = None if student.job is None else train(student.job, self.root, self._progress)
        told = set() if trained is None else {"seconds", "steps", "tokens", "mask", "versions"}
        record = {} if trained is None else trained.record.model_dump(include=told)
        with self._weights(student, self._untouched() if trained is None else trained.model) as weights:
            asked, began = examination(self.pipeline, self.teach, weights, limit), time.monotonic()
            found = asyncio.run(examine(asked, self.watch, without))
            record["answer_s"] = time.monotonic() - began
        answered = Answered(student=student.key, **dict(found), **record)
        write_json(path, answered.model_dump(mode="json"))
        return answered

    def rates(self, dataset: Dataset, steps: int, asked: int) -> Rates:
        """Measure how fast a student is trained and answers on this machine.

        Args:
            dataset: what to train on.
            steps: the steps of the training.
            asked: how many of the questions the untouched student answers.

        Raises:
            UserError, RunError: as `answered` does.
        """
        budget = TrainingBudget(rows=steps * self.teach.training.rows_per_step)
        student = self.taught(dataset, 0, self.teach.training.learning_rates[0], budget)
        assert student.job is not None
        record = train(student.job, self.root, self._progress).record
        answered = self.answered(self.untouched(), limit=asked)
        answers, size = answered.marks.answers, size_of(student.job.folder(self.root)).bytes
        return Rates(record.tokens / record.seconds, answers / max(answered.answer_s, 1e-3), answers / asked, size)

    def _planned(self, dataset: Dataset, seed: int, budget: TrainingBudget) -> _Rows:
        """Return the rows of a training, which are planned and written once for all of its learning rates."""
        key = (dataset.name, seed, budget.axis, budget.amount)
        if key not in self._rows:
            plan = plan_rows(dataset.encoded.table, budget, seed)
            written = write_plan(self.root / "rows", dataset.encoded.table, plan)
            self._rows[key] = _Rows(*written, plan.taken)
        return self._rows[key]

    def _answers(self, student: Student, limit: int | None, without: Collection[str]) -> Path:
        # With the model as it is declared in the file: the student's key says whose weights answer.
        asked = examination(self.pipeline, self.teach, None, limit)
        stages = {name: one.key for name, one in identities(asked).items()}
        return self.root / ANSWERS / f"{digest([student.key, stages, limit, sorted(without)])[:16]}.json"

    @contextmanager
    def _weights(self, student: Student, folder: Path) -> Iterator[Path]:
        """Yield a student's weights in the form that the model `answers` takes; a copy is deleted after the answers."""
        if self.pipeline.models[self.teach.answers].takes_weights != "gguf":
            yield folder
            return
        file = self.root / "gguf" / f"{student.key[:16]}.gguf"
        if not file.exists():
            write_gguf(folder, Path(self.checkpoint.model), file)
        yield file
        file.unlink()

    def _untouched(self) -> Path:
        """Return the untouched student as a folder: it answers in the same form as the trained ones."""
        model = Path(self.checkpoint.model)
        if not model.is_file():
            return model
        folder = self.root / f"{UNTOUCHED}-{self.untouched().key[:16]}"
        if not folder.exists():
            convert(model, folder)
        return folder

    def _progress(self, line: Mapping[str, Any]) -> None:
        """Tell a line of the training process: a step, at most every few seconds."""
        now = time.monotonic()
        if "step" not in line or (line["step"] < line["steps"] and now - self._told < _TELL_S):
            return
        self._told = now
        step = f"step {line['step']:,} of {line['steps']:,}"
        self.say(f"training: {step}, loss {line['loss']:.3f}, {line['tokens']:,} tokens")
