"""Convert rows of a data set to problems with a mapping of fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import Field, JsonValue

from tracefactory.core.errors import nearest
from tracefactory.core.rows import Frozen, Passage, Problem, Tool
from tracefactory.reading.base import Rejected, json_text
from tracefactory.reading.extract import EXTRACTORS, AnswerFrom
from tracefactory.reading.records import Record

_LABELLED = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.*)", re.DOTALL)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class FieldMapping(Frozen):
    """The mapping from fields of a row to parts of a problem. Nested fields are `outer.inner` or `list.0`."""

    question: str | tuple[str, ...] = Field(
        "question", description="Field of the question, or several to join with line breaks."
    )
    answer: str | None = Field("answer", description="Field of the answer; null for problems without a known answer.")
    answer_from: AnswerFrom = Field("field", description="How to extract the answer from that field.")
    answers: str | None = Field(None, description="Field of further correct answers: a list.")
    context: str | None = Field(None, description="Field of passages: texts, or objects with title, text and source.")
    tests: str | None = Field(None, description="Field of programs that test an answer: a list.")
    tools: str | None = Field(None, description="Field of tools that may be called, in the format of chat completions.")
    measures: dict[str, str] = Field({}, description="Fields of numbers, by the name of the column they become.")
    choices: str | None = Field(None, description="Field of the options of a multiple-choice question.")
    id: str | None = Field(None, description="Field of the data set's id, stored in meta.")
    domain: str = Field("", description="Domain of every problem.")
    domain_field: str | None = Field(None, description="Field of the domain, if it differs between rows.")
    licence: str = Field("", description="Licence of every problem.")
    licence_field: str | None = Field(None, description="Field of the licence, if it differs between rows.")
    meta: tuple[str, ...] = Field((), description="Further fields to store in meta.")
    remove: tuple[str, ...] = Field((), description="Texts to remove from questions, such as a fixed instruction.")
    verifier: str | None = Field(
        None, description="Verifier of the answers; default math, or choice if there are choices."
    )
    spec: dict[str, JsonValue] = Field({}, description="Parameters of the verifier.")

    @property
    def verifier_name(self) -> str:
        """The verifier that the problems name."""
        return self.verifier or ("math" if self.choices is None else "choice")

    def fields(self) -> list[str]:
        """Return the fields that every row should have."""
        questions = [self.question] if isinstance(self.question, str) else list(self.question)
        single = [self.answer, self.choices, self.id, self.domain_field, self.licence_field]
        single += [self.answers, self.context, self.tests, self.tools, *self.measures.values()]
        return [*questions, *(field for field in single if field is not None), *self.meta]


class _UnusableError(Exception):
    """A row has no usable value for a part of the problem."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def lookup(row: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field.

    Args:
        row: the row.
        field: the name of the field, or a path such as `outer.inner` or `list.0`. A name with a dot has priority.

    Returns:
        The value, None when it is missing.
    """
    if field in row:
        return row[field]
    value: Any = row
    for step in field.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, (list, tuple)) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def missing_fields(records: Sequence[Record], mapping: FieldMapping, source: str) -> list[str]:
    """Return a mistake for every field of a mapping that none of some records has, with the nearest one they have.

    Args:
        records: the first records of a source.
        mapping: the mapping from their fields.
        source: the source of the records, for messages.
    """
    known = {name for record in records for name in record.values}
    missing = [
        field
        for field in dict.fromkeys(mapping.fields())
        if records and field not in known and all(lookup(record.values, field) is None for record in records)
    ]
    hints = {field: nearest(field, known) for field in missing}
    return [f"{source} has no field {field!r}" + (f" ({hint})" if hint else "") for field, hint in hints.items()]


def to_problem(record: Record, mapping: FieldMapping, source: str) -> Problem | Rejected:
    """Convert a row to a problem.

    Args:
        record: the row.
        mapping: the mapping from its fields.
        source: the source of the problem.

    Returns:
        The problem, or the rejected row with the reason.
    """
    row = record.values
    try:
        question = _question(row, mapping)
        options = None if mapping.choices is None else _options(lookup(row, mapping.choices))
        answer = None if mapping.answer is None else _answer(row, mapping.answer, mapping.answer_from, options)
        texts = {
            "domain": mapping.domain if mapping.domain_field is None else _text(lookup(row, mapping.domain_field)),
            "licence": mapping.licence if mapping.licence_field is None else _text(lookup(row, mapping.licence_field)),
        }
        further: dict[str, Any] = {
            name: read(lookup(row, field))
            for name, read in _FURTHER_FIELDS.items()
            if (field := getattr(mapping, name)) is not None
        }
        if mapping.measures:
            further["measures"] = _numbers(row, mapping.measures)
    except _UnusableError as error:
        return record.reject(error.reason, error.detail)
    meta = {field: lookup(row, field) for field in mapping.meta}
    meta |= {} if mapping.id is None else {"id": lookup(row, mapping.id)}
    meta |= {record.unit: record.number}
    if options is not None:
        question = "\n".join([f"{question}\n", *(f"{label}) {text}" for label, text in options.items())])
    return Problem.make(
        question=question,
        answer=answer,
        verifier=mapping.verifier_name,
        spec=json_text(mapping.spec),
        source=source,
        meta=json_text(meta),
        **{name: text or "" for name, text in texts.items()},
        **further,
    )


def _question(row: Mapping[str, Any], mapping: FieldMapping) -> str:
    fields = (mapping.question,) if isinstance(mapping.question, str) else mapping.question
    parts = [_text(lookup(row, field)) for field in fields]
    if missing := [field for field, part in zip(fields, parts, strict=True) if not part]:
        raise _UnusableError("no_question", f"{', '.join(missing)} is empty")
    question = "\n".join(part for part in parts if part)
    for text in mapping.remove:
        question = question.replace(text, "")
    if not question.strip():
        raise _UnusableError("no_question", "the question is empty after removals")
    return question.strip()


def _answer(row: Mapping[str, Any], field: str, where: AnswerFrom, options: Mapping[str, str] | None) -> str:
    value = lookup(row, field)
    text = _text(value)
    if not text:
        raise _UnusableError("no_answer", f"{field} is empty")
    answer = EXTRACTORS[where](text)
    if not answer:
        raise _UnusableError("no_answer", f"{field} has no answer in the format {where}")
    return answer if options is None else _label(answer, value, options)


def _label(answer: str, value: Any, options: Mapping[str, str]) -> str:
    """Return the label of the option that an answer names by its label, its text, or its index from 0."""
    bare = answer.strip("().: ")
    if bare in options:
        return bare
    if same := [label for label, text in options.items() if text == answer]:
        return same[0]
    if isinstance(value, int) and 0 <= value < len(options):
        return list(options)[value]
    raise _UnusableError("answer_not_a_choice", f"{answer!r} is none of {', '.join(options)}")


def _options(value: Any) -> dict[str, str]:
    """Return label -> text, from a list of texts, from {label: text}, or from {"label": [...], "text": [...]} (ARC)."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        pairs = [(_text(label) or "", text) for label, text in zip(value["label"], value["text"], strict=False)]
    elif isinstance(value, Mapping):
        pairs = [(_text(label) or "", text) for label, text in value.items()]
    elif isinstance(value, (list, tuple)) and len(value) <= len(_LETTERS):
        labelled = [_LABELLED.fullmatch(item) if isinstance(item, str) else None for item in value]
        own = [match[1] for match in labelled if match]
        if own and own == list(_LETTERS[: len(value)]):
            pairs = [(match[1], match[2]) for match in labelled if match]
        else:
            pairs = list(zip(_LETTERS, value, strict=False))
    else:
        pairs = []
    options = {label: _text(text) or "" for label, text in pairs}
    if len(options) < 2 or not all(options.values()):
        raise _UnusableError("no_choices", "there are fewer than two options, or an empty option")
    return options


