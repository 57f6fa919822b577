"""Traces that exist already, out of files: a problem per row as in `files`, and what somebody wrote to solve it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Problem, Thinking, Trace
from tracefactory.reading.base import SOURCES, Rejected
from tracefactory.reading.mapping import lookup, to_problem
from tracefactory.reading.records import Record
from tracefactory.sources.files import Files, FilesParams, labelled_records
from tracefactory.text.reasoning import split_reasoning


class TraceFilesParams(FilesParams):
    """Files of traces, and which field is which."""

    response: str = Field("response", description="Field of the completion, or of the answer text beside `reasoning`.")
    reasoning: str | None = Field(None, description="Field of the reasoning, where it is not inside the completion.")
    tags: tuple[str, str] | None = Field(None, description="What opens and closes reasoning, where it is not <think>.")
    model_field: str | None = Field(None, description="Field of the name of the model that wrote the trace.")
    model: str = Field("", description="Name of the model that wrote every trace.")
    style: str = Field("long", description="Style of every trace, as prompts name it.")
    finish_reason: str | None = Field(None, description="Field of the server's word for why the completion ended.")

    def fields(self) -> list[str]:
        """Return every field that a row is expected to have."""
        own = [self.response, self.reasoning, self.model_field, self.finish_reason]
        return [*super().fields(), *(field for field in own if field is not None)]


@SOURCES.register("traces")
class TraceFiles(Files):
    """Reads traces; as a source of problems it would give those of the same rows."""

    name = "traces"
    Params = TraceFilesParams

    def traces(self, params: TraceFilesParams, *, base_dir: Path, limit: int | None) -> Iterator[Trace | Rejected]:
        """Yield the traces in the order of the files, and what is none where it stood; `limit` counts traces."""
        samples: dict[str, int] = {}
        for label, record in labelled_records(params, base_dir):
            if limit is not None and sum(samples.values()) >= limit:
                return
            row = record if isinstance(record, Rejected) else _trace(record, params, label, samples)
            if isinstance(row, Trace):
                samples[row.problem_id] = row.sample_index + 1
            yield row


def _trace(record: Record, params: TraceFilesParams, label: str, samples: dict[str, int]) -> Trace | Rejected:
    problem = to_problem(record, params, label)
    if not isinstance(problem, Problem):
        return problem
    response = lookup(record.values, params.response)
    apart = None if params.reasoning is None else lookup(record.values, params.reasoning)
    if not isinstance(response, str) or not (response.strip() or apart):
        return record.reject("no_response", f"no text in {params.response}")
    if apart is not None and not isinstance(apart, str):
        return record.reject("no_reasoning", f"no text in {params.reasoning}")
    if params.tags is not None:
        response = response.replace(params.tags[0], "<think>").replace(params.tags[1], "</think>")
    reasoning, answer, thinking = split_reasoning(response, apart, opened_in_prompt=False)
    said = None if params.finish_reason is None else lookup(record.values, params.finish_reason)
    wrote = params.model if params.model_field is None else lookup(record.values, params.model_field)
    index = samples.get(problem.id, 0)
    try:
        key = digest({"problem": problem.id, "reasoning": reasoning, "answer": answer})
    except UnicodeEncodeError:
        return record.reject("bad_encoding", "holds half a surrogate pair, which no UTF-8 text can")
    return Trace(
        id=key[:16],
        problem=problem,
        op="import",
        teacher=str(wrote or ""),
        model=str(wrote or ""),
        style=params.style,
        sample_index=index,
        reasoning=reasoning,
        answer_text=answer,
        thinking=thinking,
        finish_reason=str(said) if said else "length" if thinking is Thinking.OPEN else "stop",
    )
