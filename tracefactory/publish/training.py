"""The part of the card on training: for every trainer, the views of the dataset that it reads and its configuration."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from tracefactory.trainers import TRAINERS, Data, File, snippet


class ViewRead(NamedTuple):
    """A view as a trainer reads it: what carries loss, and the files of its configuration."""

    view: str
    supervised: str
    files: tuple[File, ...]


class TrainerRead(NamedTuple):
    """A trainer and the views of a dataset that it reads; `proven` is the version whose own code proves it."""

    title: str
    proven: str
    views: tuple[ViewRead, ...]


def trainers_of(views: Collection[str], data: Data) -> list[TrainerRead]:
    """Return the trainers that read at least one of the views, in the order of `TRAINERS`.

    Args:
        views: the views of the dataset.
        data: the dataset and the student, for the configuration.
    """
    found = []
    for trainer in TRAINERS.values():
        read = tuple(
            ViewRead(view, reading.supervised, snippet(trainer, view, data))
            for view, reading in trainer.readings.items()
            if view in views
        )
        if read:
            found.append(TrainerRead(trainer.title, trainer.proven, read))
    return found
