"""Two tiny checkpoints on disk, as a pipeline names them."""

from __future__ import annotations

from pathlib import Path

from tests.unit.decoders.conftest import byte_tokenizer, perturbed, tiny

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_pair(folder: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> tuple[Path, Path]:
    """Save a teacher and a student that mostly agrees with it; return their folders."""
    teacher = tiny(1, size=256 + len(special))
    for name, model in (("teacher", teacher), ("student", perturbed(teacher, 0.2))):
        model.generation_config.eos_token_id = 256
        model.save_pretrained(folder / name)
        tokenizer = byte_tokenizer(special)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    return folder / "teacher", folder / "student"
