"""Both training forms of pruned traces train: masked spans carry no loss, pairs go through DPO with an SFT term."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from datasets import load_dataset, load_from_disk

from tests.e2e.conftest import Project
from tests.e2e.embedded import embedded
from tracefactory.trainers import TRAINERS, Data, snippet

PIPELINE = """\
name: pruned
version: "1"
stages:
  - {id: raw, source: traces, with: {paths: traces.jsonl, question: q, answer: a, model: someone}}
  - {id: checked, verify: auto}
  - {id: cut, prune: verification_steps, with: {check: answer}}
  - {id: dataset, publish: dataset, with: {views: [masked, preference], sft_weight: 0.3, licence: mit}}
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
def test_the_masked_form_trains_on_what_was_kept_alone(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    model, tokenizer = embedded()
    student = tmp_path / "student"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    monkeypatch.chdir(tmp_path)
    label, _ = snippet(TRAINERS["trl"], "masked", Data(release, student=str(student)))
    Path(label.name).write_text(label.text)
    runpy.run_path(label.name)
    made = load_from_disk("masked-labels")["train"]
    for one in made:
        whole, trained = tokenizer.decode(one["input_ids"]), tokenizer.decode([t for t in one["labels"] if t != -100])
        assert "Let me check" in whole
        assert "Let me check" not in trained
        assert "Take " in trained
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
    card = Path(release, "README.md").read_text()
    assert "SFT loss of the chosen completion with weight 0.3" in card
    (told,) = re.findall(r"loss_type=(\[.*?\]), loss_weights=(\[.*?\])", card)  # as the card's configuration has them
    loss_type, loss_weights = map(json.loads, told)
    assert dict(zip(loss_type, loss_weights, strict=True)) == {"sigmoid": 1.0, "sft": 0.3}
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "model"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        max_length=512,
        loss_type=loss_type,
        loss_weights=loss_weights,
    )
    before = deepcopy(model)  # weights out of a GGUF file cannot be loaded again by their path alone
    trainer = trl.DPOTrainer(model=model, ref_model=before, processing_class=tokenizer, train_dataset=rows, args=config)
    trained = trainer.train()
    assert trained.global_step == 2
    assert trained.training_loss > 0
