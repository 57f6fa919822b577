"""TRL's SFTTrainer on rows that are encoded already, and the proof that it takes them as they are.

Imported in the training process alone: it needs the extra `teach`.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.files import sync_folder, write_json
from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.store.trainings import RECORD
from tracefactory.students.render import Renderer
from tracefactory.teaching.budget import order_of
from tracefactory.teaching.encoding import IGNORED, digest_of_rows, mask_lines
from tracefactory.teaching.job import (
    AUTO_RANK,
    FULL_BELOW,
    MODEL,
    RECIPE,
    TRAINER,
    Progress,
    Record,
    Step,
    TrainingJob,
    digests_of,
)

_PACKAGES = ("tracefactory", "trl", "transformers", "torch", "peft", "accelerate", "datasets", "tokenizers", "gguf")
_WHOLE = "whole"  # a file in a checkpoint of TRL that is written after all others
_NOT_RECORDED = ("output_dir", "logging_dir", "hub_token", "run_name", "_n_gpu")  # paths and secrets of a machine


def train_here(job: TrainingJob, folder: Path, say: Progress) -> Record:
    """Train a student in this process and write its model and its record.

    Args:
        job: what to train.
        folder: the folder of the training; checkpoints of an earlier process in it are continued.
        say: called with each line of progress.

    Raises:
        UserError: when the student or the rows are wrong, or there is no such device.
        RunError: when the trainer would do, or has done, something else than was planned.
    """
    arguments = job.arguments
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {arguments.device!r}: torch {torch.__version__} finds no GPU here")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a cost, for memory that no operation here reads
    tokenizer = load_tokenizer(job.student)
    Renderer(tokenizer, job.student.reasoning).check()
    rows = planned_rows(job)
    trainer, sizes = _trainer(job, folder, tokenizer, rows, say)
    batch = next(iter(trainer.get_train_dataloader()))
    check_batch(batch, rows)
    mask = mask_lines(tokenizer, *(batch[name][0].tolist() for name in ("input_ids", "labels")))
    begun, at = time.monotonic(), last_checkpoint(folder / TRAINER)
    set_seed(job.seed)
    trainer.train(resume_from_checkpoint=str(at) if at else None)
    seconds = time.monotonic() - begun
    curve = _curve(trainer.state.log_history)
    _check_counts(curve, rows, trainer.state, arguments.batch_rows * arguments.accumulate)
    _save(trainer.model, tokenizer, folder / MODEL)
    record = Record(
        key=job.key(),
        recipe=RECIPE,
        versions=_versions(),
        device=torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else _cpu(),
        seed=job.seed,
        arguments=arguments,
        trainer={name: one for name, one in trainer.args.to_dict().items() if name not in _NOT_RECORDED},
        **sizes,
        rows=len(rows),
        cut=pc.sum(rows["cut"]).as_py(),
        answers_lost=pc.sum(rows["answer_lost"]).as_py(),
        tokens=sum(one.tokens for one in curve),
        steps=len(curve),
        resumed_at=0 if at is None else _step_of(at),
        seconds=seconds,
        curve=tuple(curve),
        mask=tuple(mask),
        files=digests_of(folder / MODEL),
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
    shutil.rmtree(folder / TRAINER, ignore_errors=True)  # several times the size of the model
    return record


def planned_rows(job: TrainingJob) -> pa.Table:
    """Return the rows of a job in the order of training, repeats included.

    Raises:
        UserError: when the file is missing or is not the one that the job was made for, or a row is too long.
    """
    try:
        table = pq.read_table(job.rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read the rows to train on: {error}") from error
    if (found := digest_of_rows(table)) != job.rows_digest:
        raise UserError(f"{job.rows}: its contents have the digest {found}, not {job.rows_digest}: it was changed")
    if len(table) == 0:
        raise UserError(f"{job.rows}: there is no row to train on")
    longest = pc.max(pc.list_value_length(table["input_ids"])).as_py()
    if longest > job.arguments.max_length:
        raise UserError(f"{job.rows}: a row has {longest} tokens; `max_length` is {job.arguments.max_length}")
    return table.drop_columns("places").take(pa.array(order_of(table)))


def check_batch(batch: Any, rows: pa.Table) -> None:
    """Check that a collated batch is the first rows as they were encoded, and that nothing else is in its loss.

    Args:
        batch: what the trainer's data loader gives: `input_ids`, `labels` and `attention_mask`, padded.
        rows: the rows in the order of training.

    Raises:
        RunError: when the batch differs.
    """
    size, width = batch["input_ids"].shape
    for number, row in enumerate(rows.slice(0, size).to_pylist()):
        length = len(row["input_ids"])
        padding = width - length
        wanted = {
            "input_ids": [*row["input_ids"], *batch["input_ids"][number, length:].tolist()],  # any token pads
            "labels": [*row["labels"], *[IGNORED] * padding],
            "attention_mask": [1] * length + [0] * padding,
        }
        for name, values in wanted.items():
            found = batch[name][number].tolist()
            if found != values:
                pairs = enumerate(zip(found, values, strict=False))
                at = next((n for n, (one, other) in pairs if one != other), min(len(found), len(values)))
                what = f"row {number} of the first batch has other {name} than were encoded, from token {at} on"
                raise RunError(f"{what}: nothing was trained")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last whole checkpoint of TRL in a folder, and delete those that were not finished.

    Args:
        folder: the trainer's folder, which may be missing.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=_step_of, default=None)


def _trainer(
    job: TrainingJob, folder: Path, tokenizer: Any, rows: pa.Table, say: Progress
) -> tuple[Any, dict[str, Any]]:
    """Return TRL's trainer with the student, and `lora_rank`, `parameters` and `trained_parameters` of the record."""
    set_seed(job.seed)
    model = load_model(job.student.model_copy(update={"dtype": "float32", "device": "cpu"}))
    model.requires_grad_(True).train()
    parameters, rank = sum(one.numel() for one in model.parameters()), job.arguments.lora_rank
    if rank == "auto":
        rank = None if parameters < FULL_BELOW else AUTO_RANK
    trainer = _CheckedTrainer(
        model=model,
        args=_config(job, folder, len(rows)),
        processing_class=tokenizer,
        train_dataset=Dataset(rows.select(["input_ids", "labels"])),
        peft_config=None if rank is None else _lora(rank),
        callbacks=[_Watch(say)],
    )
    trained = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    return trainer, {"lora_rank": rank, "parameters": parameters, "trained_parameters": trained}


