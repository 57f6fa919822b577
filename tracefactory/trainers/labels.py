"""The script that turns the view `masked` into token ids and labels for one student, which trainers take as they are.

Trainers that find a message's tokens by themselves can be wrong where a chat template rewrites the message: axolotl
with Qwen3's template trains on the first words of what was cut. The script refuses such a template.
"""

from __future__ import annotations

from tracefactory.trainers.base import Data, File

FOLDER = "masked-labels"
"""Where the script writes the dataset, for `datasets.load_from_disk`."""

_SCRIPT = """\
from datasets import DatasetDict, load_dataset
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({student!r})
rows = {loaded}


def labelled(row):
    *before, last = [{{"role": one["role"], "content": one["content"]}} for one in row["masked_messages"]]
    prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template([*before, last], tokenize=False).rstrip("\\n")
    at = text.rfind(last["content"])
    if at < 0:
        raise ValueError("the chat template rewrites the message, so it is not known what was cut: take another one")
    details = row["masked_messages"][-1]["train_detail"]
    cut = [(at + one["begin_offset"], at + one["end_offset"]) for one in details if not one["train"]]
    first = max(at, len(prompt)) if text.startswith(prompt) else at
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) > {longest}:
        raise ValueError(f"row {{row['id']}} has {{len(ids)}} tokens, and no trainer is to cut it short")
    # A token belongs where its text begins: many tokenizers put the space before a word into its token.
    begins = [end - len(text[start:end].lstrip() or text[start:end]) for start, end in offsets]
    trained = [
        end > first and not any(begin <= start <= stop for begin, stop in cut)
        for start, (_, end) in zip(begins, offsets)
    ]
    labels = [token if counts else -100 for token, counts in zip(ids, trained)]
    return {{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}}


made = rows.map(labelled, remove_columns=rows.column_names, load_from_cache_file=False)
DatasetDict(train=made).save_to_disk({folder!r})
"""


def script(data: Data) -> File:
    """Return the script; it needs `datasets` and `transformers` alone.

    Args:
        data: the dataset and the student, whose tokenizer and chat template it uses.
    """
    values = {"student": data.student, "loaded": data.loaded("masked"), "longest": data.longest}
    return File("label.py", "python", _SCRIPT.format(folder=FOLDER, **values))
