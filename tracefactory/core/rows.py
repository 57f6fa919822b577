"""The rows of the factory: a `Problem` is a question with a checkable answer, a `Trace` one chain of thought for it.

Rows are immutable. A trace refers to its problem, whose text is stored once; verdicts and measures are columns that
later stages add (`core.columns`). How rows become tables is in `core.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tracefactory.core.fingerprint import digest

ID_DIGITS = 16
"""Hexadecimal digits of a row's id: the first 64 bits of a sha256."""

FieldValue = str | float | int | bool | tuple[str, ...] | tuple[float, ...] | None
"""What a parsed field of a row may hold."""


class Frozen(BaseModel):
    """Base of every model of the project: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(StrEnum):
    """The four values of a verdict. A time-out or a crash is VERIFIER_ERROR, never INCORRECT."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNVERIFIABLE = "unverifiable"  # no gold answer, or no stated answer that the rules could decide on
    VERIFIER_ERROR = "verifier_error"


class Verdict(Frozen):
    """What a verifier found for one answer.

    `span_start` and `span_end` are the [start, end) character range of `extracted` in the answer text, `confidence`
    (0 to 1) says how surely the text states it, and `method` names the rule that decided. `detail` is for a person
    and has no text that a program wrote. `seconds` is wall time, and `log` what a program wrote; they are not stored,
    because equal rows must have equal digests, and because nothing that a program read may be published.
    """

    outcome: Outcome
    extracted: str | None = None
    span_start: int | None = None
    span_end: int | None = None
    confidence: float | None = None
    method: str
    verifier: str
    version: str
    seconds: float = 0.0
    detail: str | None = None
    log: str | None = None


class Passage(Frozen):
    """A text that belongs to a problem or was retrieved for it."""

    title: str = ""
    text: str
    source: str = ""


class Tool(Frozen):
    """A tool that a model may call. `parameters` is a JSON Schema object as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class Problem(Frozen):
    """A question with a checkable answer.

    `answer` is the gold answer and `answers` are further ones that are as good. `verifier` and `spec` (its parameters,
    a JSON object) are the source's hint on how to check an answer; the verify stage decides. `meta` is what else the
    source knows, a JSON object. `fields` holds parsed values and `measures` numbers that stages added.
    """

    id: str
    question: str
    answer: str | None
    answers: tuple[str, ...] = ()
    context: tuple[Passage, ...] = ()
    tests: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    verifier: str = "auto"
    spec: str = "{}"
    domain: str = ""
    source: str = ""
    licence: str = ""
    meta: str = "{}"
    fields: Mapping[str, FieldValue] = Field(default_factory=dict)
    measures: Mapping[str, float] = Field(default_factory=dict)

    @classmethod
    def make(cls, *, question: str, answer: str | None, **rest: Any) -> Problem:
        """Build a problem; question and gold answer alone decide its id, so traces of every kind share one problem."""
        identity = digest({"question": question, "answer": answer})[:ID_DIGITS]
        return cls(id=identity, question=question, answer=answer, **rest)

    @property
    def id_v1(self) -> str:
        """The id that version 1 of the keys gave this problem; it named the verifier too.

        Version 1 derived the seeds of requests from it, so what was paid for then is found by it.
        """
        identity = {"question": self.question, "answer": self.answer, "verifier": self.verifier, "spec": self.spec}
        return digest(identity)[:ID_DIGITS]


class Thinking(StrEnum):
    """How the reasoning of a completion was delimited."""

    CLOSED = "closed"  # a separate field, or <think>...</think>
    OPEN = "open"  # opened and never closed: truncated, or a looping model
    NONE = "none"  # no reasoning channel: all of it is answer text (short styles)


class ParentRole(StrEnum):
    """What a trace is to the trace it was made from."""

    PRUNED = "pruned"
    REVISES = "revises"
    CRITIQUES = "critiques"
    CONTINUES = "continues"


class Parent(Frozen):
    """A trace that another trace was made from; `step` (from 0) says where a continuation starts."""

    id: str
    role: ParentRole
    step: int | None = None


class ToolCall(Frozen):
    """One call of a tool. `arguments` is a JSON object as text."""

    id: str = ""
    name: str
    arguments: str = "{}"


class Turn(Frozen):
    """One message of a conversation. `name` and `call_id` belong to a tool's result."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    def message(self) -> dict[str, Any]:
        """Return the turn as chat completions write it, without its reasoning, and without what it does not have."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        given = {"tool_calls": calls, "tool_call_id": self.call_id, "name": self.name}
        return {"role": self.role, "content": self.content, **{name: value for name, value in given.items() if value}}


class StepLabel(Frozen):
    """A label on the characters [start, end) of the reasoning: a judged step, its value, and who says so."""

    start: int
    end: int
    label: str = ""
    value: float | None = None
    source: str = ""


class Trace(Frozen):
    """One chain of thought for one problem, as sampled or as derived from other traces.

    `reasoning` and `answer_text` are the last turn of the assistant; `turns` are the turns between the question and
    that last one (tool calls and their results, a critique, an earlier attempt), none for a single-turn trace.
    `prompt_digest` is of the prompt's file, `messages_digest` of the rendered messages that were sent ("" for traces of
    version 0.2 and those read from files), and `system` is the system message among them. `finish_reason` is the
    server's word (stop, length, content_filter); `refusal` is the text of a refusal; token counts are the server's;
    `cost` is in US dollars, None where the price is unknown (0 of a completion that 0.2 stored without a price).
    `derivation` says how a pruned trace came from its parent (JSON, "{}" for a sample).
    """

    id: str
    problem: Problem
    parents: tuple[Parent, ...] = ()
    op: str = "sample"
    stage: str = ""
    teacher: str = ""
    model: str = ""
    revision: str = ""
    prompt: str = ""
    prompt_digest: str = ""
    messages_digest: str = ""
    system: str | None = None
    style: str = ""
    sample_index: int = 0
    seed: int | None = None
    temperature: float | None = None
    request_key: str = ""
    reasoning: str = ""
    answer_text: str = ""
    turns: tuple[Turn, ...] = ()
    steps: tuple[StepLabel, ...] = ()
    thinking: Thinking = Thinking.NONE
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    verdict: Verdict | None = None
    derivation: str = "{}"
    measures: Mapping[str, float] = Field(default_factory=dict)
    fields: Mapping[str, FieldValue] = Field(default_factory=dict)

    @property
    def problem_id(self) -> str:
        return self.problem.id

    @property
    def text(self) -> str:
        """Reasoning and answer as a student would be trained to write them."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer_text}" if self.reasoning else self.answer_text

    @property
    def messages(self) -> tuple[Turn, ...]:
        """The whole conversation: the question, the turns in between, and the last turn of the assistant."""
        question = Turn(role="user", content=self.problem.question)
        return (question, *self.turns, Turn(role="assistant", content=self.answer_text, reasoning=self.reasoning))

    def parent(self, role: ParentRole) -> str | None:
        """Return the id of the parent with this role, None when there is none."""
        return next((one.id for one in self.parents if one.role is role), None)


Row = Problem | Trace


class Kind(StrEnum):
    """The kinds of rows that a stage takes or gives."""

    NONE = "none"
    PROBLEMS = "problems"
    TRACES = "traces"


def problem_id_of(row: Row) -> str:
    """Return the id of the problem that a row is, or belongs to."""
    return row.problem.id if isinstance(row, Trace) else row.id
