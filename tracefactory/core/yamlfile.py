"""YAML as data: plain values together with the line and column they were written at.

Read are mappings, lists and scalars of the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema). Tags,
anchors and aliases are refused, and so is what YAML 1.1 and 1.2 read differently (`no`, `0755`): a file must not change
its meaning with the reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tracefactory.core.errors import Mistake

Scalar = None | bool | int | float | str
KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OLD_BOOL = re.compile(r"yes|no|on|off", re.IGNORECASE)
_OLD_OCTAL = re.compile(r"[-+]?0[0-9]+")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Position:
    """Where something was written: a file, line and column (from 1), or, in `given`, the words of a command line."""

    file: Path | None
    line: int = 1
    column: int = 1
    given: str = ""

    def mistake(self, message: str, hint: str | None = None) -> Mistake:
        """Return the mistake `message` at this place."""
        if self.given:
            return Mistake(f"{self.given}: {message}", hint=hint)
        return Mistake(message, self.file, self.line, hint)


@dataclass(frozen=True)
class Node:
    """A value and where it is. The place of a mapping's value is that of its key, of a list's item that of the item.

    `text` is an unquoted scalar as it was written: 2026.10 is the number 2026.1, and only the text still says so.
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    position: Position
    text: str | None = None

    def plain(self) -> Any:
        """Return the value without positions: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        if isinstance(self.value, Mapping):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value

    def mapping(self) -> Mapping[str, Node]:
        """Return the keys of a mapping; nothing for any other value."""
        return self.value if isinstance(self.value, Mapping) else {}

    def child(self, key: str | int) -> Node | None:
        """Return the value under a key of a mapping or at an index of a list, or None."""
        if isinstance(self.value, Mapping):
            return self.value.get(key) if isinstance(key, str) else None
        if isinstance(self.value, tuple) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def find(self, path: KeyPath) -> Node:
        """Return the value at `path`, or the deepest one on the way that exists."""
        node = self
        for key in path:
            found = node.child(key)
            if found is None:
                return node
            node = found
        return node

    def with_key(self, key: str, item: Node) -> Node:
        """Return this mapping with `key` set to `item`."""
        return replace(self, value={**self.mapping(), key: item})

    def describe(self) -> str:
        """Say what the value is, for a message: "the text 'four'", "a list"."""
        if isinstance(self.value, Mapping):
            return "a mapping"
        if isinstance(self.value, tuple):
            return "a list"
        if self.value is None:
            return "nothing"
        if isinstance(self.value, str):
            return f"the text {_short(self.value)!r}"
        shown = _short(self.text if self.text is not None else str(self.value))
        return shown if isinstance(self.value, bool) else f"the number {shown}"


def read_text(file: Path, mistakes: list[Mistake]) -> str | None:
    """Return the text of a UTF-8 file; when it cannot be read, add that to `mistakes` and return None."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        mistakes.append(Mistake("the file is not UTF-8 text", file, line))
    except OSError as error:
        mistakes.append(Mistake(f"cannot read {file}: {(error.strerror or str(error)).lower()}"))
    return None


def read_yaml(file: Path, mistakes: list[Mistake]) -> Node | None:
    """Read a YAML file; what is wrong is added to `mistakes`, and None is returned when nothing could be read."""
    text = read_text(file, mistakes)
    return None if text is None else parse_yaml(text, Position(file), mistakes)


def parse_yaml(text: str, start: Position, mistakes: list[Mistake]) -> Node | None:
    """Parse one YAML document whose first line is at `start`.

    Everything that is wrong is added to `mistakes`. None is returned for a syntax error, which ends the reading; after
    any other mistake the rest of the document is still there, so that it can be checked too.
    """
    builder = _Builder(yaml.parse(text, Loader=yaml.SafeLoader), start, mistakes)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "unreadable"
        # What is never closed is noticed at the end of the file, but to be mended where it was opened.
        unclosed = "end of stream" in problem or "stream end" in problem
        mark = (error.context_mark if unclosed else None) or error.problem_mark or error.context_mark
        if "<block end>" in problem:
            problem = "this line does not fit the indentation of the lines above"
        mistakes.append(builder.at(mark).mistake(f"this is not valid YAML: {problem}", _advice(text, mark)))
    except yaml.reader.ReaderError as error:
        line = start.line + text.count("\n", 0, error.position)
        mistakes.append(replace(start, line=line).mistake(f"character #x{error.character:04x} is not allowed"))
    except _TooDeepError as error:
        mistakes.append(error.position.mistake(f"nested more than {_MAX_DEPTH} levels deep"))
    return None


