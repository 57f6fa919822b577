"""The published dataset trains: two steps of TRL's SFTTrainer on it, the reasoning in the supervised span."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.e2e.conftest import Project, Teacher
from tests.e2e.embedded import embedded


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_steps_of_sft(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project], tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    model, tokenizer = embedded()
    project = project_of(teacher_of(accuracy=0.9).url)
    project.make()
    rows = load_dataset(str(project.root / "out" / "sums" / "1"), "sft", split="train", cache_dir=str(tmp_path / "c"))
    config = trl.SFTConfig(
        output_dir=str(tmp_path / "model"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        max_length=2048,
    )
    trainer = trl.SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=config)
    (long,) = [row for row in rows if row["style"] == "long"][:1]
    place = next(index for index, row in enumerate(rows) if row["id"] == long["id"])
    encoded = trainer.train_dataset[place]
    supervised = [token for token in encoded["labels"] if token != -100]
    text = tokenizer.decode(supervised)
    assert "</think>" in text
    assert long["completion"][0]["content"].split("</think>")[0].removeprefix("<think>").strip()[:40] in text
    trained = trainer.train()
    assert trained.global_step == 2
    assert trained.training_loss > 0
