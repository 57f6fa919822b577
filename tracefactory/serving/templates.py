"""The chat template of a checkpoint on this machine, read from its files alone: no tokenizer is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from tracefactory.core.checkpoint import Checkpoint, existing, local_path
from tracefactory.core.errors import UserError
from tracefactory.text.chat_templates import ChatTemplate, RenderError

# Types of values in a GGUF file, but for strings (8) and arrays (9): https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


def template_at_hand(spec: Checkpoint) -> ChatTemplate | None:
    """Return the chat template of a checkpoint; None when its files are not on this machine or have none.

    Args:
        spec: the checkpoint.

    Raises:
        UserError: when the template is not valid.
    """
    path = local_path(spec.tokenizer or spec.model)
    found = {} if path is None or not path.exists() else _of_file(path) if path.is_file() else _of_folder(path)
    if spec.chat_template is not None:
        found["source"] = existing(spec.chat_template).read_text(encoding="utf-8")
    if not found.get("source"):
        return None
    try:
        return ChatTemplate.of_source(found["source"], bos=found.get("bos", ""), eos=found.get("eos", ""))
    except RenderError as error:
        raise UserError(f"the chat template of {spec.chat_template or path}: {error}") from error


def _of_folder(folder: Path) -> dict[str, str]:
    """Return `source`, `bos` and `eos` of a folder as transformers saves it."""
    file, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    source = alone.read_text(encoding="utf-8") if alone.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    tokens = {name: config.get(f"{name}_token") for name in ("bos", "eos")}
    spelled = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in {"source": source, **spelled}.items() if isinstance(text, str)}


def _of_file(path: Path) -> dict[str, str]:
    return dict(_of_gguf(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=16)
def _of_gguf(path: Path, modified: int) -> Mapping[str, str]:
    """Return `source`, `bos` and `eos` of a GGUF file; its list of tokens takes a tenth of a second to read."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return {}
        _, _, count = struct.unpack("<IQQ", file.read(20))
        found = {key: value for key, value in _entries(file, count) if key.startswith("tokenizer.")}
    tokens = found.get("tokenizer.ggml.tokens", ())
    numbers = {name: found.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    spelled = {name: tokens[number] for name, number in numbers.items() if number is not None and number < len(tokens)}
    return {"source": found.get("tokenizer.chat_template", ""), **spelled}


def _entries(file: BinaryIO, count: int) -> Iterator[tuple[str, Any]]:
    for _ in range(count):
        key = _string(file)
        yield key, _value(file, struct.unpack("<I", file.read(4))[0])


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        if inner in _NUMBERS:
            form = f"<{length}{_NUMBERS[inner]}"
            return struct.unpack(form, file.read(struct.calcsize(form)))
        return [_value(file, inner) for _ in range(length)]
    form = f"<{_NUMBERS[kind]}"
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(struct.unpack("<Q", file.read(8))[0]).decode("utf-8", "replace")
