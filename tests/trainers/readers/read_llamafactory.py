"""Load, tokenize and collate with LLaMA-Factory's own code; runs in its environment."""

# ruff: noqa: E402
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

sys.modules["torchaudio"] = audio = ModuleType("torchaudio")  # its builds do not load beside a torch for CPUs
audio.__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.data import (
    PairwiseDataCollatorWithPadding,
    SFTDataCollatorWith4DAttentionMask,
    get_dataset,
    get_template_and_fix_tokenizer,
)
from llamafactory.hparams import get_train_args
from reading import each_job, settings
from transformers import AutoTokenizer


def read(job):
    config = settings(job)
    config |= {"dataset_dir": job["folder"], "template": job["template"], "model_name_or_path": job["tokenizer"]}
    config |= {"output_dir": f"{job['folder']}/student", "report_to": "none", "overwrite_cache": True}
    config |= job.get("changed", {})
    model_args, data_args, training_args, _, _ = get_train_args(config)
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    stage = "rm" if config["stage"] == "dpo" else "sft"
    common = {"template": template, "model_args": model_args, "data_args": data_args, "training_args": training_args}
    rows = get_dataset(**common, stage=stage, tokenizer=tokenizer)["train_dataset"]
    kind = PairwiseDataCollatorWithPadding if stage == "rm" else SFTDataCollatorWith4DAttentionMask
    collate = kind(template=template, tokenizer=tokenizer, label_pad_token_id=-100)
    for row in rows:
        batch = collate([dict(row)])
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            kept = [token for token in labels if token != -100]
            yield {"whole": tokenizer.decode(ids), "supervised": tokenizer.decode(kept), "ids": kept}


each_job(json.loads(sys.argv[1]), read)
