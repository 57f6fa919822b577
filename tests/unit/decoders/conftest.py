"""Small models with random weights, alike enough to agree now and then, and a byte-level tokenizer for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tracefactory.decoding.decoder import Role
from tracefactory.decoding.draft_schedule import DraftScheduler
from tracefactory.decoding.engine import Engine
from tracefactory.decoding.kv_cache import CachedModel
from tracefactory.decoding.vocabulary import Vocabulary, compare

SPECIAL = ("<|end|>", "<think>", "</think>")


def byte_tokenizer(special: tuple[str, ...] = SPECIAL, extra: tuple[str, ...] = ()) -> Any:
    """A tokenizer of the 256 bytes, some more words, and special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*alphabet, *extra])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])


def tiny(seed: int, size: int = 259, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
    )
    return Qwen2ForCausalLM(config).double().eval().requires_grad_(False)


def perturbed(model: Any, amount: float, seed: int = 5) -> Any:
    """The same model, a little different: a student that mostly agrees with its teacher."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for weight in other.parameters():
        weight.add_(amount * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0)
    return other


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and by far on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def teacher() -> Any:
    return tiny(1)


@pytest.fixture(scope="session")
def student(teacher: Any) -> Any:
    return perturbed(teacher, 0.25)


def make_engine(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    *,
    rows: int,
    scheduler: DraftScheduler | None = None,
    stops: frozenset[int] = frozenset({256}),
    vocabulary: Vocabulary | None = None,
) -> Engine:
    models = {Role.TEACHER: CachedModel(teacher, rows), Role.STUDENT: CachedModel(student, rows)}
    vocabulary = vocabulary or compare(tokenizer, tokenizer).sized(teacher.config.vocab_size)
    return Engine(models, vocabulary, tokenizer, stops, scheduler)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 250, size=int(rng.integers(1, 30))).tolist() for _ in range(count)]
