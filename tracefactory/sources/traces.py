"""Read existing traces from files: each row has a problem, as in `files`, and a completion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import ID_DIGITS, Problem, Thinking, Trace, Turn
from tracefactory.reading.base import SOURCES, Rejected
from tracefactory.reading.conversation import BadConversation, read_conversation
from tracefactory.reading.mapping import lookup, to_problem
from tracefactory.reading.records import Record
from tracefactory.sources.files import Files, FilesParams, labelled_records
from tracefactory.text.reasoning import split_reasoning


class TraceFilesParams(FilesParams):
    """The files of traces, and the mapping of their fields."""

    response: str = Field("response", description="Field of the completion; with `reasoning`, of the answer text.")
    reasoning: str | None = Field(None, description="Field of the reasoning, if it is not in the completion.")
    messages: str | None = Field(
        None,
        description="Field of a conversation from the question to the last answer, in the format of chat completions. "
        "It replaces `response` and `reasoning`; its first user message must be the question.",
    )
    tags: tuple[str, str] | None = Field(None, description="The tags around reasoning, if they are not <think> tags.")
    model_field: str | None = Field(None, description="Field of the name of the model that wrote the trace.")
    model: str = Field("", description="Name of the model that wrote every trace.")
    style: str = Field("long", description="Style of every trace, as prompts name it.")
    finish_reason: str | None = Field(None, description="Field of the server's finish reason.")

    def fields(self) -> list[str]:
        """Return every field that a row is expected to have."""
        text = [self.response, self.reasoning] if self.messages is None else [self.messages]
        own = [*text, self.model_field, self.finish_reason]
        return [*super().fields(), *(field for field in own if field is not None)]


@SOURCES.register("traces")
class TraceFiles(Files):
    """Reads traces; as a source of problems, it reads the problems of the same rows."""

    name = "traces"
    Params = TraceFilesParams

    def traces(self, params: TraceFilesParams, *, base_dir: Path, limit: int | None) -> Iterator[Trace | Rejected]:
        """Yield traces and rejected rows in the order of the files.

        Args:
            params: the parameters of the source.
            base_dir: the folder for relative paths.
            limit: the number of traces after which to stop; None for all.
        """
        samples: dict[str, int] = {}
        for label, record in labelled_records(params, base_dir):
            if limit is not None and sum(samples.values()) >= limit:
                return
            row = record if isinstance(record, Rejected) else _trace(record, params, label, samples)
            if isinstance(row, Trace):
                samples[row.problem_id] = row.sample_index + 1
            yield row


@dataclass(frozen=True)
class _Written:
    """The text of a row: the last turn and, of a conversation, the turns between the question and it."""

    reasoning: str
    answer: str
    thinking: Thinking
    turns: tuple[Turn, ...] = ()
    system: str | None = None


def _trace(record: Record, params: TraceFilesParams, label: str, samples: dict[str, int]) -> Trace | Rejected:
    problem = to_problem(record, params, label)
    if not isinstance(problem, Problem):
        return problem
    written = _written(record, params, problem)
    if isinstance(written, Rejected):
        return written
    finish_reason = None if params.finish_reason is None else lookup(record.values, params.finish_reason)
    default = "length" if written.thinking is Thinking.OPEN else "stop"
    model = params.model if params.model_field is None else lookup(record.values, params.model_field)
    key: dict[str, Any] = {"problem": problem.id, "reasoning": written.reasoning, "answer": written.answer}
    if written.turns:
        key["turns"] = [turn.model_dump() for turn in written.turns]
    try:
        trace_id = digest(key)[:ID_DIGITS]
    except UnicodeEncodeError:
        return record.reject("bad_encoding", "it has a lone surrogate, which UTF-8 cannot encode")
    return Trace(
        id=trace_id,
        problem=problem,
        op="import",
        teacher=str(model or ""),
        model=str(model or ""),
        style=params.style,
        sample_index=samples.get(problem.id, 0),
        system=written.system,
        reasoning=written.reasoning,
        answer_text=written.answer,
        turns=written.turns,
        thinking=written.thinking,
        finish_reason=str(finish_reason or default),
    )


def _written(record: Record, params: TraceFilesParams, problem: Problem) -> _Written | Rejected:
    before: tuple[Turn, ...] = ()
    system = None
    if params.messages is None:
        response = lookup(record.values, params.response)
        apart = None if params.reasoning is None else lookup(record.values, params.reasoning)
        if not isinstance(response, str) or not (response.strip() or apart):
            return record.reject("no_response", f"no text in {params.response}")
        if apart is not None and not isinstance(apart, str):
            return record.reject("no_reasoning", f"no text in {params.reasoning}")
    else:
        try:
            system, question, before, last = read_conversation(lookup(record.values, params.messages))
        except BadConversation as error:
            return record.reject("no_conversation", f"{params.messages}: {error}")
        if question.strip() != problem.question:
            return record.reject("other_question", f"the first user message of {params.messages} is not the question")
        response, apart = last.content, last.reasoning or None
    if params.tags is not None:
        response = response.replace(params.tags[0], "<think>").replace(params.tags[1], "</think>")
    return _Written(*split_reasoning(response, apart, opened_in_prompt=False), before, system)