class _TooDeepError(Exception):
    def __init__(self, position: Position) -> None:
        super().__init__(position)
        self.position = position


class _Builder:
    """Builds nodes from the parser's events, so that nothing but plain data can come of a file."""

    def __init__(self, events: Iterator[Any], start: Position, mistakes: list[Mistake]) -> None:
        self._events = events
        self._start = start
        self._mistakes = mistakes
        self._anchors: dict[str, Node] = {}

    def at(self, mark: Any) -> Position:
        """Turn a parser's mark (from 0, within the text) into a position."""
        if mark is None or self._start.given:
            return self._start
        return replace(self._start, line=self._start.line + mark.line, column=mark.column + 1)

    def document(self) -> Node:
        """Build the only document of the stream; an empty stream is an empty value."""
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                first = next(self._events)
                node = self._node(first, self.at(first.start_mark), 0)
                if root is not None:
                    self._wrong(event, "a second document starts here; a file holds one")
                root = root or node
        return root or Node(None, self._start)

    def _wrong(self, event: Any, message: str, hint: str | None = None) -> None:
        self._mistakes.append(self.at(event.start_mark).mistake(message, hint))

    def _node(self, event: Any, position: Position, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise _TooDeepError(position)
        if isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._wrong(event, f"aliases such as *{event.anchor} are not supported: write the value out")
            return self._anchors.get(event.anchor, Node(None, position))
        if event.tag is not None:
            self._wrong(event, f"tags such as {event.tag.replace('tag:yaml.org,2002:', '!!')} are not supported")
        node = self._content(event, position, depth)
        if event.anchor is not None:
            self._wrong(
                event, f"anchors such as &{event.anchor} are not supported: write the value out where it is used"
            )
            self._anchors[event.anchor] = node
        return node

    def _content(self, event: Any, position: Position, depth: int) -> Node:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(position, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, self.at(inner.start_mark), depth + 1))
            return Node(tuple(items), position)
        return self._scalar(event, position)

    def _mapping(self, position: Position, depth: int) -> Node:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = self.at(event.start_mark)
            key = self._node(event, place, depth + 1)
            follows = next(self._events)
            item = self._node(follows, place, depth + 1)
            if not isinstance(key.value, str):
                name = repr(key.text) if key.text else "this key"
                self._wrong(event, f"a key must be text, but {name} is {key.describe()}", "put it in quotes")
            elif key.value in entries:
                first = entries[key.value].position.line
                self._wrong(event, f"the key {key.value!r} is given twice (first in line {first})")
            else:
                entries[key.value] = item
        return Node(entries, position)

    def _scalar(self, event: Any, position: Position) -> Node:
        text: str = event.value
        if any("\ud800" <= char <= "\udfff" for char in text):
            self._wrong(event, "half of a surrogate pair is not a character")
            text = text.encode("utf-8", "replace").decode()
        if event.style is not None:
            return Node(text, position)
        value = _plain_scalar(text)
        if _OLD_BOOL.fullmatch(text):
            meaning = "true" if text.lower() in ("yes", "on") else "false"
            self._wrong(event, f"{text} is read as a boolean by some and as text by others", _or(text, meaning))
        elif _OLD_OCTAL.fullmatch(text):
            self._wrong(event, f"{text} is octal to some and decimal to others", _or(text, str(int(text))))
        elif isinstance(value, float) and not math.isfinite(value):
            self._wrong(event, f"{text} is not a finite number", f'if it is text, quote it: "{text}"')
            value = text
        return Node(value, position, text)


def _plain_scalar(text: str) -> Scalar:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        return int(text, base)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _or(text: str, meaning: str) -> str:
    return f'write {meaning}, or quote it if it is text: "{text}"'


def _advice(text: str, mark: Any) -> str | None:
    """Name the two usual causes, which the parser's own words hide."""
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces, not tabs"
    if re.search(r":\s.*:\s", line) and not line.lstrip().startswith(("{", "- {", "[")):
        return "a text that holds ': ' needs quotes"
    return None


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
