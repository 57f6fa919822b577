"""vLLM models served so that they can decode together with another: with a plugin in their servers."""

from __future__ import annotations

import json

from tracefactory.core.fingerprint import digest
from tracefactory.core.model import Environment, ModelSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.vllm.replica import ServerPlan

_DRAFTED = 8
_PROCESSOR = "tracefactory_vllm.draft_noise:DraftNoise"


class DraftingSpec(VLLMSpec):
    """A `use: vllm` model with the plugin `noise` in its servers; never one of `tracefactory serve`, which lack it."""

    @classmethod
    def of(cls, spec: ModelSpec) -> DraftingSpec:
        """Return the same model, served so."""
        return cls.model_validate(spec.model_dump())

    def sharing_key(self, environment: Environment) -> str:
        """Return what servers must have in common to be shared, the plugin included."""
        return digest({"servers": super().sharing_key(environment), "plugin": "noise"})

    def plan(self, environment: Environment) -> ServerPlan:
        """Return how one server is started; the plugin speaks the interface of vLLM's V1 model runner."""
        plan = super().plan(environment)
        return plan.model_copy(
            update={
                "plugin": "noise",
                "arguments": (*plan.arguments, "--logits-processors", _PROCESSOR),
                "environ": {**plan.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"},
            }
        )


class FusedSpec(VLLMSpec):
    """A `use: vllm` student with a teacher as the draft model of its servers, and the plugin `fused` in them.

    `teacher` and `teacher_revision` are resolved; the teacher shares the student's GPUs and arguments. The length of
    drafts can be set as `engine_args: {speculative_config: {num_speculative_tokens: K}}` of the student.
    """

    teacher: str
    teacher_revision: str = ""

    @classmethod
    def of(cls, student: ModelSpec, teacher: ModelSpec, environment: Environment) -> FusedSpec:
        """Return the student, served so."""
        told = teacher.require_checkpoint(environment)
        return cls.model_validate(
            {**student.model_dump(), "teacher": told.model, "teacher_revision": told.revision or ""}
        )

    @property
    def drafted(self) -> int:
        """How many tokens a draft has."""
        given = self.engine_args.get("speculative_config")
        length = given.get("num_speculative_tokens") if isinstance(given, dict) else None
        return length if isinstance(length, int) else _DRAFTED

    def sharing_key(self, environment: Environment) -> str:
        """Return what servers must have in common to be shared, the teacher and the plugin included."""
        teacher = [self.teacher, self.teacher_revision]
        return digest({"servers": super().sharing_key(environment), "plugin": "fused", "teacher": teacher})

    def plan(self, environment: Environment) -> ServerPlan:
        """Return how one server is started; the plugin counts tokens as they are, without asynchronous scheduling."""
        given = self.engine_args.get("speculative_config")
        speculative = {
            **(given if isinstance(given, dict) else {}),
            "method": "draft_model",
            "model": self.teacher,
            "num_speculative_tokens": self.drafted,
        }
        if self.teacher_revision:
            speculative["revision"] = self.teacher_revision
        plain = {name: value for name, value in self.engine_args.items() if name != "speculative_config"}
        plan = VLLMSpec.plan(self.model_copy(update={"engine_args": plain}), environment)
        words = ("--speculative-config", json.dumps(speculative), "--no-async-scheduling")
        return plan.model_copy(
            update={
                "plugin": "fused",
                "arguments": (*plan.arguments, *words),
                "environ": {**plan.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"},
            }
        )
