"""open-instruct: https://allenai.github.io/open-instruct, SFT. It is not on the package index: no test proves this."""

from __future__ import annotations

from shlex import quote

from tracefactory.trainers.base import Data, File, Reading, Trainer


def _messages(data: Data) -> tuple[File, ...]:
    place = data.place if data.hub else f"{data.files('messages')}/train-00000.parquet"
    text = f"""\
# open-instruct has no option for the configuration of a dataset: it reads the first one, of the newest version. Let
# `views:` begin with `messages`, or give it a Parquet file.
python open_instruct/finetune.py \\
  --model_name_or_path {quote(data.student)} --output_dir student \\
  --dataset_mixer_list {quote(place)} 1.0 --dataset_mixer_list_splits train \\
  --max_seq_length {data.longest}
"""
    return (File("train.sh", "sh", text),)


OPEN_INSTRUCT = Trainer(
    name="open_instruct",
    title="open-instruct",
    proven="from its documentation",
    readings={"messages": Reading("every message of the assistant: reasoning, answer and end of turn.", _messages)},
    unread={
        "chat": "few chat templates render `reasoning_content`; the view `messages` has the reasoning inline",
        "preference": "its pairs repeat the prompt in both completions",
        "masked": "it has no loss mask within a message",
        "rlvr": "its layout is another: `messages`, `ground_truth`, `dataset`",
    },
)
