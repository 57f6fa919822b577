"""`sample: chat`: chat completions from one teacher, about problems or about traces."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tracefactory.core.environment import Environment
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.stage import STAGES, ModelName
from tracefactory.stages._sampling import SampleParams, SampleStage


class ChatParams(SampleParams):
    """How to sample chats from one model."""

    model: ModelName = Field(description="The teacher, by its name under models:.")
    temperature: float = Field(default=0.7, ge=0, description="Sampling temperature; 0 decodes greedily.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus sampling: the share of probability drawn from.")
    stop: tuple[str, ...] = Field(default=(), description="Texts at which a completion ends.")
    logprobs: bool = Field(
        default=False,
        description="Store the log-probability of every sampled token, for measures of teacher against student. The "
        "server chooses which distribution they are of: llama.cpp and vLLM report the model's own, before temperature "
        "and top-p, unless told otherwise. Completions that were paid for without are not found again with it.",
    )


class SampleChat(SampleStage[ChatParams]):
    """Sample chats from one teacher."""

    name, version = "chat", "1"
    Params = ChatParams

    def billed_model(self, stage: StageSpec[ChatParams]) -> str:
        return stage.params.model

    def model_identity(
        self, stage: StageSpec[ChatParams], pipeline: Pipeline, environment: Environment
    ) -> dict[str, Any]:
        return pipeline.models[stage.params.model].identity(environment)

    def sampling(self, stage: StageSpec[ChatParams], seed: int) -> dict[str, Any]:
        params = stage.params
        sampling: dict[str, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": seed,
        }
        sampling |= {"stop": list(params.stop)} if params.stop else {}
        # One alternative that is not kept: llama.cpp reads a request for none as no request for log-probabilities.
        return sampling | ({"logprobs": True, "top_logprobs": 1} if params.logprobs else {})

    def reports_logprobs(self, stage: StageSpec[ChatParams]) -> bool:
        return stage.params.logprobs

    def temperature(self, stage: StageSpec[ChatParams]) -> float:
        return stage.params.temperature


STAGES.register("sample:chat")(SampleChat())
