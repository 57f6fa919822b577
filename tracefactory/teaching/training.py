"""Train a student once, in a process of its own: `python -m tracefactory.teaching.training job.json`.

The process writes its progress to its standard output, one JSON object a line, and everything that libraries print to
the log in its folder. It ends with its parent. A training that was killed is continued from its last whole checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.files import write_json
from tracefactory.core.processes import PASSIVE_THREADS, end_with_parent
from tracefactory.store.trainings import LOG, RECORD
from tracefactory.teaching.job import JOB, MODEL, Progress, Record, TrainingJob, done

_TAIL = 2000  # characters of the log in an error


@dataclass(frozen=True)
class Trained:
    """A trained student. `reused` says that it had been trained before."""

    folder: Path
    record: Record
    reused: bool

    @property
    def model(self) -> Path:
        """The folder with its weights and tokenizer, as transformers loads them."""
        return self.folder / MODEL


def train(job: TrainingJob, root: Path, progress: Progress | None = None) -> Trained:
    """Train a student, or return the one that was trained by an equal job.

    Call it from a thread that lives as long as the training (see `core.processes`).

    Args:
        job: what to train.
        root: the folder of all trainings; this one has a folder in it that is named after its key.
        progress: called with each line of progress: `step`, `steps`, `loss`, `tokens` (in the loss, so far).

    Raises:
        UserError: when the student, the rows or the arguments are wrong.
        RunError: when the training fails; checkpoints are kept, and the same call continues it.
    """
    folder = job.folder(root)
    if (record := done(folder)) is not None:
        return Trained(folder, record, reused=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB, job.model_dump(mode="json"))
    (folder / RECORD).unlink(missing_ok=True)  # a damaged one
    failure = _run(job, folder, progress or (lambda line: None))
    if failure is not None:
        raise failure
    if (record := done(folder)) is None:
        raise RunError(f"the training in {folder} ended without a whole record; see {folder / LOG}")
    return Trained(folder, record, reused=False)


def _run(job: TrainingJob, folder: Path, progress: Progress) -> Exception | None:
    """Run the training process to its end; return its failure."""
    argv = [sys.executable, "-m", "tracefactory.teaching.training", str(folder / JOB)]
    failure: Exception | None = None
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(job.arguments.device),
            start_new_session=True,
        )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if "mistakes" in event:
                failure = UserError(f"{event['mistakes']}")
            elif "error" in event:
                failure = RunError(event["error"])
            else:
                progress(event)
        process.stdin.close()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if code and failure is None:
        tail = (folder / LOG).read_text("utf-8", "replace")[-_TAIL:]
        failure = RunError(f"the training ended with status {code}; the end of {folder / LOG}:\n{tail}")
    return failure


def _environment(device: str) -> dict[str, str]:
    """Return the environment of the process: one device is visible, because a trainer takes all that it sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = int(device.partition(":")[2] or 0)
    seen = [str(number)] * (number + 1) if given is None else [one for one in given.split(",") if one]
    if device.startswith("cuda") and number >= len(seen):
        raise UserError(f"device {device!r}: CUDA_VISIBLE_DEVICES={given!r} has {len(seen)} devices")
    chosen = "" if device == "cpu" else ",".join(seen[number : number + 1])
    return {
        **PASSIVE_THREADS,
        **os.environ,
        "CUDA_VISIBLE_DEVICES": chosen,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, cuBLAS is not deterministic
        "TOKENIZERS_PARALLELISM": "false",
    }


def main() -> None:
    """Run the job in the file that is named on the command line, and leave with status 1 when it fails."""
    end_with_parent()
    # Libraries print to the standard output, which is for the lines of progress.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(line: Mapping[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")

    path = Path(sys.argv[1])
    try:
        job = TrainingJob.model_validate_json(path.read_bytes())
        run_here(job, path.parent, say)
    except UserError as error:
        say({"mistakes": str(error)})
        raise SystemExit(2) from None
    except RunError as error:
        traceback.print_exc()
        say({"error": str(error)})
        raise SystemExit(1) from None


def run_here(job: TrainingJob, folder: Path, say: Progress) -> Record:
    """Train in this process.

    Args:
        job: what to train.
        folder: the folder of the training.
        say: called with each line of progress.

    Raises:
        UserError: when the extra `teach` is not installed, or the student or the rows are wrong.
        RunError: when another process trains in this folder, or the trainer does something else than was planned.
    """
    try:
        from tracefactory.teaching.trainer import train_here
    except ModuleNotFoundError as error:
        raise UserError(f"training needs {error.name}: pip install 'tracefactory[teach]'") from error
    with (folder / LOG).open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process trains in {folder}; wait for it, or end it") from None
        return train_here(job, folder, say)


if __name__ == "__main__":
    main()
