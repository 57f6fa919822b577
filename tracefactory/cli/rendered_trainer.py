"""The configuration of a trainer, for `tracefactory render --trainer`."""

from __future__ import annotations

from collections.abc import Iterator

from tracefactory.cli.rendered_row import ChosenRow
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.trainers import TRAINERS, Data, Trainer, snippet


def trainer_of(name: str) -> Trainer:
    """Return a trainer.

    Raises:
        UserError: when there is none with this name.
    """
    if name not in TRAINERS:
        raise UserError(Mistake(f"--trainer: there is no trainer {name!r}", hint=nearest(name, TRAINERS)))
    return TRAINERS[name]


def configuration(trainer: Trainer, view: str, chosen: ChosenRow, student: str | None) -> Iterator[str]:
    """Yield the lines of a trainer's configuration, and what it trains on.

    Args:
        trainer: the trainer.
        view: the view.
        chosen: the row that is rendered, of the dataset to train on.
        student: the student as the user named it; None where the user did not.

    Raises:
        UserError: when the trainer does not read the view.
    """
    data = Data(str(chosen.folder or "PATH/TO/THE/DATASET"), student=student or "STUDENT")
    for file in snippet(trainer, view, data):
        yield f"--- {file.name}\n{file.text}"
    yield f"--- {trainer.title} ({trainer.proven}) trains on {trainer.readings[view].supervised}"
    yield "What it makes of each chat template is in docs/trainers.md of tracefactory. As the chat template has it:\n"
