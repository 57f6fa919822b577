"""Load, tokenize and collate with axolotl's own code; runs in its environment."""

import json
import sys

from axolotl.prompt_strategies.dpo import load as load_dpo
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data.sft import _load_and_process_single_dataset
from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import DPODataset, SFTDataset, StepwiseSupervisedDataset
from reading import each_job, settings
from transformers import AutoTokenizer


def read(job):
    config = settings(job)
    (entry,) = config["datasets"]
    kind = {"chat_template": SFTDataset, "chat_template.default": DPODataset}.get(
        entry["type"], StepwiseSupervisedDataset
    )
    kind.model_validate(entry)
    unknown = set(entry) - set(kind.model_fields) - set(SFTDataset.model_fields)
    assert not unknown, f"axolotl has no field {unknown}"
    cfg = DictDefault({**config, "train_on_inputs": False, "dataset_num_proc": 1})
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    if config.get("rl") == "dpo":
        yield from pairs(cfg, tokenizer)
        return
    rows, _ = _load_and_process_single_dataset(cfg.datasets[0], cfg, tokenizer, "train", 0)
    collate = DataCollatorForSeq2Seq(tokenizer)
    for row in rows:
        batch = collate([{name: row[name] for name in ("input_ids", "labels", "attention_mask")}])
        ids, labels = batch["input_ids"].tolist()[0], batch["labels"].tolist()[0]
        kept = [token for token in labels if token != -100]
        if "stepwise" in entry["type"]:
            ends = [tokenizer.decode(ids[: place + 1]) for place, label in enumerate(labels) if label != -100]
            yield {"ends": ends, "labels": kept}
        else:
            yield {"whole": tokenizer.decode(ids), "supervised": tokenizer.decode(kept), "ids": kept}


def pairs(cfg, tokenizer):
    transform, _ = load_dpo(cfg.datasets[0].type, cfg, dataset_idx=0)
    for row in load_dataset_with_config(cfg.datasets[0], None):
        made = transform(row, tokenizer=tokenizer)
        for side in ("chosen", "rejected"):
            yield {"whole": made["prompt"] + made[side], "supervised": made[side], "ids": []}


each_job(json.loads(sys.argv[1]), read)
