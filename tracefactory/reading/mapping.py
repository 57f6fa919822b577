"""From a row of any data set to a problem: which field is which."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field, JsonValue

from tracefactory.core.rows import Frozen, Passage, Problem, Tool
from tracefactory.reading.base import Rejected, json_text
from tracefactory.reading.extract import EXTRACTORS, AnswerFrom
from tracefactory.reading.records import Record

_LABELLED = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.*)", re.DOTALL)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class FieldMapping(Frozen):
    """Which fields of a row become which part of a problem. A field inside another is `outer.inner` or `list.0`."""

    question: str | tuple[str, ...] = Field(
        "question", description="Field of the question, or several to join by line."
    )
    answer: str | None = Field("answer", description="Field of the answer; null for problems without a known one.")
    answer_from: AnswerFrom = Field("field", description="Where in that field the answer stands.")
    answers: str | None = Field(None, description="Field of further answers that are as good: a list.")
    context: str | None = Field(None, description="Field of passages: texts, or objects with title, text and source.")
    tests: str | None = Field(None, description="Field of programs that test an answer: a list.")
    tools: str | None = Field(None, description="Field of tools that may be called, as chat completions list them.")
    choices: str | None = Field(None, description="Field of the options of a multiple-choice question.")
    id: str | None = Field(None, description="Field of the data set's own id; it is kept in meta.")
    domain: str = Field("", description="Domain of every problem.")
    domain_field: str | None = Field(None, description="Field of the domain, where rows differ in it.")
    licence: str = Field("", description="Licence of every problem.")
    licence_field: str | None = Field(None, description="Field of the licence, where rows differ in it.")
    meta: tuple[str, ...] = Field((), description="Further fields to keep in meta.")
    remove: tuple[str, ...] = Field((), description="Texts to cut out of questions, such as a fixed instruction.")
    verifier: str | None = Field(None, description="Verifier of the answers: math, or choice where there are choices.")
    spec: dict[str, JsonValue] = Field({}, description="Parameters of the verifier.")

    @property
    def verifier_name(self) -> str:
        """The verifier that the problems name."""
        return self.verifier or ("math" if self.choices is None else "choice")

    def fields(self) -> list[str]:
        """Return every field that a row is expected to have."""
        questions = [self.question] if isinstance(self.question, str) else list(self.question)
        single = [self.answer, self.choices, self.id, self.domain_field, self.licence_field]
        single += [self.answers, self.context, self.tests, self.tools]
        return [*questions, *(field for field in single if field is not None), *self.meta]


class _UnusableError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def lookup(row: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field, None when there is none. A field whose name has a dot wins over a path."""
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


def to_problem(record: Record, mapping: FieldMapping, source: str) -> Problem | Rejected:
    """Return the problem of a row, or why it gives none. `source` is the label that the problem carries."""
    row = record.values
    try:
        question = _question(row, mapping)
        options = None if mapping.choices is None else _options(lookup(row, mapping.choices))
        answer = None if mapping.answer is None else _answer(row, mapping.answer, mapping.answer_from, options)
        texts = {
            "domain": mapping.domain if mapping.domain_field is None else _text(lookup(row, mapping.domain_field)),
            "licence": mapping.licence if mapping.licence_field is None else _text(lookup(row, mapping.licence_field)),
        }
        besides: dict[str, Any] = {
            name: read(lookup(row, field))
            for name, read in _BESIDES.items()
            if (field := getattr(mapping, name)) is not None
        }
    except _UnusableError as error:
        return record.reject(error.reason, error.detail)
    if options is not None:
        question = "\n".join([f"{question}\n", *(f"{label}) {text}" for label, text in options.items())])
    return Problem.make(
        question=question,
        answer=answer,
        verifier=mapping.verifier_name,
        spec=json_text(mapping.spec),
        source=source,
        meta=json_text(_meta(record, mapping)),
        **{name: text or "" for name, text in texts.items()},
        **besides,
    )


def _question(row: Mapping[str, Any], mapping: FieldMapping) -> str:
    fields = (mapping.question,) if isinstance(mapping.question, str) else mapping.question
    parts = [_text(lookup(row, field)) for field in fields]
    if missing := [field for field, part in zip(fields, parts, strict=True) if not part]:
        raise _UnusableError("no_question", f"nothing in {', '.join(missing)}")
    question = "\n".join(part for part in parts if part)
    for text in mapping.remove:
        question = question.replace(text, "")
    if not question.strip():
        raise _UnusableError("no_question", "nothing is left of it")
    return question.strip()


def _answer(row: Mapping[str, Any], field: str, where: AnswerFrom, options: Mapping[str, str] | None) -> str:
    value = lookup(row, field)
    text = _text(value)
    if not text:
        raise _UnusableError("no_answer", f"nothing in {field}")
    answer = EXTRACTORS[where](text)
    if not answer:
        raise _UnusableError("no_answer", f"{field} holds no answer as {where} reads it")
    return answer if options is None else _label(answer, value, options)


def _label(answer: str, value: Any, options: Mapping[str, str]) -> str:
    """Return the label of the option that an answer means: by its label, its text, or its number from 0."""
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
        raise _UnusableError("no_choices", "fewer than two options, or an empty one")
    return options


def _text(value: Any) -> str | None:
    """Return a value as the text a person would write: 145.0 is "145". None and NaN are missing.

    Raises:
        _UnusableError: for what has no one text: true, an object, a list of several.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _UnusableError("bad_encoding", "holds half a surrogate pair, which no UTF-8 text can") from error
        return value.strip()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise _UnusableError("not_a_text", f"{type(value).__name__} where a text or a number was expected")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else None
    return str(value)


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
            raise _UnusableError("bad_context", "a passage without text")
        found.append(Passage(text=text, **{name: _text(parts.get(name)) or "" for name in ("title", "source")}))
    return tuple(found)


def _tools(value: Any) -> tuple[Tool, ...]:
    """Read tools as chat completions list them: {"type": "function", "function": {...}}, or the function alone."""
    try:
        items = _items(json.loads(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise _UnusableError("bad_tools", f"no JSON: {error}") from error
    found = []
    for item in items:
        function = item.get("function", item) if isinstance(item, Mapping) else {}
        name = _text(function.get("name")) if isinstance(function, Mapping) else None
        if not name:
            raise _UnusableError("bad_tools", "a tool without a name")
        described = _text(function.get("description")) or ""
        found.append(Tool(name=name, description=described, parameters=json_text(function.get("parameters") or {})))
    return tuple(found)


_BESIDES: Mapping[str, Callable[[Any], Any]] = {
    "answers": _texts,
    "context": _passages,
    "tests": _texts,
    "tools": _tools,
}
"""What a problem may have besides question and answer, and how each is read."""


def _meta(record: Record, mapping: FieldMapping) -> dict[str, Any]:
    kept = {} if mapping.id is None else {"id": lookup(record.values, mapping.id)}
    return {**{field: lookup(record.values, field) for field in mapping.meta}, **kept, record.unit: record.number}
