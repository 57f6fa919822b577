"""`use: vllm`: a model in vLLM servers of our own, started at the first request and ended with the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.fingerprint import digest, digest_all, digest_file, digest_weights
from tracefactory.core.model import MODELS, ChatRequest, ModelSpec
from tracefactory.serving.vllm.endpoint import VLLMEndpoint
from tracefactory.serving.vllm.placement import LocalPlacement
from tracefactory.serving.vllm.replica import ServerPlan
from tracefactory.serving.vllm.shared import SharedLookup, identity_label, is_registered

# Set from other fields, or needed by the watching of the servers.
_OURS = frozenset(
    {
        "model", "revision", "tensor_parallel_size", "served_model_name", "host", "port", "uds", "api_key",
        "reasoning_parser", "chat_template", "disable_log_stats", "enable_prompt_tokens_details", "enable_scale_out",
    }
)  # fmt: skip
# Arguments that decide speed, memory and logs, and not what is sampled. Any other argument counts as deciding it: an
# unknown one then costs a completion paid again, never rows of two kinds under one key.
_NOT_DECIDING = frozenset(
    {
        "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens",
        "max_num_partial_prefills", "enforce_eager", "compilation_config", "cudagraph_capture_sizes", "block_size",
        "enable_prefix_caching", "enable_chunked_prefill", "async_scheduling", "scheduling_policy", "swap_space",
        "cpu_offload_gb", "max_logprobs",
        "load_format", "model_loader_extra_config", "safetensors_load_strategy", "max_parallel_loading_workers",
        "download_dir",
        "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "distributed_executor_backend",
        "disable_custom_all_reduce", "numa_bind", "api_server_count", "uvicorn_log_level", "enable_log_requests",
        "disable_uvicorn_access_log", "max_log_len", "stream_interval", "renderer_num_workers",
    }
)  # fmt: skip
# vLLM's API server would take sampling defaults from the checkpoint's generation_config.json (top_k, penalties): with
# "vllm" only what a request says counts. Requests are not logged: the run keeps them itself.
_DEFAULTS: dict[str, JsonValue] = {"generation_config": "vllm", "max_logprobs": 1024, "uvicorn_log_level": "warning"}
# On the CPU, vLLM 0.32 loses its engine when a request with a seed is prefilled in parts ("CPU Generator does not use
# offset"), and every sample here has a seed.
_CPU_DEFAULTS: dict[str, JsonValue] = {"enable_chunked_prefill": False}
_MOVING = frozenset({"main", "master", "HEAD"})
_INSTALL = "make an environment with `pip install vllm` and name it as `env:`"


@MODELS.register("vllm")
class VLLMSpec(ModelSpec):
    """A model served by vLLM in processes of our own."""

    scores_tokens = runs_plugins = True
    provider_label: ClassVar[str] = "vllm"
    digests_weights = True
    reads_control_tokens = True
    sends_bills = False
    takes_weights = "folder"

    use: Literal["vllm"] = Field(default="vllm", description="The kind of model.")
    model: EnvStr = Field(
        description="A Hugging Face id with a pinned `revision` (commit or tag), or the folder of a checkpoint (a path "
        "that begins with ., / or ~); env:NAME works."
    )
    gpus: int = Field(default=1, ge=0, description="GPUs of each server, by tensor parallelism; 0 runs on the CPU.")
    replicas: int = Field(default=1, ge=1, description="Servers of the model.")
    keep: bool = Field(
        default=False,
        description="Keep it loaded when no stage works with it, until another model needs its GPUs or the run ends.",
    )
    env: EnvStr = Field(
        default=EnvStr(""),
        description="The Python environment that holds vLLM, so that its pins constrain nothing else: a folder with "
        "bin/python, or an interpreter; this one by default.",
    )
    engine_args: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of vLLM's API server: `max_model_len: 32768` for --max-model-len 32768.",
    )
    environ: dict[str, EnvStr] = Field(
        default_factory=dict, description="Environment variables of the servers; env:NAME for secrets."
    )
    reasoning_parser: str = Field(default="", description="vLLM's parser that splits reasoning from answer.")
    chat_template: str = Field(default="", description="A Jinja file in the project in place of the model's own.")
    reasoning: Literal["inline", "field"] = Field(
        default="inline",
        description="Of a student: how it will be trained to write its reasoning, as <think> text in the answer or in "
        "the message's field reasoning_content.",
    )
    concurrency: int = Field(default=256, ge=1, description="Requests in flight, over all replicas.")
    start_timeout_s: float = Field(default=1800.0, gt=0, description="Seconds that a server may take to load.")
    hang_s: float = Field(
        default=180.0, gt=0, description="Seconds without a sign of life after which a server counts as hung."
    )
    restarts: int = Field(default=5, ge=0, description="How often a server is started again.")

    @field_validator("engine_args")
    @classmethod
    def _engine_args_are_not_ours(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if not name.replace("_", "").isalnum() or name != name.lower():
                raise ValueError(f"write {name!r} as vLLM's Python argument, such as max_model_len")
        if taken := sorted(_OURS & value.keys()):
            raise ValueError(
                f"{', '.join(taken)} cannot be set here: the factory sets it, some from fields of their own"
            )
        return value

    @property
    def gpus_held(self) -> int:
        """The GPUs of one server."""
        return self.gpus

    @property
    def gpus_in_all(self) -> int:
        """The GPUs of all servers."""
        return self.gpus * self.replicas

    @property
    def keeps_gpus(self) -> bool:
        """As declared by `keep`."""
        return self.keep

    def is_served(self, environment: Environment) -> bool:
        """Tell whether `tracefactory serve` keeps servers of this model."""
        return environment.servers is not None and is_registered(environment.servers, self.sharing_key(environment))

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides completions: not the number of servers and GPUs, nor what only changes their speed.

        Of a local checkpoint it is the bytes of its files that count.
        """
        environment = environment or Environment()
        name = self.model.resolve(environment.environ)
        folder = local_path(name, environment.root)
        arguments = {**_DEFAULTS, **self.engine_args}
        return {
            **super().identity(environment),
            "model": name if folder is None else f"checkpoint:{_digest_folder(folder)}",
            "revision": self.revision if folder is None else "",
            "engine_args": {key: value for key, value in sorted(arguments.items()) if key not in _NOT_DECIDING},
            "reasoning_parser": self.reasoning_parser,
            "chat_template": digest_file(self._template(environment)) if self.chat_template else "",
        }

    def sharing_key(self, environment: Environment) -> str:
        """Return what servers must have in common to be shared: what decides completions, and the name they serve."""
        return digest({"identity": self.identity(environment), "name": str(self.model)})

    def checkpoint(self, environment: Environment) -> Checkpoint:
        """Return whose tokenizer and chat template render traces for this model.

        Raises:
            UserError: for an unset environment variable.
        """
        name = self.model.resolve(environment.environ)
        folder = local_path(name, environment.root)
        return Checkpoint(
            model=name if folder is None else str(folder),
            revision=self.revision or None,
            chat_template=self._template(environment) if self.chat_template else None,
            reasoning=self.reasoning,
        )

    def scores_key(self, environment: Environment) -> str:
        """Return the key under which this student's token scores are stored."""
        return digest({"identity": self.identity(environment), "reasoning": self.reasoning})

    @property
    def longest_prompt(self) -> int | None:
        """How many tokens the servers take and still answer with one more; None where no limit is configured."""
        limit = self.engine_args.get("max_model_len")
        return limit - 1 if isinstance(limit, int) else None

    def check(self, environment: Environment) -> list[Mistake]:
        """Return what is missing, and whether the revision may move; unset variables are checked elsewhere."""
        looks = {self._check_model: self.model, self._python: self.env, self._template: EnvStr("")}
        mistakes: list[Mistake] = []
        for look, value in looks.items():
            if value.env_name is None or environment.environ.get(value.env_name):
                try:
                    look(environment)
                except UserError as error:
                    mistakes += error.mistakes
        return mistakes

    def endpoint(self, environment: Environment) -> VLLMEndpoint:
        """Return the servers, not started yet; those of `tracefactory serve` take their place while they are kept.

        Raises:
            UserError: for missing files, an environment without vLLM, or a revision that may move.
        """
        shared = (
            None if environment.servers is None else SharedLookup(environment.servers, self.sharing_key(environment))
        )
        return VLLMEndpoint(self.plan(environment), self.replicas, environment.placement or LocalPlacement(), shared)

    def plan(self, environment: Environment) -> ServerPlan:
        """Return how one server is started; raises what `endpoint` raises."""
        self._check_model(environment)
        name = self.model.resolve(environment.environ)
        folder = local_path(name, environment.root)
        defaults = _DEFAULTS if self.gpus else {**_DEFAULTS, **_CPU_DEFAULTS}
        fields: dict[str, JsonValue] = {**defaults, **self.engine_args, "model": str(folder or name)}
        if folder is None:
            fields["revision"] = self.revision
        if self.gpus > 1:
            fields["tensor_parallel_size"] = self.gpus
        if self.reasoning_parser:
            fields["reasoning_parser"] = self.reasoning_parser
        if self.chat_template:
            fields["chat_template"] = str(self._template(environment))
        fields |= {"enable_prompt_tokens_details": True, "enable_scale_out": True}
        fields["served_model_name"] = [str(self.model), identity_label(self.sharing_key(environment))]
        return ServerPlan(
            name=f"vllm {self.model}",
            python=self._python(environment),
            arguments=command_line(fields),
            model=self.model,
            environ={key: value.resolve(environment.environ) for key, value in self.environ.items()},
            gpus=self.gpus,
            start_timeout_s=self.start_timeout_s,
            hang_s=self.hang_s,
            restarts=self.restarts,
        )

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body, with vLLM's flags for a prefill where there is one."""
        flags = {"continue_final_message": True, "add_generation_prompt": False} if request.has_prefill else {}
        return {**super().body(request), **flags}

    def _check_model(self, environment: Environment) -> None:
        name = self.model.resolve(environment.environ)
        if not name:
            raise UserError("`model:` is empty")
        folder = local_path(name, environment.root)
        if folder is not None and not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no checkpoint folder: it holds no config.json")
        if folder is None and (not self.revision or self.revision in _MOVING):
            problem = f"revision {self.revision!r} moves" if self.revision else f"model {name!r} has no revision"
            raise UserError(Mistake(problem, hint="give a commit or a tag as `revision:`"))

    def _python(self, environment: Environment) -> str:
        """Return the interpreter that has vLLM."""
        if not self.env:
            python = Path(sys.executable)
        else:
            path = environment.root / Path(self.env.resolve(environment.environ)).expanduser()
            python = path / "bin" / "python" if path.is_dir() else path
        if not python.is_file():
            raise UserError(Mistake(f"there is no Python environment {python}", hint=_INSTALL))
        if not _has_vllm(str(python)):
            raise UserError(Mistake(f"{python} has no package vllm", hint=_INSTALL))
        return str(python)

    def _template(self, environment: Environment) -> Path:
        path = environment.root / Path(self.chat_template)
        if self.chat_template and not path.is_file():
            raise UserError(f"there is no chat template {path}")
        return path


def command_line(fields: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return vLLM's command-line form of Python arguments.

    Booleans become flags, lists several words, mappings JSON; null is left out.
    """
    words: list[str] = []
    for name, value in fields.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            words += [f"--{option}", *(str(item) for item in value)]
        elif value is not None:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return tuple(words)


@lru_cache(maxsize=16)
def _has_vllm(python: str) -> bool:
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    return subprocess.run([python, "-c", find], check=False, capture_output=True).returncode == 0


def _digest_folder(folder: Path) -> str:
    """Digest the names and bytes of the files of a checkpoint."""
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest_all(part for path in files for part in (path.name, digest_weights(path)))