class _CheckedTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, which also counts the tokens in each loss and stops at a loss that is no number."""

    _seen = 0  # tokens with a label since the last step
    _divisor = 0  # tokens that the loss of the step was divided by

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self._seen += int((inputs["labels"][..., 1:] != IGNORED).sum())
        self._divisor = -1 if num_items_in_batch is None else int(num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise RunError(f"the loss is {logs['loss']} at step {self.state.global_step}: lower `learning_rate`")
            if self._seen != self._divisor:
                raise RunError(f"the loss of {self._seen} tokens was divided by {self._divisor}")
            logs["tokens_in_loss"] = self._seen
            self._seen = 0
        super().log(logs, start_time)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and marks checkpoints that are whole."""

    def __init__(self, say: Progress) -> None:
        self._say = say

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            tokens = sum(one.get("tokens_in_loss", 0) for one in state.log_history)
            self._say({"step": state.global_step, "steps": state.max_steps, "loss": logs["loss"], "tokens": tokens})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the model is saved at once, and the checkpoint is four times as large

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _sync(folder)
        (folder / _WHOLE).touch()
        sync_folder(folder)
        self._say({"saved": state.global_step})


def _config(job: TrainingJob, folder: Path, rows: int) -> Any:
    arguments = job.arguments
    steps = math.ceil(rows / (arguments.batch_rows * arguments.accumulate))
    return SFTConfig(
        output_dir=str(folder / TRAINER),
        max_length=None,  # rows are cut, and counted, when they are encoded; 1024 is TRL's default
        packing=False,
        train_sampling_strategy="sequential",  # the plan has the order, with its repeats
        num_train_epochs=1,
        dataloader_drop_last=False,
        per_device_train_batch_size=arguments.batch_rows,
        gradient_accumulation_steps=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type=arguments.schedule,
        warmup_steps=int(arguments.warmup * steps),  # a share would be rounded up, and the first step have rate 0
        weight_decay=arguments.weight_decay,
        bf16=arguments.dtype == "bfloat16",  # TRL's default is True
        gradient_checkpointing=arguments.recompute,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=arguments.device == "cpu",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=arguments.save_every,
        save_total_limit=2,  # the older one is whole while the newer one is written
        report_to=[],
        disable_tqdm=True,
        push_to_hub=False,
    )


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _curve(history: Sequence[dict[str, Any]]) -> list[Step]:
    return [
        Step(step=one["step"], loss=one["loss"], learning_rate=one["learning_rate"], tokens=one["tokens_in_loss"])
        for one in history
        if "tokens_in_loss" in one
    ]


def _check_counts(curve: Sequence[Step], rows: pa.Table, state: Any, rows_per_step: int) -> None:
    """Check that the trainer did the steps of the plan with the tokens of each.

    Raises:
        RunError: when it did not.
    """
    supervised = pc.list_flatten(rows["labels"]).to_numpy() != IGNORED
    ends = np.cumsum(pc.list_value_length(rows["labels"]).to_numpy(), dtype=np.int64)
    begins = np.concatenate([[0], ends])[:-1][::rows_per_step]
    wanted = np.add.reduceat(supervised.astype(np.int64), begins).tolist()
    if [one.tokens for one in curve] != wanted or [one.step for one in curve] != list(range(1, len(wanted) + 1)):
        found = f"{state.global_step} steps with {sum(one.tokens for one in curve)} tokens in the loss"
        raise RunError(f"the trainer made {found}; the plan has {len(wanted)} with {sum(wanted)}")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights and tokenizer; adapters are merged into the weights."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    temporary = folder.with_name(f".{folder.name}.writing")
    for old in (temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    _sync(temporary)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _sync(folder: Path) -> None:
    """Sync the files of a folder to the disk."""
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _step_of(checkpoint: Path) -> int:
    found = re.search(r"\d+$", checkpoint.name)
    return int(found.group()) if found else 0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpu() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
