"""What pydantic finds wrong is told in the words of the file, once per place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, field_validator, model_validator

from tracefactory.core.errors import Mistake
from tracefactory.core.rows import Frozen
from tracefactory.core.yamlfile import Position, parse_yaml
from tracefactory.core.yamlmodel import read_model


class Task(Frozen):
    name: str
    weight: float = Field(default=1.0, gt=0)


class Model(Frozen):
    count: int = 1
    ratio: float = 0.5
    flag: bool = False
    text: str = ""
    names: tuple[str, ...] = ()
    kind: Literal["fast", "slow"] = "fast"
    tasks: tuple[Task, ...] = Field(default=(), max_length=2)
    paths: str | tuple[str, ...] = ()
    task: Task | Literal["none"] = "none"
    by_name: dict[str, Task] = Field(default_factory=dict)
    limit: int | None = None
    api_key: str = ""
    from_: str = Field(default="", alias="from")

    @field_validator("text")
    @classmethod
    def _no_shouting(cls, text: str) -> str:
        if text.isupper():
            raise ValueError("do not shout")
        return text

    @model_validator(mode="after")
    def _fits(self) -> Model:
        if self.count > 10 and not self.flag:
            raise ValueError("a count above 10 needs flag")
        return self


def read(text: str) -> tuple[Model | None, list[str]]:
    mistakes: list[Mistake] = []
    node = parse_yaml(text, Position(Path("f.yaml")), mistakes)
    assert node is not None
    return read_model(Model, node, "it", mistakes), [str(mistake) for mistake in mistakes]


def test_valid_values_are_read_with_their_exact_types() -> None:
    model, told = read("count: 3\nratio: 1\nnames: [a]\ntasks: [{name: x}]\npaths: [p]\nlimit:\nfrom: here\n")
    assert told == []
    assert model == Model(count=3, ratio=1.0, names=("a",), tasks=(Task(name="x"),), paths=("p",), **{"from": "here"})
    assert read("") == (Model(), [])


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('count: "3"', 1, "count must be a whole number, found the text '3' (write 3)"),
        ("count: 1_000", 1, "count must be a whole number, found the text '1_000' (write 1000)"),
        ("count: 2.0", 1, "count must be a whole number, found the number 2.0"),
        ("count: true", 1, "count must be a whole number, found true"),
        ("flag: 1", 1, "flag must be true or false, found the number 1"),
        ("text: 1e3", 1, 'text must be text, found the number 1e3 (quote it: "1e3")'),
        ("text: null", 1, "text must be text, found nothing"),
        ("text: true", 1, 'text must be text, found true (quote it: "true")'),
        ("names: a", 1, "names must be a list, found the text 'a'"),
        ("names:\n- a\n- 7\n", 3, 'names[1] must be text, found the number 7 (quote it: "7")'),
        ("kind: fsat", 1, "kind must be 'fast' or 'slow', found the text 'fsat' (did you mean 'fast'?)"),
        ("kind: 3", 1, "kind must be 'fast' or 'slow', found the number 3"),
        ("tasks: {name: x}", 1, "tasks must be a list, found a mapping"),
        ("tasks:\n- weight: 1\n", 2, "tasks[0].name is missing"),
        ("tasks:\n- name: x\n  weight: 0\n", 3, "tasks[0].weight must be greater than 0, found the number 0"),
        ("tasks:\n- name: x\n  wieght: 1\n", 3, "unknown key 'wieght' in tasks[0] (did you mean 'weight'?)"),
        ("tasks: [{name: a}, {name: b}, {name: c}]", 1, "tasks: tuple must have at most 2 items, not 3"),
        (
            "by_name:\n  one: {name: x}\n  two: {nam: y, name: z}\n",
            3,
            "unknown key 'nam' in by_name.two (did you mean 'name'?)",
        ),
        ("paths: 3", 1, 'paths must be text or a list, found the number 3 (quote it: "3")'),
        ("paths:\n- a\n- 3\n", 3, 'paths[1] must be text, found the number 3 (quote it: "3")'),
        ("task: nine", 1, "task must be a mapping or 'none', found the text 'nine'"),
        ("task:\n  name: x\n  weight: much\n", 3, "task.weight must be a number, found the text 'much'"),
        ("task:\n  weight: 1\n", 1, "task.name is missing"),
        ("limit: many", 1, "limit must be a whole number, found the text 'many'"),
        ("text: LOUD", 1, "text: do not shout"),
        ("ratio: 1\ncount: 11", 1, "it: a count above 10 needs flag"),
        ("from_: x", 1, "unknown key 'from_' (did you mean 'from'?)"),
        ("api_key: [sk-1]", 1, "api_key must be text, found a list"),
    ],
)
def test_each_mistake_is_reported_once_at_its_line(text: str, line: int, message: str) -> None:
    model, told = read(text)
    assert model is None
    (only,) = told
    assert only.startswith(f"f.yaml:{line}: it")
    assert message in only.lower() if "tuple" in message else message in only


def test_a_secret_of_a_wrong_type_is_not_repeated() -> None:
    class Keys(Frozen):
        api_key: Literal["none"]

    mistakes: list[Mistake] = []
    node = parse_yaml("api_key: hunter2", Position(None), mistakes)
    assert node is not None
    assert read_model(Keys, node, "it", mistakes) is None
    assert "hunter2" not in str(mistakes[0])


def test_all_mistakes_are_reported() -> None:
    _, told = read("count: x\nratio: y\nflg: true\nnames: [1, 2]\n")
    assert [text.split(": ")[0] for text in told] == ["f.yaml:1", "f.yaml:2", "f.yaml:4", "f.yaml:4", "f.yaml:3"]


@pytest.mark.parametrize("text", ["[a]", "text", "3"])
def test_a_value_that_is_not_a_mapping_is_refused(text: str) -> None:
    model, told = read(text)
    assert model is None
    assert told[0].startswith("f.yaml:1: it must be a mapping, found ")
