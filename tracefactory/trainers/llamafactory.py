"""LLaMA-Factory: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md.

Its `openai` format writes "detailed thinking off" into every system message (version 0.9.5), so `sharegpt` it is.
"""

from __future__ import annotations

import json
from typing import Any

from tracefactory.trainers import labels, tools
from tracefactory.trainers.base import Data, File, Reading, Trainer

_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_TRAIN = """\
# In the folder of dataset_info.json: llamafactory-cli train train.yaml
model_name_or_path: {student}
dataset: tracefactory
dataset_dir: .
template: CHOOSE  # the student's: qwen, qwen3, deepseekr1, llama3 ...
cutoff_len: {longest}  # a longer row is cut short without an error
stage: {stage}
do_train: true
finetuning_type: full
output_dir: student
{options}"""


def _files(data: Data, view: str, entry: dict[str, Any], stage: str, options: str) -> tuple[File, ...]:
    place = {"hf_hub_url": data.place, "subset": view} if data.hub else {"file_name": data.files(view)}
    info = {"tracefactory": {**place, "formatting": "sharegpt", **entry, "tags": _TAGS}}
    train = _TRAIN.format(student=json.dumps(data.student), longest=data.longest, stage=stage, options=options)
    return File("dataset_info.json", "json", json.dumps(info, indent=2) + "\n"), File("train.yaml", "yaml", train)


def _messages(data: Data) -> tuple[File, ...]:
    return _files(data, "messages", {"columns": {"messages": "messages"}}, "sft", "")


def _ranking(data: Data) -> tuple[File, ...]:
    columns = {name: name for name in ("messages", "chosen", "rejected")}
    options = f"pref_beta: 0.1\npref_ftx: {data.sft_weight}"
    options += "\n" if data.sft_weight else "  # Efficient Long CoT (arXiv 2505.18440) adds the SFT loss with 0.3\n"
    return _files(data, "ranking", {"ranking": True, "columns": columns}, "dpo", options)


def _tools(data: Data) -> tuple[File, ...]:
    tags = {**_TAGS, "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"}
    columns = {"messages": "messages", "tools": "tools"}
    entry = {"file_name": tools.WRITTEN, "formatting": "sharegpt", "columns": columns, "tags": tags}
    train = _TRAIN.format(student=json.dumps(data.student), longest=data.longest, stage="sft", options="")
    train = train.replace("# In the folder of dataset_info.json: ", "# After tools.py, in the same folder: ")
    info = File("dataset_info.json", "json", json.dumps({"tracefactory": entry}, indent=2) + "\n")
    return tools.script(data), info, File("train.yaml", "yaml", train)


def _masked(data: Data) -> tuple[File, ...]:
    train = _TRAIN.format(student=json.dumps(data.student), longest=data.longest, stage="sft", options="")
    train = train.replace("# In the folder of dataset_info.json: ", "# After label.py: ")
    train = train.replace("dataset_dir: .\n", f"tokenized_path: {labels.FOLDER}  # is read in its place\n")
    return labels.script(data), File("train.yaml", "yaml", train)


LLAMA_FACTORY = Trainer(
    name="llamafactory",
    title="LLaMA-Factory",
    proven="0.9.5",
    readings={
        "messages": Reading("every message of the assistant: reasoning, answer and end of turn.", _messages),
        "tool_use": Reading("every message of the assistant: reasoning, tool calls, answer and end of turn.", _tools),
        "masked": Reading("the last message without what pruning cut.", _masked),
        "ranking": Reading("the chosen and the rejected message, with their reasoning.", _ranking),
    },
    unread={
        "chat": "it copies `role` and `content` and drops the reasoning; the view `messages` has it inline",
        "preference": "it skips pairs whose completions are lists; the view `ranking` has the same pairs",
        "sft": "it has no layout with two lists of messages; the view `messages` has the same texts",
    },
)
