"""TRL: https://huggingface.co/docs/trl/dataset_formats."""

from __future__ import annotations

from tracefactory.trainers import labels
from tracefactory.trainers.base import Data, File, Reading, Trainer

_HEAD = """\
from datasets import load_dataset
from trl import {imports}

rows = {loaded}
"""
_SFT = """\
config = SFTConfig(output_dir="student", max_length=None{options})  # no row is cut short
SFTTrainer(model={student!r}, args=config, train_dataset=rows).train()
"""
_DPO = """\
config = DPOConfig(output_dir="student", max_length=None{options})  # no row is cut short
# Efficient Long CoT (arXiv 2505.18440) adds the SFT loss of the chosen completion: loss_type=["sigmoid", "sft"],
# loss_weights=[1.0, 0.3].
DPOTrainer(model={student!r}, args=config, train_dataset=rows).train()
"""
_MASKED = """\
# After label.py.
from datasets import load_from_disk
from trl import SFTConfig, SFTTrainer

config = SFTConfig(output_dir="student", max_length=None)  # no row is cut short
SFTTrainer(model={student!r}, args=config, train_dataset=load_from_disk({folder!r})["train"]).train()
"""
_TOOLS = """\
import json

from datasets import Features, Json, List, load_dataset
from trl import SFTConfig, SFTTrainer

rows = {loaded}


def parsed(row):
    messages = [{{key: value for key, value in one.items() if value is not None}} for one in row["messages"]]
    for call in (call for one in messages for call in one.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return {{"messages": messages, "tools": json.loads(row["tools"])}}


# Chat templates write arguments as JSON themselves: text that is JSON already would be written twice.
features = Features({{"messages": List(Json()), "tools": List(Json())}})  # datasets 4.7 or later
rows = rows.map(parsed, remove_columns=rows.column_names, features=features, load_from_cache_file=False)

"""


def _script(data: Data, view: str, imports: str, body: str, options: str = "") -> tuple[File, ...]:
    head = _HEAD.format(imports=imports, loaded=data.loaded(view))
    text = body.format(student=data.student, options=options)
    return (File("train.py", "python", f"{head}\n{text}"),)


def _preference(data: Data) -> tuple[File, ...]:
    if not data.sft_weight:
        return _script(data, "preference", "DPOConfig, DPOTrainer", _DPO)
    options = f', loss_type=["sigmoid", "sft"], loss_weights=[1.0, {data.sft_weight:g}]'
    body = "\n".join(line for line in _DPO.splitlines() if not line.startswith("#")) + "\n"
    return _script(data, "preference", "DPOConfig, DPOTrainer", body, options)


def _masked(data: Data) -> tuple[File, ...]:
    text = _MASKED.format(student=data.student, folder=labels.FOLDER)
    return labels.script(data), File("train.py", "python", text)


def _tools(data: Data) -> tuple[File, ...]:
    body = _SFT.format(student=data.student, options=", assistant_only_loss=True")
    return (File("train.py", "python", _TOOLS.format(loaded=data.loaded("tool_use")) + body),)


TRL = Trainer(
    name="trl",
    title="TRL",
    proven="1.16.0",
    readings={
        "sft": Reading(
            "the last message: reasoning, answer and end of turn.",
            lambda data: _script(data, "sft", "SFTConfig, SFTTrainer", _SFT),
        ),
        "messages": Reading(
            "every message of the assistant, through `assistant_only_loss`; without it, all messages.",
            lambda data: _script(data, "messages", "SFTConfig, SFTTrainer", _SFT, ", assistant_only_loss=True"),
        ),
        "chat": Reading(
            "every message of the assistant, through `assistant_only_loss`; the reasoning only if the chat template "
            "renders `reasoning_content`.",
            lambda data: _script(data, "chat", "SFTConfig, SFTTrainer", _SFT, ", assistant_only_loss=True"),
        ),
        "tool_use": Reading(
            "every message of the assistant, with its tool calls, through `assistant_only_loss`; the reasoning only if "
            "the chat template renders `reasoning_content`.",
            _tools,
        ),
        "preference": Reading(
            "the chosen and the rejected message, with their reasoning.",
            _preference,
        ),
        "masked": Reading(
            "the last message without what pruning cut.",
            _masked,
        ),
    },
    unread={
        "ranking": "it expects `prompt`; the view `preference` has the same pairs",
        "steps": "this version has no PRMTrainer; that of 0.24 reads the view as it is",
    },
)
