"""One training of one student: what decides its weights, and the record of a finished one.

The folder of a training is named after its key, so the same rows, student, arguments and seed are trained once. The
record is written last: a folder with a whole record is finished, any other is continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field, ValidationError

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.fingerprint import digest, digest_weights
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import TrainerOptions
from tracefactory.store.trainings import KEY_DIGITS, RECORD

Progress = Callable[[Mapping[str, Any]], None]
"""Called with each line of progress."""
RECIPE = 1
"""Increased when the same job would give other weights; trainings of another recipe are not reused."""
FULL_BELOW = 1_000_000_000
"""Parameters from which on `lora_rank: auto` trains adapters and not all weights."""
AUTO_RANK = 16
JOB, MODEL, TRAINER = "job.json", "model", "trainer"


class Arguments(TrainerOptions):
    """How a student is trained; all of them are in the key.

    `batch_rows` are the rows of a forward pass and `accumulate` the forward passes of a step. `max_length` is the one
    that the rows were encoded with, in tokens.
    """

    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    batch_rows: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    max_length: int = Field(default=4096, ge=2)


class TrainingJob(Frozen):
    """A student, the rows that `budget.write_plan` wrote for it, their digest, and how to train on them."""

    student: Checkpoint
    rows: Path
    rows_digest: str
    arguments: Arguments = Arguments()
    seed: int = Field(default=0, ge=0, lt=2**32)

    def key(self) -> str:
        """Return the digest of what decides the weights.

        Raises:
            UserError: when a local file of the student does not exist.
        """
        # The dtype of a checkpoint is that of scores; training has its own.
        student = {name: value for name, value in self.student.identity().items() if name not in ("use", "dtype")}
        return digest(
            {
                "recipe": RECIPE,
                "student": student,
                "rows": self.rows_digest,
                "arguments": self.arguments.model_dump(mode="json"),
                "seed": self.seed,
            }
        )

    def folder(self, root: Path) -> Path:
        """Return the folder of this training."""
        return root / self.key()[:KEY_DIGITS]


class Step(Frozen):
    """One step of the optimizer: `tokens` are those in its loss."""

    step: int
    loss: float
    learning_rate: float
    tokens: int


class Record(Frozen):
    """What a finished training was.

    `trainer` holds every argument that TRL's trainer had, `lora_rank` is the rank that was used (null for all weights).
    `rows`, `cut` and `answers_lost` count a row each time that it was taken, and `tokens` are those in the loss.
    `seconds` is the training time of the process that finished it, `resumed_at` the step that it went on from, and
    `mask` the mask of the first row as TRL collated it. `files` are the sha256 digests of the model's files by name.
    """

    key: str
    recipe: int
    versions: dict[str, str]
    device: str
    seed: int
    arguments: Arguments
    trainer: dict[str, Any]
    lora_rank: int | None
    parameters: int
    trained_parameters: int
    rows: int
    cut: int
    answers_lost: int
    tokens: int
    steps: int
    resumed_at: int
    seconds: float
    curve: tuple[Step, ...]
    mask: tuple[str, ...]
    files: dict[str, str]


def done(folder: Path) -> Record | None:
    """Return the record of a finished training; None when it is not finished, or its record or model is damaged.

    Args:
        folder: the folder of a training, named after its key.
    """
    try:
        record = Record.model_validate(orjson.loads((folder / RECORD).read_bytes()))
        whole = record.recipe == RECIPE and record.key[:KEY_DIGITS] == folder.name and bool(record.files)
        whole = whole and digests_of(folder / MODEL) == record.files
    except (OSError, ValueError, ValidationError):
        return None
    return record if whole else None


def digests_of(model: Path) -> dict[str, str]:
    """Return the sha256 digests of the files of a model by their names.

    Raises:
        OSError: when the folder cannot be read.
    """
    return {file.name: digest_weights(file) for file in sorted(model.iterdir())}
