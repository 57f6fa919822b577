"""axolotl: https://docs.axolotl.ai/docs/dataset-formats/conversation.html."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from tracefactory.trainers import labels
from tracefactory.trainers.base import Data, File, Reading, Trainer


def _config(data: Data, view: str, dataset: dict[str, Any], **more: Any) -> tuple[File, ...]:
    place: dict[str, Any] = {"path": data.place, "name": view, "split": "train"}
    if data.hub and data.revision:
        place["revision"] = data.revision
    if not data.hub and data.place != labels.FOLDER:
        place |= {"ds_type": "parquet", "data_files": [data.pattern(view)]}
    config = {
        "base_model": data.student,
        "chat_template": "tokenizer_default",
        "datasets": [{**place, **dataset}],
        "sequence_len": data.longest,
        "excess_length_strategy": "raise",
        **more,
    }
    note = (
        "# axolotl train train.yaml. Where the end of a turn is not the tokenizer's EOS token, name it in eot_tokens.\n"
    )
    return (File("train.yaml", "yaml", note + yaml.safe_dump(config, sort_keys=False)),)


def _messages(data: Data) -> tuple[File, ...]:
    return _config(data, "messages", {"type": "chat_template", "field_messages": "messages"})


def _chat(data: Data) -> tuple[File, ...]:
    return _config(data, "chat", {"type": "chat_template", "field_thinking": "reasoning_content"})


def _tools(data: Data) -> tuple[File, ...]:
    fields = {"field_thinking": "reasoning_content", "field_tools": "tools"}
    return _config(data, "tool_use", {"type": "chat_template", **fields})


def _masked(data: Data) -> tuple[File, ...]:
    (config,) = _config(replace(data, place=labels.FOLDER, hub=False), "masked", {"type": "chat_template"})
    text = config.text.replace("# axolotl", "# After label.py: axolotl", 1).replace("  name: masked\n", "")
    return labels.script(data), replace(config, text=text)


def _ranking(data: Data) -> tuple[File, ...]:
    fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    return _config(data, "ranking", {"type": "chat_template.default", **fields}, rl="dpo")


def _steps(data: Data) -> tuple[File, ...]:
    labels = {"process_reward_model": True, "model_type": "AutoModelForTokenClassification", "num_labels": 2}
    return _config(data, "steps", {"type": "stepwise_supervised", "step_separator": "\n"}, **labels)


AXOLOTL = Trainer(
    name="axolotl",
    title="axolotl",
    proven="0.19.0",
    readings={
        "messages": Reading("every message of the assistant: reasoning, answer and end of turn.", _messages),
        "chat": Reading(
            "every message of the assistant; the reasoning only if the chat template renders `reasoning_content`.",
            _chat,
        ),
        "tool_use": Reading(
            "every message of the assistant, with its tool calls; the reasoning only if the chat template renders "
            "`reasoning_content`.",
            _tools,
        ),
        "masked": Reading("the last message without what pruning cut.", _masked),
        "ranking": Reading("the chosen and the rejected message, with their reasoning.", _ranking),
        "steps": Reading("one label at the end of every step.", _steps),
    },
    unread={
        "sft": "it has no layout with two lists of messages; the view `messages` has the same texts",
        "preference": "it expects `messages`; the view `ranking` has the same pairs",
    },
)
