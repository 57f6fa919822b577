"""Load, tokenize and collate with verl's own datasets; runs in its environment."""

import json
import sys

from omegaconf import OmegaConf
from reading import each_job, settings
from transformers import AutoTokenizer
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

PROMPT = ("raw_prompt", "data_source", "ability", "reward_model", "index", "extra_info")


def read(job):
    config = OmegaConf.create(settings(job)["data"])
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    files = list(config.train_files)
    if "prompt_key" in config:
        config.filter_overlong_prompts_workers = 1
        rows = RLHFDataset(files, tokenizer, config)
        batch = collate_fn([rows[number] for number in range(len(rows))])
        yield from ({name: batch[name][number] for name in PROMPT} for number in range(len(rows)))
        return
    config.update({"pad_mode": "no_padding", **job.get("changed", {})})
    rows = MultiTurnSFTDataset(files, tokenizer, config)
    for number in range(len(rows)):
        try:
            batch = SFTTensorCollator("no_padding")([rows[number]])
        except AssertionError as error:
            yield {"refused": str(error)[:300]}
            continue
        ids, mask = batch["input_ids"].values().tolist(), batch["loss_mask"].values().tolist()
        kept = [token for token, counts in zip(ids, mask, strict=True) if counts]
        yield {"whole": tokenizer.decode(ids), "supervised": tokenizer.decode(kept), "ids": kept}


each_job(json.loads(sys.argv[1]), read)
