"""`sample: reverse_speculative` and its family: traces that a teacher and a student write together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, create_model

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.op import OPS, Inputs, ModelName, ShardResult
from tracefactory.core.schema import Dropped, Frozen, Outcome, Thinking, Trace
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoding.decoder import DECODERS, Decoder
from tracefactory.decoding.pairs import check_one_server, check_pair, open_pair
from tracefactory.decoding.provenance import Decoded
from tracefactory.engine.worker import Completer, Worker
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.base import Completion, ModelSpec, Where
from tracefactory.stages.sample.chat import SampleOp, SampleParams
from tracefactory.stages.verify.auto import verdicts_by_rule, verifier_versions
from tracefactory.store.stages import StageRecord, dropped_row
from tracefactory.students.select import best_per_problem

BLOCKS = "thinking_blocks"
"""The measure that counts how often a decoded trace closes its thinking."""


class DecodedParams(SampleParams):
    """Which two models write; the decoder's own parameters stand beside these.

    Both are `use: transformers`, loaded into this process, or both are served by vLLM: `use: vllm`, or `use: openai`
    with a `tokenizer:`, for servers started with --enable-scale-out --enable-prompt-tokens-details
    --max-logprobs 1024.
    """

    teacher: ModelName
    student: ModelName


class ReverseSpeculativeParams(DecodedParams, ReverseSpeculative):
    """Reverse speculative decoding, and which of a problem's runs are accepted; values of the authors' code.

    A run is accepted when it ended by itself, closed its thinking once (`thinking: closed`), has at most `max_fallback`
    of its tokens from the student, states an answer, and the answer is correct. Of a problem's accepted runs the one
    with the fewest tokens is kept (`keep: shortest`).

    `servers: one` has two `use: vllm` models decode inside of one vLLM server, the teacher as the student's draft
    model: the fastest form, for vLLM 0.32 alone, and for models of one vocabulary.
    """

    samples: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=7168, ge=1)
    max_fallback: float = Field(default=0.5, ge=0, le=1)
    thinking: Literal["closed", "any"] = "closed"
    keep: Literal["shortest", "all"] = "shortest"
    servers: Literal["two", "one"] = "two"


class SampleDecoded(SampleOp):
    """Sample with one decoder; every trace is passed on."""

    completion = Decoded
    decoder: ClassVar[type[Decoder]]

    def payer(self, stage: StageConfig) -> str:
        return _params(stage).teacher

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {
            "models": self.model_identity(stage, pipeline, Where(root=pipeline.project.root)),
            "prompt": pipeline.prompts[_params(stage).prompt].digest,
        }

    def model_identity(self, stage: StageConfig, pipeline: Pipeline, where: Where) -> dict[str, Any]:
        params = _params(stage)
        return {
            "model": f"{self.decoder.name} {self.decoder.version}",
            "teacher": _identity(pipeline.models[params.teacher], where),
            "student": _identity(pipeline.models[params.student], where),
            **({"servers": "one"} if _one_server(stage) else {}),
        }

    def sampling(self, stage: StageConfig, seed: int) -> dict[str, Any]:
        params = _params(stage)
        given = params.model_dump(mode="json", include=set(self.decoder.model_fields))
        return {**given, "decoder": self.decoder.name, "max_tokens": params.max_tokens, "seed": seed}

    def temperature(self, stage: StageConfig) -> float:
        assert isinstance(stage.params, Decoder)
        return stage.params.teacher_temperature

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        named = (_params(stage).teacher, _params(stage).student)
        if not all(name in pipeline.models for name in named):
            return []  # configuration has said so
        teacher, student = ((name, pipeline.models[name]) for name in named)
        return check_one_server(teacher, student) if _one_server(stage) else check_pair(teacher, student)

    def client(self, stage: StageConfig, worker: Worker) -> Completer:
        names = (_params(stage).teacher, _params(stage).student)
        one = _one_server(stage)
        return worker.keep(f"pair {names} {one}", lambda: open_pair(*names, worker, one_server=one))

    def fields(self, stage: StageConfig, completion: Completion) -> dict[str, Any]:
        """Return the measures of a decoded trace: who wrote how much, and how often the thinking was closed."""
        assert isinstance(completion, Decoded)
        written = float(completion.provenance.by_student.mean())
        return {"measures": {student_share(stage): written, BLOCKS: float(completion.content.count("</think>"))}}

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        return frozenset({student_share(stage), BLOCKS})

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        result = await super().run(stage, inputs, worker)
        runs = [row for row in result.kept if isinstance(row, Trace)]
        return replace(result, numbers={**result.numbers, **_counted(runs, runs, stage)})


class SampleReverseSpeculative(SampleDecoded):
    """Reverse speculative decoding: N runs per problem, of which the shortest accepted one is passed on."""

    name, version = "reverse_speculative", "1"
    Params = ReverseSpeculativeParams
    decoder = ReverseSpeculative

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {**super().identity(stage, pipeline), "verifiers": verifier_versions()}

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params = stage.params
        assert isinstance(params, ReverseSpeculativeParams)
        sampled = await self.sample(stage, inputs, worker)
        verdicts = await verdicts_by_rule(sampled.traces, worker)
        outcomes = [verdict.outcome for verdict in verdicts]
        runs = [run.model_copy(update={"verdict": one}) for run, one in zip(sampled.traces, verdicts, strict=True)]
        accepted, dropped = [], list(sampled.failed)
        for run in runs:
            reason, detail = refusal(run, params, run.measures[student_share(stage)])
            if reason:
                dropped.append(dropped_row(run, stage.id, reason, detail))
            else:
                accepted.append(run)
        kept, longer = _shortest(accepted, stage.id) if params.keep == "shortest" else (accepted, [])
        return ShardResult(
            rows_in=len(inputs.problems()) * params.samples,
            kept=kept,
            dropped=[*dropped, *longer],
            retryable=sampled.retryable,
            numbers={
                **sampled.numbers,
                **{outcome.value: float(outcomes.count(outcome)) for outcome in Outcome if outcome in outcomes},
                **_counted(runs, kept, stage),
            },
        )


def refusal(run: Trace, params: ReverseSpeculativeParams, share: float) -> tuple[str, str | None]:
    """Return why a verified run is not accepted, and a detail; empty when it is.

    The order is that of the authors' code; `share` is the share of its tokens that the student wrote.
    """
    assert run.verdict is not None
    if run.finish_reason != "stop":
        return "not_finished", f"after {run.completion_tokens} tokens"
    if params.thinking == "closed" and (run.thinking is not Thinking.CLOSED or run.measures[BLOCKS] != 1):
        return "thinking_not_closed_once", f"closed {run.measures[BLOCKS]:.0f} times"
    if share > params.max_fallback:
        return "fallback_share", f"{share:.3f} of the tokens are the student's, at most {params.max_fallback:g}"
    if run.verdict.extracted is None:
        return "no_answer", run.verdict.method
    if run.verdict.outcome is not Outcome.CORRECT:
        return run.verdict.outcome.value, f"found {run.verdict.extracted}"
    return "", None


def student_share(stage: StageConfig) -> str:
    """Return the name of the measure: the share of a trace's tokens that the student wrote (its fallback share)."""
    return f"{_params(stage).student}/student_share"


