"""Both training forms of pruned traces train: masked spans carry no loss, pairs go through DPO with an SFT term."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from tests.e2e.conftest import Project
from tests.e2e.embedded import embedded
from tracefactory.pruning import loss_mask

PIPELINE = """\
name: pruned
version: "1"
stages:
  - {id: raw, source: traces, with: {paths: traces.jsonl, question: q, answer: a, model: someone}}
  - {id: checked, verify: auto}
  - {id: cut, prune: verification_steps, with: {check: answer}}
  - {id: dataset, publish: dataset, with: {views: [masked, preference], licence: mit}}
run: {executor: inline}
"""
CHECK = "Let me check: {p} / {b} = {a}, which fits."
THOUGHT = "Take {a} rows of {b}.\n\nThat makes {a} * {b} = {p}.\n\nSo the answer is {p}.\n\n" + CHECK + "\n\nIt is {p}."


@pytest.fixture
def release(project_of: Callable[..., Project]) -> str:
    """Publish eight pruned traces and return the folder."""
    project = project_of("http://localhost:1/v1")
    project.pipeline.write_text(PIPELINE)
    with (project.root / "traces.jsonl").open("w") as file:
        for a, b in ((2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 11)):
            thought = THOUGHT.format(a=a, b=b, p=a * b)
            row = {"q": f"{a} times {b}?", "a": str(a * b), "response": f"<think>{thought}</think>\\boxed{{{a * b}}}"}
            file.write(json.dumps(row) + "\n")
    outcome = project.make()
    assert {stage["id"]: stage for stage in outcome["stages"]}["cut"]["tally"]["numbers"]["pruned"] == 8
    return str(project.root / "out" / "pruned" / "1")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_masked_form_trains_on_what_was_kept_alone(release: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model, tokenizer = embedded()
    rows = load_dataset(release, "masked", split="train", cache_dir=str(tmp_path / "c"))

    def encoded(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        text = tokenizer(row["completion"][0]["content"], add_special_tokens=False, return_offsets_mapping=True)
        mask = loss_mask(text["offset_mapping"], [(span["start"], span["end"]) for span in row["masked"]])
        labels = [token if counts else -100 for token, counts in zip(text["input_ids"], mask, strict=True)]
        return {"input_ids": before + text["input_ids"], "labels": [-100] * len(before) + labels}

    made = Dataset.from_list([encoded(row) for row in rows])
    for row, one in zip(rows, made, strict=True):
        whole, trained = tokenizer.decode(one["input_ids"]), tokenizer.decode([t for t in one["labels"] if t != -100])
        assert "Let me check" in whole
        assert "Let me check" not in trained
        assert row["completion"][0]["content"].split("\n\n")[1] in trained
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    config = trl.SFTConfig(output_dir=str(tmp_path / "model"), max_length=512, **options)
    trainer = trl.SFTTrainer(model=model, processing_class=tokenizer, train_dataset=made, args=config)
    (first,) = [dict(row) for row in trainer.train_dataset.select([0])]
    assert list(first["labels"]) == made[0]["labels"]
    trained = trainer.train()
    assert trained.global_step == 2
    assert trained.training_loss > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_pairs_train_with_an_sft_term(release: str, tmp_path: Path) -> None:
    """Efficient Long CoT (arXiv 2505.18440) adds the SFT loss of the chosen trace with weight 0.3."""
    trl = pytest.importorskip("trl")
    model, tokenizer = embedded()
    rows = load_dataset(release, "preference", split="train", cache_dir=str(tmp_path / "c"))
    assert rows.num_rows == 8
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "model"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        max_length=512,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.3],
    )
    before = deepcopy(model)  # weights out of a GGUF file cannot be loaded again by their path alone
    trainer = trl.DPOTrainer(model=model, ref_model=before, processing_class=tokenizer, train_dataset=rows, args=config)
    trained = trainer.train()
    assert trained.global_step == 2
    assert trained.training_loss > 0
