"""The interface of trainers: the views that one reads, and the configuration files for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from shlex import quote

from tracefactory.core.errors import Mistake, UserError, nearest


@dataclass(frozen=True)
class Data:
    """The dataset that a trainer is to read, and the student that it trains.

    `place` is a repository on the Hub, or the folder of a release. `hub` says which. `revision` is the tag of a version
    on the Hub. `longest` is the trainer's limit in tokens: a longer row is refused by trainers that can, and cut short
    by the others. `sft_weight` is the weight of the SFT loss of the chosen completion beside DPO, 0 for none.
    """

    place: str
    hub: bool = False
    revision: str = ""
    student: str = "STUDENT"
    longest: int = 32768
    sft_weight: float = 0.0

    def files(self, view: str) -> str:
        """Return the folder of a view's Parquet files, for trainers that read files."""
        return f"data/{view}" if self.hub else f"{self.place}/data/{view}"

    def download(self, view: str) -> str:
        """Return the command that brings a view's files here, for trainers that read files; empty for a folder."""
        revision = f" --revision {quote(self.revision)}" if self.revision else ""
        command = (
            f"hf download {quote(self.place)} --repo-type dataset{revision} --include 'data/{view}/*' --local-dir ."
        )
        return command if self.hub else ""

    def loaded(self, view: str) -> str:
        """Return Python code that loads a view with `datasets.load_dataset`."""
        if not self.hub:
            return f'load_dataset("parquet", data_files={json.dumps(self.pattern(view))}, split="train")'
        revision = f"revision={json.dumps(self.revision)}, " if self.revision else ""
        return f'load_dataset({json.dumps(self.place)}, {json.dumps(view)}, {revision}split="train")'

    def pattern(self, view: str) -> str:
        """Return the pattern of a view's Parquet files.

        The cache of `datasets` knows a folder by its own name alone: of two releases with the same version, the one
        that was loaded first is returned for both, without an error. By its files, each is found by place and time.
        """
        return f"{self.files(view)}/*.parquet"


@dataclass(frozen=True)
class File:
    """One file of a configuration; `language` is its name in a fenced block of Markdown."""

    name: str
    language: str
    text: str


@dataclass(frozen=True)
class Reading:
    """How a trainer reads a view: what carries loss, and the files that make it so."""

    supervised: str
    files: Callable[[Data], tuple[File, ...]]


@dataclass(frozen=True)
class Trainer:
    """One trainer. `proven` is the version whose own code proves the readings, or says that nothing does.

    `unread` are views that it opens and reads wrongly, with what is lost.
    """

    name: str
    title: str
    proven: str
    readings: Mapping[str, Reading]
    unread: Mapping[str, str] = field(default_factory=dict)


def snippet(trainer: Trainer, view: str, data: Data) -> tuple[File, ...]:
    """Return the configuration files with which a trainer reads a view.

    Args:
        trainer: the trainer.
        view: the view.
        data: the dataset and the student.

    Raises:
        UserError: when the trainer does not read the view, with what it would lose and the views that it reads.
    """
    if view in trainer.readings:
        return trainer.readings[view].files(data)
    lost = f": {trainer.unread[view]}" if view in trainer.unread else ""
    raise UserError(
        Mistake(
            f"{trainer.title} does not read the view {view!r}{lost}",
            hint=nearest(view, trainer.readings) or f"it reads {', '.join(trainer.readings)}",
        )
    )
