"""The rows of the factory and the declared Arrow schema of every table.

A `Problem` is a question with a checkable answer. A `Trace` is one sampled (or derived) chain of thought for it; it
carries its problem, its verdict and its measures, so that a row is readable alone. Nothing is ever inferred from data:
empty and null columns keep their type, and arbitrary JSON travels as a JSON string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tracefactory.core.fingerprint import digest


class Frozen(BaseModel):
    """Base of every model of the project: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(StrEnum):
    """The four values of a verdict. A time-out or a crash is VERIFIER_ERROR, never INCORRECT."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNVERIFIABLE = "unverifiable"  # no gold, or no answer stated that rules could decide on
    VERIFIER_ERROR = "verifier_error"


class Verdict(Frozen):
    """What a verifier found for one answer.

    `span` is the [start, end) character range of `extracted` in the answer text (or in the reasoning when
    `span_in` says so); `method` names the rule that decided; `seconds` is wall time.
    """

    outcome: Outcome
    extracted: str | None = None
    span_start: int | None = None
    span_end: int | None = None
    method: str
    verifier: str
    version: str
    seconds: float = 0.0
    detail: str | None = None


class Problem(Frozen):
    """A question with a checkable answer.

    `verifier` names a registered verifier, `spec` holds its parameters as a JSON object string. `meta` is whatever the
    source knows besides, as a JSON object string.
    """

    id: str
    question: str
    answer: str | None
    verifier: str
    spec: str = "{}"
    domain: str = ""
    source: str = ""
    licence: str = ""
    meta: str = "{}"

    @classmethod
    def make(cls, *, question: str, answer: str | None, verifier: str, **rest: str) -> Problem:
        """Build a problem whose id is the digest of what makes it that problem: question, answer, verifier, spec."""
        spec = rest.get("spec", "{}")
        identity = {"question": question, "answer": answer, "verifier": verifier, "spec": spec}
        return cls(id=digest(identity)[:16], question=question, answer=answer, verifier=verifier, **rest)


class Thinking(StrEnum):
    """How the reasoning of a completion was delimited."""

    CLOSED = "closed"  # a separate field, or <think>...</think>
    OPEN = "open"  # opened and never closed: truncated, or a looping model
    NONE = "none"  # no reasoning channel: all of it is answer text (short styles)


class Trace(Frozen):
    """One chain of thought for one problem, as sampled or as derived from another trace.

    `finish_reason` is the server's word (stop, length, content_filter) or `error`; `refusal` is the text of a refusal;
    token counts are the server's usage; `cost` is in US dollars by the model's declared prices. `derivation` is a JSON
    object string: how a derived trace came from its parent (the steps it keeps, why it fell back), "{}" for a sample.
    """

    id: str
    problem: Problem
    parent_id: str | None = None
    op: str = "sample"
    stage: str = ""
    teacher: str = ""
    model: str = ""
    revision: str = ""
    prompt: str = ""
    prompt_digest: str = ""
    style: str = ""
    sample_index: int = 0
    seed: int | None = None
    temperature: float | None = None
    request_key: str = ""
    reasoning: str = ""
    answer_text: str = ""
    thinking: Thinking = Thinking.NONE
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    error: str | None = None
    verdict: Verdict | None = None
    derivation: str = "{}"
    measures: Mapping[str, float] = Field(default_factory=dict)

    @property
    def problem_id(self) -> str:
        return self.problem.id

    @property
    def text(self) -> str:
        """Reasoning and answer as a student would be trained to write them."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer_text}" if self.reasoning else self.answer_text


class Dropped(Frozen):
    """A row a stage did not pass on: what it was, why, and the row itself as JSON so that nothing is lost."""

    id: str
    problem_id: str
    stage: str
    reason: str
    detail: str | None = None
    error: bool = False
    row: str


_S, _I, _F = pa.string(), pa.int64(), pa.float64()


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


PROBLEM_SCHEMA = pa.schema(
    [
        _required("id", _S),
        _required("question", _S),
        pa.field("answer", _S),
        *(_required(name, _S) for name in ("verifier", "spec", "domain", "source", "licence", "meta")),
    ]
)
VERDICT_TYPE = pa.struct(
    [
        _required("outcome", _S),
        pa.field("extracted", _S),
        pa.field("span_start", _I),
        pa.field("span_end", _I),
        *(_required(name, _S) for name in ("method", "verifier", "version")),
        _required("seconds", _F),
        pa.field("detail", _S),
    ]
)
TRACE_SCHEMA = pa.schema(
    [
        _required("id", _S),
        pa.field("problem", pa.struct(list(PROBLEM_SCHEMA)), nullable=False),
        pa.field("parent_id", _S),
        *(
            _required(name, _S)
            for name in ("op", "stage", "teacher", "model", "revision", "prompt", "prompt_digest", "style")
        ),
        _required("sample_index", _I),
        pa.field("seed", _I),
        pa.field("temperature", _F),
        *(_required(name, _S) for name in ("request_key", "reasoning", "answer_text", "thinking", "finish_reason")),
        pa.field("refusal", _S),
        _required("prompt_tokens", _I),
        _required("completion_tokens", _I),
        _required("cost", _F),
        pa.field("error", _S),
        pa.field("verdict", VERDICT_TYPE),
        _required("derivation", _S),
        pa.field("measures", pa.map_(_S, _F), nullable=False),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [
        *(_required(name, _S) for name in ("id", "problem_id", "stage", "reason")),
        pa.field("detail", _S),
        _required("error", pa.bool_()),
        _required("row", _S),
    ]
)

Row = Problem | Trace


def to_table(rows: Iterable[BaseModel], schema: pa.Schema) -> pa.Table:
    """Turn models into an Arrow table of exactly `schema`; a row that does not fit raises."""
    return pa.Table.from_pylist([_plain(row) for row in rows], schema=schema)


def problems_from(table: pa.Table) -> list[Problem]:
    return [Problem.model_validate(row) for row in table.to_pylist()]


def traces_from(table: pa.Table) -> list[Trace]:
    return [Trace.model_validate({**row, "measures": dict(row["measures"])}) for row in table.to_pylist()]


def _plain(row: BaseModel) -> dict[str, Any]:
    plain = row.model_dump(mode="json")
    if "measures" in plain:
        plain["measures"] = sorted(plain["measures"].items())
    return plain
