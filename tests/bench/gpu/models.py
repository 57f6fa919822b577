"""Models of real shapes with random weights, for machines that no weights can be brought to.

The rows of the output layer are scaled so that the next token has a peaked distribution, as that of a trained model:
with the initial weights every token would have about the same probability, and no token would be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PEAKED = 8.0
"""Standard deviation of the logits."""

# hidden, layers, heads, key/value heads, intermediate, vocabulary: from the published configurations
SHAPES: Mapping[str, tuple[int, int, int, int, int, int]] = {
    "qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936),
    "tiny-teacher": (256, 2, 4, 2, 256, 1024),
    "tiny-student": (32, 2, 4, 2, 64, 1024),
}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, the tokenizer of both, and where they are from."""

    teacher: Any
    student: Any
    tokenizer: Any
    origin: str


def random_model(shape: str, dtype: torch.dtype, device: str, seed: int) -> Any:
    """Return a model of a published shape with random weights, the same for the same seed and device."""
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=False,  # tied random weights only repeat the last token
        max_position_embeddings=32768,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(PEAKED / (config.initializer_range * hidden**0.5))
    return model


def random_pair(teacher: str, student: str, dtype: torch.dtype, device: str) -> Pair:
    """Return two models of published shapes with random weights and one tokenizer for both."""
    made = random_model(teacher, dtype, device, 1), random_model(student, dtype, device, 2)
    size = min(SHAPES[teacher][5], SHAPES[student][5])
    return Pair(*made, plain_tokenizer(size), f"random weights of the shapes of {teacher} and {student}")


def disturbed(model: Any, shape: str, dtype: torch.dtype, device: str, share: float, seed: int = 1) -> Any:
    """Return a copy of a random model with noise of a share of each weight's deviation, which mostly agrees with it."""
    copy = random_model(shape, dtype, device, seed)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(seed + 10)
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn_like(weight) * (share * weight.float().std()).to(weight.dtype))
    return copy


def loaded_pair(teacher: Path, student: Path, dtype: torch.dtype, device: str) -> Pair:
    """Return two checkpoints from disk that share a tokenizer."""
    made = [AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for folder in (teacher, student)]
    ready = [model.eval().requires_grad_(False).to(device) for model in made]
    return Pair(*ready, AutoTokenizer.from_pretrained(student), f"{teacher.name} and {student.name}")


def plain_tokenizer(size: int) -> Any:
    """Return a byte-level tokenizer of `size` tokens; those above the bytes are words that no text is cut into."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"word{number}" for number in range(len(alphabet), size - len(SPECIAL)))]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    made.chat_template = TEMPLATE
    return made
