"""YAML as data: values, places, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.errors import Mistake
from tracefactory.core.yamlfile import Node, Position, parse_yaml, read_yaml, to_yaml

FILE = Path("some.yaml")


def parse(text: str) -> tuple[Node | None, list[Mistake]]:
    mistakes: list[Mistake] = []
    return parse_yaml(text, Position(FILE), mistakes), mistakes


def sound(text: str) -> Node:
    node, mistakes = parse(text)
    assert mistakes == []
    assert node is not None
    return node


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e-5", 1e-5),  # text in YAML 1.1
        ("5.", 5.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("y", "y"),
        ("2026-11-21", "2026-11-21"),  # a date in YAML 1.1
        ("1:30", "1:30"),  # base 60 in YAML 1.1
        ("1_000", "1_000"),
        ("7ae5576", "7ae5576"),
        ("'no'", "no"),
        ('"0755"', "0755"),
        ("env:NAME", "env:NAME"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_values_are_those_of_yaml_1_2(written: str, value: object) -> None:
    plain = sound(f"key: {written}").plain()
    assert plain == {"key": value}
    assert type(plain["key"]) is type(value)


def test_every_value_has_its_line_and_column() -> None:
    node = sound("a: 1\nb:\n  - x\n  - {y: 2,\n     z: 3}\n")
    places = {path: node.find(path).position for path in [("a",), ("b",), ("b", 0), ("b", 1), ("b", 1, "z")]}
    assert {path: (place.line, place.column) for path, place in places.items()} == {
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "z"): (5, 6),
    }


def test_find_returns_the_deepest_existing_value_of_a_path() -> None:
    node = sound("a:\n  b: 1\n")
    assert node.find(("a", "missing", 3)).position.line == 1
    assert node.find(("a", "b", "c")).value == 1


def test_a_number_keeps_the_text_it_was_written_as() -> None:
    version = sound("version: 2026.10").child("version")
    assert version is not None
    assert (version.value, version.text) == (2026.1, "2026.10")
    assert version.describe() == "the number 2026.10"


@pytest.mark.parametrize(
    ("text", "line", "output"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' is given twice (first in line 1)"),
        ("a: {b: 1,\n  b: 2}\n", 2, "given twice"),
        ("a: no\n", 1, 'quote it if it is text: "no"'),
        ("a: On\n", 1, "write true"),
        ("on: 1\n", 1, "read as a boolean"),
        ("a: 0755\n", 1, "write 755"),
        ("a: 5e10123\n", 1, 'quote it if it is text: "5e10123"'),
        ("a: .nan\n", 1, "not a finite number"),
        ("1: a\n", 1, "a key must be text"),
        ("? [a]\n: b\n", 1, "a key must be text"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "tags such as !!python/object/apply:os.system"),
        ("a: !env HOME\n", 1, "tags such as !env"),
        ("a: &x 1\nb: 2\n", 1, "anchors such as &x"),
        ("a: 1\nb: *x\n", 2, "aliases such as *x"),
        ("a: 1\n---\nb: 2\n", 2, "a second document"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 1\nb: 'never closed\nc: 2\n", 2, "not valid YAML"),
        ("a: one: two\n", 1, "a text that contains ': ' needs quotes"),
        ("a:\n\t- b\n", 2, "indent with spaces"),
        ("- a\nb: 1\n", 2, "does not fit the indentation"),
        ("a: 1\nb: \x01\n", 2, "character #x0001"),
        ('a: "\\ud800"\n', 1, "surrogate"),
        ("[" * 200 + "]" * 200, 1, "nested more than"),
    ],
)
def test_an_invalid_value_is_reported_with_its_line(text: str, line: int, output: str) -> None:
    _, mistakes = parse(text)
    assert [(mistake.file, mistake.line) for mistake in mistakes] == [(FILE, line)]
    assert output in str(mistakes[0])


def test_all_mistakes_are_reported_and_the_rest_of_the_file_is_read() -> None:
    node, mistakes = parse("a: 1\na: 2\nb: yes\nc: !x 3\nd: 4\n")
    assert [mistake.line for mistake in mistakes] == [2, 3, 4]
    assert node is not None
    assert node.plain()["d"] == 4


def test_a_tag_never_makes_an_object() -> None:
    node, mistakes = parse("a: !!python/name:os.system\nb: !!binary aGk=\n")
    assert len(mistakes) == 2
    assert node is not None
    assert node.plain() == {"a": None, "b": "aGk="}


def test_a_mistake_in_an_option_names_the_option() -> None:
    mistakes: list[Mistake] = []
    parse_yaml("no", Position(None, given="--set a.b"), mistakes)
    assert str(mistakes[0]).startswith("--set a.b: no is read as")


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    mistakes: list[Mistake] = []
    assert read_yaml(latin, mistakes) is None
    assert read_yaml(tmp_path / "none.yaml", mistakes) is None
    assert read_yaml(tmp_path, mistakes) is None
    assert (mistakes[0].file, mistakes[0].line) == (latin, 2)
    assert ["UTF-8" in mistakes[0].message, "no such file" in mistakes[1].message, len(mistakes)] == [True, True, 3]
    node = read_yaml(marked, mistakes)
    assert node is not None
    assert node.plain() == {"a": 1, "b": 2}
    assert len(mistakes) == 3


@given(st.text(alphabet=st.sampled_from(list("ab:{}[],-#&*!|>'\"%@ \n\t0.~")), max_size=60))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    node, mistakes = parse(text)
    assert node is not None or mistakes
    assert all(mistake.line is not None and mistake.line >= 1 for mistake in mistakes)


@pytest.mark.parametrize(
    ("text", "line", "output"),
    [
        ("a: 1\nb: " + "9" * 5000, 2, "a whole number has at most 64 bits"),
        ("a: 1\nb: -" + "9" * 20, 2, "a whole number has at most 64 bits"),
        ("a: 1\nb: 0" + "7" * 5000, 2, "a whole number has at most 64 bits"),
        ("a: 1\nb: 0x" + "f" * 5000, 2, "a whole number has at most 64 bits"),
        ("a: 1\nb: 0o" + "7" * 5000, 2, "a whole number has at most 64 bits"),
        ("a: 1\n" + "9" * 100 + ": 1", 2, "a whole number has at most 64 bits"),
        ("a: 1\nb: " + "9" * 5000 + ".5", 2, "is not a finite number"),
        ("a: 1\nb: 1e999999999999", 2, "is not a finite number"),
        ("a: 1\nb: " + "[" * 10_000, 2, "nested more than 64 levels deep"),
        ("a: 1\nb: " + "{a: " * 10_000, 2, "nested more than 64 levels deep"),
        ("- " * 10_000 + "x", 1, "nested more than 64 levels deep"),
        ('a: 1\nb: "\\UFFFFFFFF"', 2, "this is not valid YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", 1, "this is not valid YAML"),
        ("a: 1\na: 2", 2, "given twice (first in line 1)"),
    ],
)
def test_hostile_values_are_mistakes_at_their_line(tmp_path: Path, text: str, line: int, output: str) -> None:
    file, mistakes = tmp_path / "file.yaml", list[Mistake]()
    file.write_text(text)
    started = time.monotonic()
    read_yaml(file, mistakes)
    assert time.monotonic() - started < 5
    assert mistakes[0].line == line
    assert output in mistakes[0].message
    assert all(len(str(one)) < 500 for one in mistakes)


def test_the_largest_numbers_of_64_bits_are_read() -> None:
    mistakes: list[Mistake] = []
    found = parse_yaml(f"[{2**63 - 1}, {-(2**63)}]", Position(None), mistakes)
    assert found is not None
    assert found.plain() == [2**63 - 1, -(2**63)]
    assert not mistakes


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file, mistakes = tmp_path / "file.yaml", list[Mistake]()
    with file.open("wb") as made:
        made.truncate(50_000_000)
    started = time.monotonic()
    assert read_yaml(file, mistakes) is None
    assert time.monotonic() - started < 1
    assert [one.message for one in mistakes] == ["the file has more than 4 MiB"]


TEXTS: list[str] = [
    "1e3",
    "1E-5",
    "0o17",
    "0x1F",
    "017",
    "12:30:45",
    "on",
    "No",
    "~",
    "null",
    "",
    " ",
    "=",
    "<<",
    "2026.10",
    ".5",
    "1_000",
]
TEXTS += [
    "a: b",
    "- a",
    "# a",
    "&a",
    "*a",
    "!a",
    "@a",
    "%a",
    "'",
    '"',
    "a\n b\n\n",
    "\n",
    "\t",
    "\r\n",
    "\x1b",
    "\u2028",
    "\ufeff",
]
TEXTS += [
    "\x85",
    "日本",
    "😀",
    "x" * 500,
    "word " * 100,
    "---",
    "...",
    "{{ a }}",
    "[1]",
    "true",
    "2026-11-22",
    "\\",
    "a\x00b",
]


def test_written_data_reads_as_the_same_data() -> None:
    shared = {"a": [1, 2]}
    data = {
        "texts": TEXTS,
        **{f"key {text}": text for text in TEXTS},
        "nested": [{"text": [text, {text: [text]}]} for text in TEXTS],
        "numbers": [0, -1, 2**62, 0.1, 1e-5, 1e300, 5e-324, 1.0, -0.0, True, False, None],
        "shared": [shared, shared],
        "empty": [{}, [], {"a": {}}],
    }
    mistakes: list[Mistake] = []
    root = parse_yaml(to_yaml(data), Position(None), mistakes)
    assert not mistakes, [str(one) for one in mistakes]
    assert root is not None
    assert json.dumps(root.plain()) == json.dumps(data)
