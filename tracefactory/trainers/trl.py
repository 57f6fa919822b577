"""TRL: https://huggingface.co/docs/trl/dataset_formats."""

from __future__ import annotations

from tracefactory.trainers import labels
from tracefactory.trainers.base import Data, File, Reading, Trainer

_HEAD = """\
from datasets import load_dataset
from trl import {imports}

rows = load_dataset({place!r}, {view!r}, split="train", revision={revision})
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


def _script(data: Data, view: str, imports: str, body: str, options: str = "") -> tuple[File, ...]:
    head = _HEAD.format(imports=imports, place=data.place, view=view, revision=data.loading)
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
