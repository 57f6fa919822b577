"""Read the answer from a completion that is a structure: a JSON object, with or without a fence, or a Markdown table.

A JSON object counts when it is the whole completion or its end. Its strings may contain LaTeX whose backslashes were
not escaped (`\\frac` with one backslash), which JSON parsers read as control characters or refuse.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FIELDS = ("final_answer", "answer", "result", "final_result", "output", "solution", "value", "答案")
"""Names of the field with the answer, best first; case, spaces, hyphens and underscores do not matter."""

_BESIDE = re.compile(
    r"reason(?:ing)?|expla(?:in|nation)|thoughts?|thinking|steps?|rationale|work(?:ing)?|analysis|cot|chainofthought"
    r"|justification|confidence|question|problem|units?|notes?|method|calculations?"
)
_FENCE = re.compile(r"```[ \t]*+(?:json5?|javascript|python)?[ \t]*+\n", re.IGNORECASE)
_OBJECT_AT_END = re.compile(r"(?:\A|\n)[ \t]*(?:json\s*)?(\{)")
_LATEX_ESCAPE = re.compile(
    r"(?<!\\)\\(?=(?:frac|dfrac|tfrac|binom|boxed|beta|begin|bar|big|times|text|theta|triangle|neq|right|rho|rangle|forall|nabla)"
    r"(?![a-z]))|(?<!\\)\\(?![\"\\/bfnrtu])"
)
_KEY = r'["\']{name}["\']\s*:\s*'
_SCALAR = re.compile(r"[^,}\]\n]*")
_STRING = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_MAX_OBJECT = 200_000
_DEEPEST = 20
"""Levels of lists and objects in an answer; what is nested deeper is left out."""
_RULE = re.compile(r"\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-{2,}:?[ \t]*)*\|?")
_ANSWER_COLUMN = re.compile(r"\W*(?:final\s+)?(?:answer|result|total|value|答案|结果|合计)\W*", re.IGNORECASE)
_ANSWER_ROW = re.compile(r"answer|total|result|final|sum|答案|合计|总|结果", re.IGNORECASE)


@dataclass(frozen=True)
class Field:
    """A field with an answer: the [start, end) range of its value in the text, and the value as text."""

    start: int
    end: int
    value: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table's last row; `labelled` when its row or column says that it is the answer or a total."""

    start: int
    end: int
    labelled: bool
    whole: bool


def ends_in_object(body: str) -> bool:
    """Return whether a text is a JSON object, or ends with one."""
    block = _object_at_end(body)
    return block is not None and isinstance(_parsed(block[1]), dict)


def json_field(body: str, names: Sequence[str] = FIELDS) -> Field | None:
    """Return the answer field of the JSON object that a text is or ends with, None when there is none.

    Args:
        body: the text.
        names: the names of the field, best first.
    """
    block = _object_at_end(body)
    if block is None:
        return None
    start, text = block
    found = _parsed(text)
    if not isinstance(found, dict):
        return None
    key = _answer_key(found, [_plain(name) for name in names])
    if key is None:
        return None
    name, value = key
    span = _value_range(text, name)
    written = _as_text(value)
    if span is None or not written.strip():
        return None
    return Field(start + span[0], start + span[1], written)


def _object_at_end(body: str) -> tuple[int, str] | None:
    stripped = body.rstrip()
    if not stripped.endswith(("}", "```")):
        return None
    fence = _FENCE.search(stripped)
    if fence is not None and stripped.endswith("```"):
        inside = stripped[fence.end() : -3].rstrip(" \t").removesuffix("\n")
        if inside.lstrip().startswith("{"):
            return fence.end(), inside
    if not stripped.endswith("}") or len(stripped) > _MAX_OBJECT:
        return None
    for match in list(_OBJECT_AT_END.finditer(stripped))[:20]:
        text = stripped[match.start(1) :]
        if isinstance(_parsed(text), dict):
            return match.start(1), text
    return None