def _text(value: Any) -> str | None:
    """Return a value as text in its usual form: 145.0 is "145". None and NaN are missing values.

    Raises:
        _UnusableError: for values without such a form: booleans, objects, lists of several values.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _UnusableError("bad_encoding", "it has a lone surrogate, which UTF-8 cannot encode") from error
        return value.strip()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise _UnusableError("not_a_text", f"expected text or a number, found {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else None
    return str(value)


def _numbers(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a row by column; one that is missing is left out, and text that is a number counts."""
    found: dict[str, float] = {}
    for name, field in fields.items():
        value = lookup(row, field)
        if value is None or value == "":
            continue
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise _UnusableError("no_number", f"{field} holds {type(value).__name__} {str(value)[:40]!r}") from error
        if math.isfinite(number):
            found[name] = number
    return found


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in map(_text, _items(value)) if text)


def _passages(value: Any) -> tuple[Passage, ...]:
    found = []
    for item in _items(value):
        parts = item if isinstance(item, Mapping) else {"text": item}
        text = _text(parts.get("text"))
        if not text:
            raise _UnusableError("bad_context", "a passage has no text")
        found.append(Passage(text=text, **{name: _text(parts.get(name)) or "" for name in ("title", "source")}))
    return tuple(found)


def _tools(value: Any) -> tuple[Tool, ...]:
    """Parse tools in the format of chat completions: {"type": "function", "function": {...}}, or only the function."""
    try:
        items = _items(json.loads(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise _UnusableError("bad_tools", f"the tools are not valid JSON: {error}") from error
    found = []
    for item in items:
        function = item.get("function", item) if isinstance(item, Mapping) else {}
        name = _text(function.get("name")) if isinstance(function, Mapping) else None
        if not name:
            raise _UnusableError("bad_tools", "a tool has no name")
        described = _text(function.get("description")) or ""
        found.append(Tool(name=name, description=described, parameters=json_text(function.get("parameters") or {})))
    return tuple(found)


_FURTHER_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "answers": _texts,
    "context": _passages,
    "tests": _texts,
    "tools": _tools,
}
"""Optional parts of a problem, and the functions that parse them."""
