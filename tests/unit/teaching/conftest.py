"""A student of a few thousand weights, its tokenizer, and rows for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.teach import TrainingBudget
from tracefactory.students.render import Renderer
from tracefactory.teaching.budget import plan_rows, write_plan
from tracefactory.teaching.encoding import encode_rows
from tracefactory.teaching.job import Arguments, TrainingJob
from tracefactory.teaching.rows import TrainingRow

ARGUMENTS = Arguments(
    learning_rate=1e-2, batch_rows=2, max_length=128, save_every=2, device="cpu", schedule="linear", warmup=0.2
)


def row(number: int, reasoning: str = "one and one", answer: str = "two") -> TrainingRow:
    question = {"role": "user", "content": f"sum {number}"}
    last = {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
    return TrainingRow(f"row{number}", f"problem{number // 2}", "short", (question,), last)


ROWS = [row(number, "one " * (1 + number % 3)) for number in range(9)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a Llama with random weights in a folder."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.bench.gpu.models import plain_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    plain_tokenizer(262).save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=262,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=261,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Checkpoint(model=str(folder), device="cpu")


@pytest.fixture(scope="session")
def tokenizer(tiny: Checkpoint) -> Any:
    from tracefactory.serving.loading import load_tokenizer

    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer, "inline")


def job_of(
    folder: Path, tiny: Checkpoint, renderer: Renderer, rows: Sequence[TrainingRow] = ROWS, **arguments: Any
) -> TrainingJob:
    """Return a job that trains on each row once."""
    encoded = encode_rows(rows, renderer, ARGUMENTS.max_length)
    assert not encoded.refused
    path, digest = write_plan(folder, encoded.table, plan_rows(encoded.table, TrainingBudget(rows=len(rows)), seed=3))
    chosen = ARGUMENTS.model_copy(update=arguments)
    return TrainingJob(student=tiny, rows=path, rows_digest=digest, arguments=chosen, seed=5)