def _parsed(text: str) -> Any:
    if len(text) > _MAX_OBJECT:
        return None
    try:
        return json.loads(_LATEX_ESCAPE.sub(r"\\\\", text), strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < 10_000 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _answer_key(found: dict[Any, Any], names: Sequence[str]) -> tuple[str, Any] | None:
    """Return the name and value of the answer field: by name, outer objects first, else the only one that is left."""
    level = [found]
    for _ in range(4):
        for name in names:
            for one in level:
                for key, value in one.items():
                    if _plain(str(key)) == name and not (isinstance(value, dict) and _holds(value, names)):
                        return str(key), value
        level = [value for one in level for value in one.values() if isinstance(value, dict)]
    others = [(str(key), value) for key, value in found.items() if not _BESIDE.fullmatch(_plain(str(key)))]
    if len(others) == 1 and not isinstance(others[0][1], dict | list):
        return others[0]
    return None


def _holds(value: dict[Any, Any], names: Sequence[str]) -> bool:
    keys = {_plain(str(key)) for key in value}
    return any(name in keys for name in names) and not keys & {"unit", "units"}


def _value_range(text: str, name: str) -> tuple[int, int] | None:
    keys = list(re.finditer(_KEY.format(name=re.escape(name)), text))
    if not keys:
        return None
    at = keys[-1].end()
    string = _STRING.match(text, at)
    if string is not None:
        return string.span(1) if string[1] is not None else string.span(2)
    if text[at : at + 1] in "[{":
        try:
            end = json.JSONDecoder(strict=False).raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            end = len(text.rstrip().rstrip("}").rstrip())
        return at, end
    scalar = _SCALAR.match(text, at)
    return (at, at + len(scalar[0].rstrip())) if scalar is not None and scalar[0].strip() else None


def _as_text(value: Any, depth: int = 0) -> str:
    if depth > _DEEPEST:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_as_text(item, depth + 1) for item in value)
    if isinstance(value, dict):
        amount = next((value[key] for key in ("value", "amount", "number", *FIELDS) if key in value), None)
        if amount is not None:
            return f"{_as_text(amount, depth + 1)} {value.get('unit', value.get('units', ''))}".strip()
        return ", ".join(f"{key} = {_as_text(item, depth + 1)}" for key, item in value.items())
    return "" if value is None else str(value)


def last_cell(body: str) -> Cell | None:
    """Return the cell with the answer in the last row of the table that a text ends with; None without a table."""
    text = body.rstrip()
    lines: list[tuple[int, str]] = []
    end = len(text)
    while end > 0 and len(lines) < 200:
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end].strip()
        if not (line.startswith("|") and line.endswith("|") and len(line) > 2):
            break
        lines.insert(0, (start + text[start:end].index("|"), line))
        end = start - 1
    rules = [index for index, (_, line) in enumerate(lines) if _RULE.fullmatch(line)]
    if not rules or rules[-1] == len(lines) - 1 or rules[0] != 1:
        return None
    header = [cell.strip() for cell in lines[0][1].strip("|").split("|")]
    start, row = lines[-1]
    cells = _cells(start, row)
    named = [index for index, name in enumerate(header) if _ANSWER_COLUMN.fullmatch(name) and index < len(cells)]
    filled = [index for index, (first, last) in enumerate(cells) if text[first:last].strip()]
    if not filled:
        return None
    place = named[-1] if named and named[-1] in filled else filled[-1]
    first, last = cells[place]
    labelled = bool(named) or any(_ANSWER_ROW.search(text[a:b]) for a, b in cells[:place])
    return Cell(first, last, labelled, whole=not text[: lines[0][0]].strip())


def _cells(start: int, row: str) -> list[tuple[int, int]]:
    places = [index for index, sign in enumerate(row) if sign == "|" and row[index - 1 : index] != "\\"]
    return [(start + one + 1, start + two) for one, two in pairwise(places)]