def _shortest(accepted: list[Trace], stage_id: str) -> tuple[list[Trace], list[Dropped]]:
    found = best_per_problem(accepted, lambda run: float(run.completion_tokens), 1, "lowest")
    return list(found.kept), [dropped_row(one.trace, stage_id, "not_shortest", one.detail) for one in found.dropped]


def written_notes(stages: Sequence[StageConfig], records: Mapping[str, StageRecord]) -> list[str]:
    """Return a sentence for every stage whose traces two models wrote: how much of them is the student's."""
    notes = []
    for stage in stages:
        numbers = records[stage.id].tally.numbers
        if isinstance(stage.op, SampleDecoded) and numbers.get("tokens_of_all"):
            shares = {name: _share(numbers, name) for name in ("all", "kept")}
            notes.append(
                f"{stage.id}: {_params(stage).student} wrote {shares['all']} of the tokens of all traces, "
                f"and {shares['kept']} of those that were kept; {_params(stage).teacher} wrote the others"
            )
    return notes


def _share(numbers: Mapping[str, float], of: str) -> str:
    tokens = numbers[f"tokens_of_{of}"]
    return f"{numbers[f'student_tokens_of_{of}'] / tokens:.1%}" if tokens else "none"


def _counted(runs: Sequence[Trace], kept: Sequence[Trace], stage: StageConfig) -> dict[str, float]:
    """Count the tokens of traces and those of them that the student wrote, over all traces of a shard and the kept."""
    numbers: dict[str, float] = {}
    for name, traces in (("all", runs), ("kept", kept)):
        student = sum(round(trace.measures[student_share(stage)] * trace.completion_tokens) for trace in traces)
        numbers[f"student_tokens_of_{name}"] = float(student)
        numbers[f"tokens_of_{name}"] = float(sum(trace.completion_tokens for trace in traces))
    return numbers


def _one_server(stage: StageConfig) -> bool:
    return isinstance(stage.params, ReverseSpeculativeParams) and stage.params.servers == "one"


def _identity(spec: ModelSpec, where: Where) -> dict[str, Any]:
    """Return what decides a model's tokens: of a foreign server, its tokenizer and chat template too."""
    told = {"tokens": spec.student(where).identity()} if isinstance(spec, OpenAISpec) else {}
    return {**spec.identity(where), **told}


def _params(stage: StageConfig) -> DecodedParams:
    assert isinstance(stage.params, DecodedParams)
    return stage.params


def _op_of(kind: type[Decoder]) -> SampleDecoded:
    """Return the plain operation of a decoder."""
    params: type[Frozen] = create_model(f"{kind.__name__}Params", __base__=(DecodedParams, kind), __doc__=kind.__doc__)
    members = {"name": kind.name, "version": "1", "Params": params, "decoder": kind, "__doc__": kind.__doc__}
    made: SampleDecoded = type(f"Sample{kind.__name__}", (SampleDecoded,), members)()
    return made


OPS.register("sample:reverse_speculative")(SampleReverseSpeculative())
for _name in DECODERS:
    if _name != ReverseSpeculative.name:
        OPS.register(f"sample:{_name}")(_op_of(DECODERS.get(_name)))
