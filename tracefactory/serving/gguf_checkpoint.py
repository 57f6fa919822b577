"""A GGUF file as a checkpoint folder: `python -m tracefactory.serving.gguf_checkpoint model.gguf folder`.

vLLM and other engines read checkpoints (safetensors, config, tokenizer), and small models often come as GGUF only. The
weights are dequantized once; the folder then serves wherever a Hugging Face checkpoint does. Needs the extra `student`.
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
# Text with what tokenizers get wrong: runs of spaces, code, digits, letters beyond ASCII, an emoji of several tokens.
_PROBE = 'Let x  = 12.5;\n\tif (x >= 3) { return "näïve"; }  # 𝑥² ≈ 156 🦙\n\n'


def convert(gguf: Path, folder: Path, dtype: Dtype = "float32") -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, whole or not at all.

    Raises:
        UserError: when `folder` exists, the extra `student` is missing, the file cannot be read, or its tokenizer does
            not give back the text it was given or lost its chat template on the way.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder")
    try:
        from tracefactory.serving.loading import load_model, load_tokenizer
    except ModuleNotFoundError as error:
        raise UserError(f"reading a GGUF file needs {error.name}: pip install 'tracefactory[student]'") from error
    spec = Checkpoint(model=str(gguf.resolve()), dtype=dtype, device="cpu")
    tokenizer = load_tokenizer(spec)
    model = load_model(spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        draft = Path(temporary) / "checkpoint"
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        _check_tokenizer(tokenizer, draft)
        draft.replace(folder)


def _check_tokenizer(original: Any, draft: Path) -> None:
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(draft)
    ids = written.encode(_PROBE, add_special_tokens=False)
    if ids != original.encode(_PROBE, add_special_tokens=False) or written.decode(ids) != _PROBE:
        raise UserError("the tokenizer in this GGUF file does not give back the text it is given")
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
