"""Trained students: their trainings, and their answers to the questions, each made once.

.tracefactory/teaching/
    rows/<digest16>.parquet    the rows of one training, in the student's tokens
    <training key16>/          one training, see `teaching.job`
    answers/<digest16>.json    the marks and scores of one student: its weights may be deleted afterwards
"""

from __future__ import annotations

import asyncio
import os
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
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import Teach
from tracefactory.engine.identity import identities
from tracefactory.engine.run import Watch
from tracefactory.serving.gguf_checkpoint import convert
from tracefactory.teaching.budget import Budget, Taken, plan_rows, write_plan
from tracefactory.teaching.datasets import Dataset
from tracefactory.teaching.examination import Marks, examination, examine
from tracefactory.teaching.gguf import write_gguf
from tracefactory.teaching.job import Arguments, TrainingJob
from tracefactory.teaching.training import train

Say = Callable[[str], None]
_UNTOUCHED = "untouched"
_TELL_S = 10.0


class Answered(Frozen):
    """A student's answers, and the training that it has had; of the untouched one only the answers.

    Attributes:
        marks: its answers, counted.
        scores: the share of correct answers by question id.
        requests: the answers that were paid for now; 0 where they were stored.
        reused: whether nothing was trained and asked now.
        answer_s: the time of the run that it answered in, with the start of its server.
        seconds: the time of its training, and `steps` the steps of the optimizer.
        tokens: tokens in the loss, repeats counted.
        mask: the mask of its first row as the trainer collated it.
        versions: the packages that trained it.
    """

    marks: Marks
    scores: Mapping[str, float]
    requests: int = 0
    reused: bool = False
    answer_s: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    mask: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}


class Student(NamedTuple):
    """A student that can be examined: the key of its weights, and its training, None of the untouched one."""

    key: str
    job: TrainingJob | None
    taken: Taken | None


class Students:
    """The students of one comparison.

    Args:
        pipeline: the pipeline of the comparison.
        teach: its section `teach:`.
        checkpoint: the student before any training.
        watch: displays the runs in which students answer.
        say: is told what goes on.
    """

    def __init__(self, pipeline: Pipeline, teach: Teach, checkpoint: Checkpoint, watch: Watch, say: Say) -> None:
        self.pipeline, self.teach, self.checkpoint, self.watch, self.say = pipeline, teach, checkpoint, watch, say
        self.root = pipeline.project.state_dir / "teaching"
        self._told = 0.0

    def untouched(self) -> Student:
        """Return the student before any training."""
        return Student(digest([_UNTOUCHED, self.checkpoint.identity()]), None, None)

    def taught(self, dataset: Dataset, seed: int, learning_rate: float) -> Student:
        """Return the student of a dataset, which need not be trained yet; its rows are written.

        Raises:
            UserError: when the dataset has no row, or too few for the budget.
        """
        teach, options = self.teach, self.teach.training
        table = dataset.encoded.table
        plan = plan_rows(table, Budget.model_validate({teach.axis: teach.amount}), seed)
        draft = self.root / "rows" / f".draft-{os.getpid()}.parquet"
        rows_digest = write_plan(draft, table, plan)
        rows = draft.with_name(f"{rows_digest[:16]}.parquet")
        draft.replace(rows)
        at_once = min(options.rows_at_once, options.rows_per_step)
        shared = options.model_dump(include={*Arguments.model_fields})
        arguments = Arguments(
            learning_rate=learning_rate, batch_rows=at_once, accumulate=options.rows_per_step // at_once, **shared
        )
        job = TrainingJob(student=self.checkpoint, rows=rows, rows_digest=rows_digest, arguments=arguments, seed=seed)
        return Student(job.key(), job, plan.taken)

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
        answered = Answered(marks=found.marks, scores=found.scores, requests=found.requests, **record)
        write_json(path, answered.model_dump(mode="json"))
        return answered

    def rates(self, dataset: Dataset, steps: int, asked: int) -> tuple[float, float]:
        """Measure the tokens in the loss, and the answers, per second on this machine.

        Args:
            dataset: what to train on.
            steps: the steps of the training.
            asked: the number of questions, which the untouched student answers.

        Raises:
            UserError, RunError: as `answered` does.
        """
        small = self.teach.model_copy(update={"tokens": None, "problems": None})
        small = small.model_copy(update={"rows": steps * self.teach.training.rows_per_step})
        short = Students(self.pipeline, small, self.checkpoint, self.watch, self.say)
        student = short.taught(dataset, 0, self.teach.training.learning_rates[0])
        assert student.job is not None
        record = train(student.job, self.root, self._progress).record
        answered = self.answered(self.untouched(), limit=asked)
        return record.tokens / record.seconds, answered.marks.answers / max(answered.answer_s, 1e-3)

    def _answers(self, student: Student, limit: int | None, without: Collection[str]) -> Path:
        # With the model as it is declared: whose weights answer is the student's key.
        asked = examination(self.pipeline, self.teach, None, limit)
        stages = {name: one.key for name, one in identities(asked).items()}
        return self.root / "answers" / f"{digest([student.key, stages, limit, sorted(without)])[:16]}.json"

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
        folder = self.root / f"{_UNTOUCHED}-{self.untouched().key[:16]}"
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
