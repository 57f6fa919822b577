"""`use: transformers`: a checkpoint in torch, in the worker for what needs more than completions, served for chats."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import MODELS, Endpoint, ModelSpec
from tracefactory.models.local import PACKAGED, packaged_weights
from tracefactory.serving.managed import ManagedEndpoint


@MODELS.register("transformers")
class TransformersSpec(ModelSpec):
    """A causal language model in torch: in the worker's own memory for decoding by two models and for token scores.

    Chats are answered by a server process that the worker starts at the first of them, on the GPUs of the worker; it
    answers `concurrency` requests as one batch. On Ray, `replicas` workers hold the model; the inline executor has one,
    on whatever is there. Two models that decode together live on the teacher's workers.
    """

    provider_label: ClassVar[str] = "transformers"
    in_process = scores_tokens = True
    sends_bills = False
    takes_weights = "folder"

    use: Literal["transformers"] = Field(default="transformers", description="The kind of model.")
    model: EnvStr = Field(
        description="A Hugging Face id with a pinned `revision`, packaged:smollm2-135m, or from the project's folder a "
        "checkpoint's folder or a .gguf file (a path: absolute, beginning with . or ~, or ending in .gguf); env:NAME "
        "works."
    )
    tokenizer: str | None = Field(
        default=None, description="A tokenizer in place of the checkpoint's own: a folder, or a Hugging Face id."
    )
    tokenizer_revision: str | None = Field(default=None, description="The revision of a tokenizer from the Hub.")
    chat_template: EnvStr | None = Field(
        default=None, description="A Jinja file in the project in place of the tokenizer's chat template."
    )
    reasoning: Literal["inline", "field"] = Field(
        default="inline",
        description="How the student will be trained to write its reasoning: as <think> text in the answer, or in the "
        "message's field reasoning_content.",
    )
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="The arithmetic. In float32 and below the rounding of a pass depends on what it is batched with, "
        "so that two runs can part at near-ties; float64 is exact to the token, at about twice the time.",
    )
    device: str = Field(default="auto", description="A torch device; auto is CUDA where there is one, else the CPU.")
    concurrency: int = Field(
        default=16,
        ge=1,
        description="Traces or chats that each replica decodes together. Keys and values take this number times the "
        "longest of them in memory; 128 to 256 are fastest for short answers.",
    )
    max_batch_tokens: int = Field(default=8192, gt=0, description="Tokens of one forward pass, padding among them.")
    chunk: int = Field(default=256, gt=0, description="Positions of one log-softmax.")
    gpus: int = Field(default=0, ge=0, description="GPUs that each replica has for itself.")
    replicas: int = Field(default=1, ge=1, description="Workers that hold the model.")
    keep: bool = Field(
        default=False,
        description="Keep it loaded when no stage works with it, until another model needs its GPUs or the run ends.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        named = self.model.env_name is None and not self.model.startswith(PACKAGED)
        if named and local_path(self.model) is None and not self.revision:
            raise ValueError(f"model {self.model!r} needs a revision: a name alone can change under the dataset")
        if self.tokenizer and local_path(self.tokenizer) is None and not self.tokenizer_revision:
            raise ValueError(f"tokenizer {self.tokenizer!r} needs a tokenizer_revision")
        if self.stream:
            raise ValueError("stream: the server of a `use: transformers` model does not stream")
        return self

    @property
    def workers(self) -> int:
        """One per replica."""
        return self.replicas

    @property
    def worker_gpus(self) -> int:
        """The GPUs of one replica."""
        return self.gpus

    @property
    def keeps_gpus(self) -> bool:
        """As declared by `keep`."""
        return self.keep

    def checkpoint(self, environment: Environment) -> Checkpoint:
        """Return what to load, with paths and environment variables resolved.

        Raises:
            UserError: for an unset environment variable, or a Hugging Face id in one, without a revision.
        """
        template = (
            None if self.chat_template is None else environment.root / self.chat_template.resolve(environment.environ)
        )
        model = _placed(self.model.resolve(environment.environ), environment)
        if local_path(model) is None and not self.revision:
            raise UserError(f"model {model!r} needs a revision: a name alone can change under the dataset")
        return Checkpoint(
            model=model,
            revision=self.revision or None,
            tokenizer=None if self.tokenizer is None else _placed(self.tokenizer, environment),
            chat_template=template,
            **{name: getattr(self, name) for name in _SHARED},
        )

    def scores_key(self, environment: Environment) -> str:
        """Return the key under which this student's token scores are stored."""
        return self.checkpoint(environment).key()

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides tokens: digests of local files, name and revision of remote ones, the arithmetic."""
        student = self.checkpoint(environment or Environment())
        path = local_path(student.model)
        stamp = (path.stat().st_size, path.stat().st_mtime_ns) if path is not None and path.is_file() else None
        extra = {"extra": self.extra} if self.extra else {}
        return {**_identity(student, stamp), **extra, "provider": self.provider_label}

    def recorded_revision(self, environment: Environment) -> str:
        """Return the revision as declared, or the digest of a local checkpoint, in the form of other models."""
        path = local_path(self.checkpoint(environment).model)
        if self.revision or path is None:
            return self.revision
        kind = "gguf" if path.is_file() else "checkpoint"
        return f"{kind}:{self.identity(environment)['model']['sha256']}"

    def check(self, environment: Environment) -> list[Mistake]:
        """Return whether its libraries or the checkpoint are missing; unset variables are checked elsewhere."""
        # They are looked for and not imported, which takes seconds.
        absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        mistakes = [Mistake(f"it needs {' and '.join(absent)}", hint=_INSTALL)] if absent else []
        if self.model.env_name is not None and self.model.env_name not in environment.environ:
            return mistakes
        try:
            path = local_path(self.checkpoint(environment).model)
        except UserError as error:
            return [*mistakes, *error.mistakes]
        return mistakes if path is None or path.exists() else [*mistakes, Mistake(f"there is no checkpoint {path}")]

    def endpoint(self, environment: Environment) -> Endpoint:
        """Return the server process, not started yet.

        Raises:
            UserError: when its libraries or the checkpoint are missing.
        """
        if mistakes := self.check(environment):
            raise UserError(mistakes)
        checkpoint = self.checkpoint(environment).model_dump_json(exclude_defaults=True)
        return ManagedEndpoint(
            f"transformers-{Path(self.model).name}",
            "tracefactory.decoding.chat_server",
            {"checkpoint": checkpoint, "rows": self.concurrency},
            ready_timeout_s=_START_S,
        )


_START_S = 1800.0  # to load the weights, which may have to be downloaded first
_INSTALL = "pip install 'tracefactory[student]'"
_SHARED = ("tokenizer_revision", "reasoning", "dtype", "device", "max_batch_tokens", "chunk")


def _placed(name: str, environment: Environment) -> str:
    if name.startswith(PACKAGED):
        return str(packaged_weights(name.removeprefix(PACKAGED)))
    path = local_path(name, environment.root)
    return name if path is None else str(path)


@lru_cache(maxsize=64)
def _identity(student: Checkpoint, stamp: tuple[int, int] | None) -> dict[str, Any]:
    """Return the identity of a student; a file of the same size and time is not read again."""
    return student.identity()
