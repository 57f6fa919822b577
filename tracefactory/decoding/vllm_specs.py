"""Specs of vLLM models whose servers run a plugin for decoding by two models."""

from __future__ import annotations

import json

from tracefactory.core.environment import Environment
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ModelSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.vllm.replica import ServerPlan

_DRAFT_LENGTH = 8
_PROCESSOR = "tracefactory_vllm.draft_noise:DraftNoise"


class DraftingSpec(VLLMSpec):
    """A `use: vllm` model whose servers run the plugin `noise`. Servers of `tracefactory serve` lack it."""

    def sharing_key(self, environment: Environment) -> str:
        """Return the key by which runs may share servers; it includes the plugin."""
        return digest({"servers": super().sharing_key(environment), "plugin": "noise"})

    def plan(self, environment: Environment) -> ServerPlan:
        """Return how to start one server. The plugin requires vLLM's V1 model runner."""
        plan = super().plan(environment)
        return plan.model_copy(
            update={
                "plugin": "noise",
                "arguments": (*plan.arguments, "--logits-processors", _PROCESSOR),
                "environ": {**plan.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"},
            }
        )


class FusedSpec(VLLMSpec):
    """A `use: vllm` student whose servers have the teacher as draft model and run the plugin `fused`.

    `teacher` and `teacher_revision` are resolved; the teacher shares the student's GPUs and arguments. The draft length
    can be set in the student's `engine_args: {speculative_config: {num_speculative_tokens: K}}`.
    """

    teacher: str
    teacher_revision: str = ""

    @classmethod
    def of(cls, student: ModelSpec, teacher: ModelSpec, environment: Environment) -> FusedSpec:
        """Return the spec of the student with this teacher.

        Args:
            student: the spec of the student.
            teacher: the spec of the teacher, which must have a checkpoint.
            environment: the environment that resolves the checkpoint.
        """
        checkpoint = teacher.require_checkpoint(environment)
        added = {"teacher": checkpoint.model, "teacher_revision": checkpoint.revision or ""}
        return cls.model_validate({**student.model_dump(), **added})

    @property
    def draft_length(self) -> int:
        """The number of tokens of a draft."""
        given = self.engine_args.get("speculative_config")
        length = given.get("num_speculative_tokens") if isinstance(given, dict) else None
        return length if isinstance(length, int) else _DRAFT_LENGTH

    def sharing_key(self, environment: Environment) -> str:
        """Return the key by which runs may share servers; it includes the teacher and the plugin."""
        teacher = [self.teacher, self.teacher_revision]
        return digest({"servers": super().sharing_key(environment), "plugin": "fused", "teacher": teacher})

    def plan(self, environment: Environment) -> ServerPlan:
        """Return how to start one server. The plugin needs exact token counts, so asynchronous scheduling is off."""
        given = self.engine_args.get("speculative_config")
        speculative = {
            **(given if isinstance(given, dict) else {}),
            "method": "draft_model",
            "model": self.teacher,
            "num_speculative_tokens": self.draft_length,
        }
        if self.teacher_revision:
            speculative["revision"] = self.teacher_revision
        other = {name: value for name, value in self.engine_args.items() if name != "speculative_config"}
        plan = VLLMSpec.plan(self.model_copy(update={"engine_args": other}), environment)
        flags = ("--speculative-config", json.dumps(speculative), "--no-async-scheduling")
        return plan.model_copy(
            update={
                "plugin": "fused",
                "arguments": (*plan.arguments, *flags),
                "environ": {**plan.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"},
            }
        )
