"""verl: https://verl.readthedocs.io, multi-turn SFT (`MultiTurnSFTDataset`) and preparation of data (`RLHFDataset`)."""

from __future__ import annotations

from typing import Any

import yaml

from tracefactory.trainers.base import Data, File, Reading, Trainer


def _config(data: Data, view: str, command: str, config: dict[str, Any]) -> tuple[File, ...]:
    notes = [one for one in (data.download(view), command) if one]
    text = "".join(f"# {note}\n" for note in notes) + yaml.safe_dump(config, sort_keys=False)
    return (File("train.yaml", "yaml", text),)


def _messages(data: Data) -> tuple[File, ...]:
    config = {
        "model": {"path": data.student},
        "data": {
            "train_files": [f"{data.files('messages')}/train-00000.parquet"],
            "messages_key": "messages",
            "max_length": data.longest,
            "truncation": "error",
            "ignore_input_ids_mismatch": False,
        },
    }
    return _config(data, "messages", "torchrun -m verl.trainer.sft_trainer, with these values and every file", config)


def _rlvr(data: Data) -> tuple[File, ...]:
    config = {
        "data": {
            "train_files": [f"{data.files('rlvr')}/train-00000.parquet"],
            "prompt_key": "prompt",
            "max_prompt_length": 4096,
            "truncation": "error",
        },
        "actor_rollout_ref": {"model": {"path": data.student}},
        "reward": {"custom_reward_function": {"path": "reward.py", "name": "compute_score"}},
    }
    command = (
        "python -m verl.trainer.main_ppo, with these values and every file. verl rewards a few values of data_source;\n"
        "# a function of yours gets data_source, solution_str, ground_truth and extra_info, with verifier and spec."
    )
    return _config(data, "rlvr", command, config)


VERL = Trainer(
    name="verl",
    title="verl",
    proven="0.9.1",
    readings={
        "messages": Reading("every message of the assistant: reasoning, answer and end of turn.", _messages),
        "rlvr": Reading("nothing: the prompt is sampled, and a reward function reads the ground truth.", _rlvr),
    },
    unread={
        "masked": "it has no loss mask within a message",
        "tool_use": "it gives `tools` to the chat template as text, which fails",
        "sft": "it has no layout with two lists of messages; the view `messages` has the same texts",
    },
)
