"""Load a checkpoint and its tokenizer with transformers, from a Hub id, a folder or a GGUF file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from tracefactory.core.checkpoint import Checkpoint, existing, local_path
from tracefactory.core.errors import UserError
from tracefactory.core.imports import TRANSFORMERS

with TRANSFORMERS:
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging


def load_tokenizer(spec: Checkpoint) -> Any:
    """Return the tokenizer of a checkpoint, with the chat template of `spec` if it has one.

    Raises:
        UserError: when it cannot be loaded, has no character offsets, or has no chat template.
    """
    name, revision = (spec.tokenizer, spec.tokenizer_revision) if spec.tokenizer else (spec.model, spec.revision)
    path = local_path(name)
    if path is not None and existing(path).is_file():
        tokenizer = copy.deepcopy(_gguf_tokenizer(name, path.stat().st_mtime_ns))
    else:
        tokenizer = _pretrained(AutoTokenizer, name, revision)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {name} has no character offsets; set `tokenizer:` to a fast tokenizer")
    if spec.chat_template is not None:
        tokenizer.chat_template = existing(spec.chat_template).read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {name} has no chat template; set `chat_template:` to the one used in training"
        )
    return tokenizer


@lru_cache(maxsize=2)
def _gguf_tokenizer(name: str, modified_ns: int) -> Any:
    """Return the tokenizer in a GGUF file, which takes a second to read; the check of a student and its use read it."""
    return _pretrained(AutoTokenizer, name, None)


def load_model(spec: Checkpoint) -> Any:
    """Return the model in evaluation mode, in `spec.dtype` on its device. A GGUF file is dequantized on loading.

    Raises:
        UserError: when it cannot be loaded.
    """
    model = _pretrained(AutoModelForCausalLM, spec.model, spec.revision, dtype=getattr(torch, spec.dtype))
    if getattr(model, "hf_quantizer", None) is not None and spec.model.endswith(".gguf"):
        # The weights are plain tensors now; with these attributes transformers would refuse to save or cast them.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(automatic if spec.device == "auto" else spec.device)


def _pretrained(factory: Any, name: str, revision: str | None, **options: Any) -> Any:
    path = local_path(name)
    if path is None:
        source: str = name
        options["revision"] = revision
    elif existing(path).is_file():
        source, options["gguf_file"] = str(path.parent), path.name
    else:
        source = str(path)
    try:
        with without_bars(), _read_once():
            return factory.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {name}: {error}") from error


@contextmanager
def _read_once() -> Iterator[None]:
    """Parse the header of a GGUF file, and make the table of tensor names, once.

    Transformers parses for the tokenizer, the configuration and the weights, and makes the table for every module: that
    takes seconds each, for a vocabulary of 49,000 tokens.
    """
    if find_spec("gguf") is None:
        yield
        return
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda path, *_: _reader(reader, str(path), os.stat(path).st_mtime_ns)
    gguf.get_tensor_name_map = lru_cache(maxsize=1)(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


@lru_cache(maxsize=1)
def _reader(kind: Any, path: str, modified_ns: int) -> Any:
    return kind(path)


@contextmanager
def without_bars() -> Iterator[None]:
    """Disable progress bars, which would break the display of a run on stderr."""
    shown, bar = logging.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    logging.disable_progress_bar()
    # GGUF loading uses tqdm directly, so the switch of transformers does not apply.
    modeling_gguf_pytorch_utils.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
        if shown:
            logging.enable_progress_bar()
