"""The script that writes the view `tool_use` in the layout of LLaMA-Factory, which reads it in no other way as meant.

Its `openai` format drops the text before a call, and writes arguments as JSON within JSON (version 0.9.5). In its
`sharegpt` format a call is a message of the role `function_call`, with the reasoning in think tags before it.
"""

from __future__ import annotations

from tracefactory.trainers.base import Data, File

WRITTEN = "tool_use.jsonl"
"""The file that the script writes."""

_SCRIPT = """\
import json
from pathlib import Path

from datasets import load_dataset

rows = {loaded}


def as_turn(one):
    thinking = f"<think>\\n{{one['reasoning_content']}}\\n</think>\\n\\n" if one["reasoning_content"] else ""
    text = thinking + one["content"]
    if not one["tool_calls"]:
        return {{"role": one["role"], "content": text}}
    functions = [call["function"] for call in one["tool_calls"]]
    calls = [{{"name": one["name"], "arguments": json.loads(one["arguments"])}} for one in functions]
    text += "\\n" if one["content"] else ""
    written = f"{{text}}<tool_call>{{json.dumps(calls, ensure_ascii=False)}}</tool_call>"
    return {{"role": "function_call", "content": written}}


def conversation(row):
    messages = []
    for one in map(as_turn, row["messages"]):
        if one["role"] == "tool" and messages[-1]["role"] == "tool":  # the results of parallel calls are one message
            messages[-1]["content"] += "\\n</tool_response>\\n<tool_response>\\n" + one["content"]
        else:
            messages.append(one)
    return {{"messages": messages, "tools": row["tools"]}}


with Path({written!r}).open("w", encoding="utf-8") as file:
    for row in rows:
        file.write(json.dumps(conversation(row), ensure_ascii=False) + "\\n")
"""


def script(data: Data) -> File:
    """Return the script; it needs `datasets` alone.

    Args:
        data: the dataset.
    """
    return File("tools.py", "python", _SCRIPT.format(loaded=data.loaded("tool_use"), written=WRITTEN))
