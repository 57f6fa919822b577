"""Convert a GGUF file to a checkpoint folder: `python -m tracefactory.serving.gguf_checkpoint model.gguf folder`.

vLLM and other engines read checkpoints (safetensors, config, tokenizer), but small models are often published only as
GGUF. The weights are dequantized once; the folder can then be used like any Hugging Face checkpoint. Needs the extra
`student`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
# Text that tokenizers often get wrong: runs of spaces, code, digits, letters beyond ASCII, an emoji of several tokens.
_PROBE = 'Let x  = 12.5;\n\tif (x >= 3) { return "näïve"; }  # 𝑥² ≈ 156 🦙\n\n'


def convert(gguf: Path, folder: Path, dtype: Dtype = "float32") -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, atomically.

    Raises:
        UserError: when `folder` exists, the extra `student` is missing, the file cannot be read, or the written
            tokenizer does not reproduce a text or has lost its chat template.
    """
    if folder.exists():
        raise UserError(f"{folder} already exists; choose another folder")
    try:
        from tracefactory.serving.loading import load_model, load_tokenizer, without_bars
    except ModuleNotFoundError as error:
        raise UserError(f"reading a GGUF file needs {error.name}: pip install 'tracefactory[student]'") from error
    spec = Checkpoint(model=str(gguf.resolve()), dtype=dtype, device="cpu")
    tokenizer = load_tokenizer(spec)
    model = load_model(spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        with without_bars():
            model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        _check_tokenizer(tokenizer, checkpoint)
        checkpoint.replace(folder)


def _check_tokenizer(original: Any, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(checkpoint)
    ids = written.encode(_PROBE, add_special_tokens=False)
    if ids != original.encode(_PROBE, add_special_tokens=False) or written.decode(ids) != _PROBE:
        raise UserError("the tokenizer in this GGUF file does not decode its tokens to the original text")
    if written.chat_template != original.chat_template:
        raise UserError("the chat template was lost when the tokenizer was written")


def main() -> None:
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description="Write a GGUF file as a checkpoint folder.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    try:
        convert(arguments.gguf, arguments.folder, arguments.dtype)
    except UserError as error:
        print(*error.mistakes, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
