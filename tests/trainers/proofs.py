"""Runs the trainers' own code on the published dataset, with the configuration that the card carries."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from tests.trainers.judging import findings, meant
from tests.trainers.release import called
from tests.trainers.students import STUDENTS
from tracefactory.trainers import TRAINERS, Data, labels, snippet, tools

ENVIRONMENTS = {"llamafactory": "A", "verl": "A", "prm": "A", "axolotl": "B"}
"""The environment of every trainer that has one: TRACEFACTORY_TEST_TRAINERS_A is its folder."""


def environment(trainer: str) -> Path | None:
    """Return the environment in which a trainer is installed; None where there is none."""
    name = f"TRACEFACTORY_TEST_TRAINERS_{ENVIRONMENTS[trainer]}"
    default = Path(__file__).parents[2] / f".venv-trainers-{ENVIRONMENTS[trainer].lower()}"
    found = Path(os.environ.get(name, default))
    return found if (found / "bin" / "python").exists() else None


@dataclass(frozen=True)
class Bench:
    """The dataset, the students, and a folder for what the trainers write."""

    release: Path
    students: Mapping[str, Path]
    folder: Path

    def job(self, trainer: str, view: str, student: str, release: Path | None = None) -> dict[str, Any]:
        """Write the configuration of one trainer, as the card has it, and return what its reader needs."""
        release = release or self.of(view)
        place = self.folder / trainer / view / STUDENTS[student].template / release.name
        place.mkdir(parents=True, exist_ok=True)
        data = Data(str(release), student=str(self.students[student]))
        for file in snippet(TRAINERS[trainer], view, data):
            (place / file.name).write_text(file.text)
        return {"folder": str(place), "tokenizer": data.student, "template": STUDENTS[student].llamafactory}

    def rows(self, view: str) -> list[dict[str, Any]]:
        """Return the published rows of a view."""
        return pq.read_table(self.of(view) / "data" / view).to_pylist()

    def of(self, view: str) -> Path:
        """Return the release that has a view."""
        return called(self.release) if view == "tool_use" else self.release


def read(trainer: str, jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return what a trainer makes of the rows of every job.

    Args:
        trainer: the trainer.
        jobs: what `Bench.job` made; `changed` are values that differ from the configuration.
    """
    for job in jobs:
        _label(job)
    if trainer == "trl":
        return [list(_read_trl(job)) for job in jobs]
    root = environment(trainer)
    assert root is not None
    script = Path(__file__).with_name("readers") / f"read_{trainer}.py"
    environ = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": f"{jobs[0]['folder']}/cache",
        "WANDB_MODE": "off",
    }
    done = subprocess.run(
        [str(root / "bin" / "python"), str(script), json.dumps(jobs)],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
        cwd=jobs[0]["folder"],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[dict[str, Any]]] = [[] for _ in jobs]
    for job, rows in zip(jobs, found, strict=True):
        rows += [{"refused": job["refused"]}] if "refused" in job else []
    for line in done.stdout.splitlines():
        if line.startswith("ROW "):
            row = json.loads(line.removeprefix("ROW "))
            found[row.pop("job")].append(row)
    return found


def _label(job: dict[str, Any]) -> None:
    """Run the script that writes the dataset for the trainer, where a configuration has one."""
    for name, written in (("label.py", labels.FOLDER), ("tools.py", tools.WRITTEN)):
        script = Path(job["folder"]) / name
        if script.exists() and not (script.parent / written).exists():
            with chdir(script.parent):
                try:
                    runpy.run_path(str(script))
                except ValueError as error:
                    job["refused"] = str(error)


def _read_trl(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the script that the card has up to the training, and collate the rows of its trainer."""
    import trl

    if "refused" in job:
        yield {"refused": job["refused"]}
        return
    made: list[Any] = []
    with (
        chdir(job["folder"]),
        patch.object(trl.SFTTrainer, "train", partialmethod(_keep, made)),
        patch.object(trl.DPOTrainer, "train", partialmethod(_keep, made)),
    ):
        script = Path("train.py")  # as on the card, but for a machine without a GPU
        script.write_text(script.read_text().replace('"student"', '"student", use_cpu=True, report_to=[]', 1))
        try:
            runpy.run_path(str(script))
        except (ValueError, RuntimeError, KeyError) as error:  # what a trainer does with a row is a finding
            yield {"failed": f"{type(error).__name__}: {error}"}
            return
    (trainer,) = made
    tokenizer = trainer.processing_class
    for row in trainer.train_dataset:
        batch = trainer.data_collator([dict(row)])
        labels = batch["labels"] if "labels" in batch else batch["input_ids"].where(batch["completion_mask"] == 1, -100)
        for ids, label in zip(batch["input_ids"].tolist(), labels.tolist(), strict=True):
            kept = [token for token in label if token != -100]
            yield {"whole": tokenizer.decode(ids), "supervised": tokenizer.decode(kept), "ids": kept}


def _keep(trainer: Any, made: list[Any]) -> None:
    made.append(trainer)


def found(bench: Bench, trainer: str, view: str, rows: list[dict[str, Any]], student: str) -> dict[str, set[str]]:
    """Return the findings on what a trainer made of a view, with the kinds of rows that have them.

    Args:
        bench: the dataset.
        trainer: the trainer.
        view: the view.
        rows: what the trainer made of it.
        student: the student.
    """
    failures = [row["failed"] for row in rows if "failed" in row]
    if "refused" in (rows[0] if rows else {}) and view == "masked":
        return {"refused by label.py": {"all"}}
    if failures:
        return {f"the trainer fails: {failures[0].strip().splitlines()[-1][:160]}": {"all"}}
    if rows and all("refused" in row for row in rows):
        return {"refused by the trainer": {"all"}}
    wanted = [one for row in bench.rows(view) for one in meant(view, row)]
    assert len(rows) == len(wanted), f"{trainer} has {len(rows)} rows of {len(wanted)}"
    family = STUDENTS[student]
    if trainer == "llamafactory" and view != "masked":  # it has templates of its own, which do not open the think tag
        family = family._replace(opens=False, calls=family.llamafactory_calls)
    table: dict[str, set[str]] = {}
    for row, one in zip(rows, wanted, strict=True):
        if "refused" in row:
            names: tuple[str, ...] = ("refused by the trainer",)
        else:
            names = findings(one, row["supervised"], family, row["whole"])
        for name in names:
            table.setdefault(name, set()).add(one.kind)
    kinds = {one.kind for one in wanted}
    return {name: {"all"} if kinds == those else those for name, those in table.items()}
