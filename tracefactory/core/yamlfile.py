"""YAML as data: plain values with their lines and columns.

The reader accepts mappings, lists and scalars of the YAML 1.2 core schema
(https://yaml.org/spec/1.2.2/#103-core-schema). It refuses tags, anchors and aliases, and values that YAML 1.1 and 1.2
read differently (`no`, `0755`), so that a file has the same meaning for every reader.
"""

from __future__ import annotations

import io
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
_MOST_BYTES = 4 << 20
_MAX_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Position:
    """The place of a value: a file, line and column (from 1), or, in `given`, an option of the command line."""

    file: Path | None
    line: int = 1
    column: int = 1
    given: str = ""

    def mistake(self, message: str, hint: str | None = None) -> Mistake:
        """Return a mistake at this place.

        Args:
            message: what is wrong.
            hint: advice, such as the nearest valid name.
        """
        if self.given:
            return Mistake(f"{self.given}: {message}", hint=hint)
        return Mistake(message, self.file, self.line, hint)


@dataclass(frozen=True)
class Node:
    """A value and its place. A value in a mapping has the place of its key.

    `text` is the text of an unquoted scalar. It differs from the value, for example, in 2026.10, the number 2026.1.
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
        """Return the entries of a mapping; an empty mapping for any other value."""
        return self.value if isinstance(self.value, Mapping) else {}

    def child(self, key: str | int) -> Node | None:
        """Return the value for a key of a mapping or an index of a list; None when there is none."""
        if isinstance(self.value, Mapping):
            return self.value.get(key) if isinstance(key, str) else None
        if isinstance(self.value, tuple) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def find(self, path: KeyPath) -> Node:
        """Return the value at a path, or the deepest existing value on the path."""
        node = self
        for key in path:
            found = node.child(key)
            if found is None:
                return node
            node = found
        return node

    def with_key(self, key: str, item: Node) -> Node:
        """Return this mapping with one entry added or replaced."""
        return replace(self, value={**self.mapping(), key: item})

    def describe(self) -> str:
        """Return a description of the value for messages, such as "the text 'four'" or "a list"."""
        if isinstance(self.value, Mapping):
            return "a mapping"
        if isinstance(self.value, tuple):
            return "a list"
        if self.value is None:
            return "nothing"
        text = str(self.value) if self.text is None or isinstance(self.value, str) else self.text
        shown = _cut(text)
        if isinstance(self.value, bool):
            return shown
        return f"the text {shown!r}" if isinstance(self.value, str) else f"the number {shown}"


def read_text(file: Path, mistakes: list[Mistake]) -> str | None:
    """Return the text of a UTF-8 file; None when it cannot be read or is too large for a file that a person wrote.

    Args:
        file: the file.
        mistakes: the list that a mistake is added to when the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            mistakes.append(Mistake(f"the file has more than {_MOST_BYTES >> 20} MiB", file, 1))
            return None
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        mistakes.append(Mistake("the file is not UTF-8 text", file, line))
    except OSError as error:
        mistakes.append(Mistake(f"cannot read {file}: {(error.strerror or str(error)).lower()}"))
    return None


def read_yaml(file: Path, mistakes: list[Mistake]) -> Node | None:
    """Return the value of a YAML file; None when it cannot be read.

    Args:
        file: the file.
        mistakes: the list that mistakes are added to.
    """
    text = read_text(file, mistakes)
    return None if text is None else parse_yaml(text, Position(file), mistakes)


