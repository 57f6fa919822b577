"""The student model of a pipeline: a checkpoint that traces are scored under."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest, digest_all, digest_file
from tracefactory.core.rows import Frozen


class Checkpoint(Frozen):
    """A causal language model that traces are scored under.

    `model` is a Hugging Face id with a pinned `revision`, a local checkpoint folder, or a local `.gguf` file (a path:
    absolute, or beginning with `.` or `~`, or ending in `.gguf`). `tokenizer` replaces the checkpoint's own, and
    `chat_template` is a Jinja file that replaces the tokenizer's template. `reasoning` is the form in which the student
    will be trained to write its reasoning: `inline` as `<think>` text in the answer, `field` as the message's
    `reasoning_content`.

    `device` ("auto" is CUDA if available, else the CPU), `max_batch_tokens` (padded tokens per forward pass) and
    `chunk` (positions per log-softmax) affect memory and speed but not the scores, and are not in the key.
    """

    use: Literal["transformers"] = "transformers"
    model: str = Field(min_length=1)
    revision: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    chat_template: Path | None = None
    reasoning: Literal["inline", "field"] = "inline"
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    max_batch_tokens: int = Field(default=8192, gt=0)
    chunk: int = Field(default=256, gt=0)

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if local_path(self.model) is None and not self.revision:
            raise ValueError(
                f"model {self.model!r} needs a revision: without one, the weights behind the name can change"
            )
        if self.tokenizer and local_path(self.tokenizer) is None and not self.tokenizer_revision:
            raise ValueError(f"tokenizer {self.tokenizer!r} needs a tokenizer_revision")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what the scores depend on, for keys: digests of local files, names and revisions of remote models.

        Raises:
            UserError: when a local file does not exist.
        """
        return {
            "use": self.use,
            "model": _identity(self.model, self.revision),
            "tokenizer": None if self.tokenizer is None else _identity(self.tokenizer, self.tokenizer_revision),
            "chat_template": None if self.chat_template is None else digest_file(existing(self.chat_template)),
            "reasoning": self.reasoning,
            "dtype": self.dtype,
        }

    def key(self) -> str:
        """Return the digest of `identity()`: the student column of the token score tables."""
        return digest(self.identity())


def local_path(name: str, root: Path = Path()) -> Path | None:
    """Return the path that `name` is, or None for a Hugging Face id. Only the name is examined, not the disk.

    Args:
        name: the name of a model or tokenizer.
        root: the folder that a relative path starts from.
    """
    if name.endswith(".gguf") or name.startswith(("/", ".", "~")):
        return root / Path(name).expanduser()
    return None


def existing(path: Path) -> Path:
    """Return `path` if it exists.

    Raises:
        UserError: when it does not.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return path


def _identity(name: str, revision: str | None) -> dict[str, Any]:
    path = local_path(name)
    if path is None:
        return {"name": name, "revision": revision}
    if existing(path).is_file():
        return {"sha256": digest_file(path)}
    files = sorted(file for file in path.iterdir() if file.is_file())
    return {"sha256": digest_all(part for file in files for part in (file.name, digest_file(file)))}
