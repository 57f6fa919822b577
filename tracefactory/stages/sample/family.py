"""`sample: <decoder>`: traces that a teacher and a student write together, with one of the registered decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from pydantic import Field, create_model

from tracefactory.core.columns import Column
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.keys import pinned
from tracefactory.core.model import Completion
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Trace
from tracefactory.core.stage import Batch, Completer, Facts, ModelName, Result, Services
from tracefactory.decoding.decoder import DECODERS, Decoder
from tracefactory.decoding.pairs import check_one_server, check_pair, open_pair
from tracefactory.decoding.provenance import Decoded
from tracefactory.stages._sampling import SampleParams, SampleStage
from tracefactory.stages._templates import prompt_mistakes

BLOCKS = Column(
    name="thinking_blocks", description="Times the trace closes its thinking.", unit="blocks", direction="lower"
)


class DecodedParams(SampleParams):
    """Which two models write; the decoder's own parameters stand beside these.

    Both are `use: transformers`, loaded into this process, or both are served by vLLM: `use: vllm`, or `use: openai`
    with a `tokenizer:`, for servers started with --enable-scale-out --enable-prompt-tokens-details
    --max-logprobs 1024.
    """

    teacher: ModelName = Field(description="The teacher, by its name under models:.")
    student: ModelName = Field(description="The student, by its name under models:.")


D = TypeVar("D", bound=DecodedParams)


class SampleDecoded(SampleStage[D]):
    """Sample with one decoder; every trace is passed on."""

    completion = Decoded
    identity_name = "models"
    decoder: ClassVar[type[Decoder]]

    def billed_model(self, stage: StageSpec[D]) -> str:
        return stage.params.teacher

    def one_server(self, stage: StageSpec[D]) -> bool:
        """Tell whether both models decode inside of one server."""
        return False

    def loads(self, stage: StageSpec[D], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({stage.params.student}) if self.one_server(stage) else super().loads(stage, pipeline)

    def model_identity(self, stage: StageSpec[D], pipeline: Pipeline, environment: Environment) -> dict[str, Any]:
        params = stage.params
        return {
            "model": f"{self.decoder.name} {self.decoder.version}",
            "teacher": pipeline.models[params.teacher].token_identity(environment),
            "student": pipeline.models[params.student].token_identity(environment),
            **({"servers": "one"} if self.one_server(stage) else {}),
        }

    def sampling(self, stage: StageSpec[D], seed: int) -> dict[str, Any]:
        given = pinned(stage.params, self.decoder.model_fields)
        return {**given, "decoder": self.decoder.name, "max_tokens": stage.params.max_tokens, "seed": seed}

    def temperature(self, stage: StageSpec[D]) -> float:
        return float(stage.params.teacher_temperature)  # type: ignore[attr-defined]  # every decoder has it

    def check(self, stage: StageSpec[D], pipeline: Pipeline) -> list[Mistake]:
        named = (stage.params.teacher, stage.params.student)
        if not all(name in pipeline.models for name in named):
            return []  # configuration has reported it
        teacher, student = ((name, pipeline.models[name]) for name in named)
        checked = check_one_server if self.one_server(stage) else check_pair
        return [*super().check(stage, pipeline), *checked(teacher, student)]

    def template_mistakes(self, stage: StageSpec[D], pipeline: Pipeline) -> list[Mistake]:
        """Return what the student's chat template does to the prompt: both models continue its rendering."""
        return list(prompt_mistakes(stage, pipeline, stage.params.prompt, stage.params.student, student=True))

    def completer(self, stage: StageSpec[D], services: Services) -> Completer:
        names, one = (stage.params.teacher, stage.params.student), self.one_server(stage)
        return services.keep(f"pair {names} {one}", lambda: open_pair(*names, services, one_server=one), names)

    def opened_in_prompt(self, completion: Completion) -> bool:
        return isinstance(completion, Decoded) and completion.opened_in_prompt

    def fields(self, stage: StageSpec[D], completion: Completion) -> dict[str, Any]:
        """Return the measures of a decoded trace: who wrote how much, and how often the thinking was closed."""
        assert isinstance(completion, Decoded)
        written = float(completion.provenance.by_student.mean())
        blocks = float(completion.content.count("</think>"))
        return {"measures": {share_name(stage): written, BLOCKS.name: blocks}}

    def columns(self, stage: StageSpec[D], pipeline: Pipeline) -> Sequence[Column]:
        about = "Share of the trace's tokens that the student wrote (its fallback share)."
        return [Column(name=share_name(stage), description=about, unit="share"), BLOCKS]

    def facts(self, stage: StageSpec[D], numbers: Mapping[str, float]) -> Facts:
        """Say how much of the traces is the student's."""
        if not numbers.get("tokens_of_all"):
            return Facts()
        shares = {}
        for of in ("all", "kept"):
            tokens = numbers[f"tokens_of_{of}"]
            shares[of] = f"{numbers[f'student_tokens_of_{of}'] / tokens:.1%}" if tokens else "none"
        note = (
            f"{stage.id}: {stage.params.student} wrote {shares['all']} of the tokens of all traces, and "
            f"{shares['kept']} of those that were kept; {stage.params.teacher} wrote the others"
        )
        return Facts(notes=[note])

    async def run(self, stage: StageSpec[D], batch: Batch, services: Services) -> Result:
        result = await super().run(stage, batch, services)
        runs = [made.row for made in result.made if made.decision.keep]
        return replace(result, numbers={**result.numbers, **token_counts(runs, runs, stage)})


def share_name(stage: StageSpec[Any]) -> str:
    """Return the name of the measure: the share of a trace's tokens that the student wrote."""
    return f"{stage.params.student}/student_share"


def token_counts(runs: Sequence[Trace], kept: Sequence[Trace], stage: StageSpec[Any]) -> dict[str, float]:
    """Count the tokens of traces and those of them that the student wrote, over all traces of a batch and the kept."""
    numbers: dict[str, float] = {}
    for name, traces in (("all", runs), ("kept", kept)):
        student = sum(round(trace.measures[share_name(stage)] * trace.completion_tokens) for trace in traces)
        numbers[f"student_tokens_of_{name}"] = float(student)
        numbers[f"tokens_of_{name}"] = float(sum(trace.completion_tokens for trace in traces))
    return numbers


def make(name: str) -> SampleDecoded[Any]:
    """Return the plain operation of one decoder."""
    kind = DECODERS.get(name)
    params: type[Any] = create_model(f"{kind.__name__}Params", __base__=(DecodedParams, kind), __doc__=kind.__doc__)
    members = {"name": kind.name, "version": "1", "Params": params, "decoder": kind, "__doc__": kind.__doc__}
    made: SampleDecoded[Any] = type(f"Sample{kind.__name__}", (SampleDecoded,), members)()
    return made