def parse_yaml(text: str, start: Position, mistakes: list[Mistake]) -> Node | None:
    """Return the value of a YAML document; None for a syntax error or too deep nesting.

    After any other mistake, such as an alias, the rest of the document is returned, so that it can be checked too.

    Args:
        text: the document.
        start: the place of its first line.
        mistakes: the list that mistakes are added to.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = start.line + text.count("\n", 0, error.position)
        mistakes.append(replace(start, line=line).mistake(f"character #x{error.character:04x} is not allowed"))
        return None
    builder = _Builder(_events(loader), start, mistakes)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "unreadable"
        # The parser reports an unclosed bracket at the end of the file; the place of the opening is more useful.
        unclosed = "end of stream" in problem or "stream end" in problem
        mark = (error.context_mark if unclosed else None) or error.problem_mark or error.context_mark
        if "<block end>" in problem:
            problem = "this line does not fit the indentation of the lines above"
        mistakes.append(builder.at(mark).mistake(f"this is not valid YAML: {problem}", _advice(text, mark)))
    except (ValueError, OverflowError, RecursionError) as error:  # of the parser, for a number or an escape, say
        problem = str(error).partition(";")[0]
        mistakes.append(builder.at(loader.get_mark()).mistake(f"this is not valid YAML: {problem}"))
    except _TooDeepError:
        pass  # the builder has added the mistake
    return None


def to_yaml(value: Any) -> str:
    """Return plain data as a YAML document that `parse_yaml` reads as the same data.

    Args:
        value: dict, list, str, int, float, bool or None.
    """
    style: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 120}
    return str(yaml.dump(value, Dumper=_Dumper, **style))


class _Dumper(yaml.SafeDumper):
    """Quotes what the core schema does not read as text, such as 1e3, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        ambiguous = _plain_scalar(data) is not data or _OLD_BOOL.fullmatch(data) or _OLD_OCTAL.fullmatch(data)
        escaped = not data.replace("\n", "").isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", data, '"' if ambiguous or escaped else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _events(loader: Any) -> Iterator[Any]:
    """Yield the events of a document, as `yaml.parse` does; the loader tells where it was when it failed."""
    while loader.check_event():
        yield loader.get_event()


class _TooDeepError(Exception):
    """Nested more than `_MAX_DEPTH` levels deep."""


class _Builder:
    """Builds nodes from the parser's events. Only plain data can result."""

    def __init__(self, events: Iterator[Any], start: Position, mistakes: list[Mistake]) -> None:
        self._events = events
        self._start = start
        self._mistakes = mistakes
        self._anchors: dict[str, Node] = {}

    def at(self, mark: Any) -> Position:
        """Return the position of a parser's mark, whose line and column count from 0 in the text."""
        if mark is None or self._start.given:
            return self._start
        return replace(self._start, line=self._start.line + mark.line, column=mark.column + 1)

    def document(self) -> Node:
        """Return the value of the only document of the stream; an empty stream is an empty value."""
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
            self._mistakes.append(position.mistake(f"nested more than {_MAX_DEPTH} levels deep"))
            raise _TooDeepError
        if isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._wrong(event, f"aliases such as *{event.anchor} are not supported: write the value out")
            return self._anchors.get(event.anchor, Node(None, position))
        if event.tag is not None:
            self._wrong(event, f"tags such as {event.tag.replace('tag:yaml.org,2002:', '!!')} are not supported")
        if isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(position, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, self.at(inner.start_mark), depth + 1))
            node = Node(tuple(items), position)
        else:
            node = self._scalar(event, position)
        if event.anchor is not None:
            self._wrong(
                event, f"anchors such as &{event.anchor} are not supported: write the value out where it is used"
            )
            self._anchors[event.anchor] = node
        return node

    def _mapping(self, position: Position, depth: int) -> Node:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = self.at(event.start_mark)
            key = self._node(event, place, depth + 1)
            item = self._node(next(self._events), place, depth + 1)
            if not isinstance(key.value, str):
                name = repr(_cut(key.text)) if key.text else "this key"
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
        shown = _cut(text)
        quote = f'quote it if it is text: "{shown}"'
        if _INT.fullmatch(text) and not _fits(text):
            self._wrong(event, f"a whole number has at most 64 bits, and {shown} has more", quote)
            return Node(_cut(text), position, _cut(text))
        value = _plain_scalar(text)
        if _OLD_BOOL.fullmatch(text):
            meaning = "true" if text.lower() in ("yes", "on") else "false"
            message = f"{text} is read as a boolean by some programs and as text by others"
            self._wrong(event, message, f"write {meaning}, or {quote}")
        elif _OLD_OCTAL.fullmatch(text):
            message = f"{text} is read as octal by some programs and as decimal by others"
            self._wrong(event, message, f"write {int(text)}, or {quote}")
        elif isinstance(value, float) and not math.isfinite(value):
            self._wrong(event, f"{shown} is not a finite number", quote)
            value = text
        return Node(value, position, text)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _fits(text: str) -> bool:
    """Return whether a whole number has at most 64 bits; the conversion of one with thousands of digits fails."""
    base = {"0x": 16, "0o": 8}.get(text[:2], 10)
    return len(text) <= _MAX_SHOWN and -(1 << 63) <= int(text, base) < 1 << 63


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


def _advice(text: str, mark: Any) -> str | None:
    """Return advice for the two most frequent syntax errors, which the parser's messages do not explain."""
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces, not tabs"
    if re.search(r":\s.*:\s", line) and not line.lstrip().startswith(("{", "- {", "[")):
        return "a text that contains ': ' needs quotes"
    return None
