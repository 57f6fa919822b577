"""Tokenize labelled steps with the PRMTrainer of TRL 0.24, which later versions moved and 1.16 no longer has."""

import json
import sys

from datasets import load_dataset
from reading import each_job
from transformers import AutoTokenizer
from trl import PRMTrainer


def read(job):
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    for row in load_dataset("parquet", data_files=f"{job['release']}/data/steps/*.parquet", split="train"):
        limits = {"max_length": None, "max_prompt_length": None, "max_completion_length": None}
        made = PRMTrainer.tokenize_row(row, tokenizer, "\n", train_on_last_step_only=False, is_eval=False, **limits)
        ids, labels = made["input_ids"], made["labels"]
        ends = [tokenizer.decode(ids[: place + 1]) for place, label in enumerate(labels) if label != -100]
        yield {"ends": ends, "labels": [label for label in labels if label != -100]}


each_job(json.loads(sys.argv[1]), read)
