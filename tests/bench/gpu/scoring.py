"""Scoring of traces by a student, against the bare forward passes that it cannot do without."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.models import plain_tokenizer, random_model
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.students.render import Rendered
from tracefactory.students.student import Student, length_batches

ROUNDS = 3


def measure(shape: str, dtype: str, device: str, folder: Path, words: Sequence[int], budgets: Sequence[int]) -> Any:
    """Measure a student of a shape, by the number of tokens in one batch.

    Args:
        shape: the name of its shape.
        dtype: the arithmetic.
        device: the torch device.
        folder: where its checkpoint is written to.
        words: the lengths of the traces in words.
        budgets: the padded tokens of one batch (`max_batch_tokens`).

    Returns:
        JSON data: a line per budget, with the ratio of speeds and the peak of memory.
    """
    model = random_model(shape, getattr(torch, dtype), device, 2)
    model.save_pretrained(folder)
    tokenizer = plain_tokenizer(model.config.vocab_size)
    tokenizer.save_pretrained(folder)
    del model
    lines = []
    for budget in budgets:
        student = Student(Checkpoint(model=str(folder), dtype=dtype, device=device, max_batch_tokens=budget))
        rendered = traces(student, words)
        tokens = sum(item.stop for item in rendered)
        free(device)
        bare = least(partial(bare_forward, student, rendered), device)
        free(device)
        ours = least(partial(student.score, rendered), device)
        lines.append(
            {
                "max_batch_tokens": budget,
                "traces": len(rendered),
                "tokens": tokens,
                "bare_tokens_per_s": round(tokens / bare, 1),
                "tokens_per_s": round(tokens / ours, 1),
                "ratio": round(bare / ours, 3),
                "peak_bytes": peak(device),
            }
        )
    return lines


def traces(student: Student, words: Sequence[int]) -> list[Rendered]:
    """Return renderings of random traces with these numbers of words."""
    chance, text = random.Random(7), "so the sum of 12 and 30 is 42 wait let me check that again"
    return [student.render("How many?", " ".join(chance.choices(text.split(), k=count)), "42") for count in words]


def bare_forward(student: Student, rendered: Sequence[Rendered]) -> None:
    """Run the same batches through the model: logits of every position, nothing kept."""
    for batch in length_batches([item.stop for item in rendered], student.spec.max_batch_tokens):
        ids = torch.zeros((len(batch), max(rendered[index].stop for index in batch)), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, : rendered[index].stop] = torch.from_numpy(rendered[index].ids[: rendered[index].stop])
        with torch.inference_mode():
            student.model(input_ids=ids.to(student.model.device), use_cache=False)


def least(run: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Return the least seconds of several rounds, after one that is not counted."""
    run()
    found = []
    for _ in range(rounds):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    """Free cached memory, and count the peak from now on."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int | None:
    """Return the peak of memory on the device in bytes; None on the CPU, where torch does not count it."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None
