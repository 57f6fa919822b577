"""What `tracefactory ops` says of the code: complete, described, in 80 columns, and as a JSON Schema."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.e2e.conftest import here
from tracefactory.cli import main
from tracefactory.cli.catalog.entries import Entry, Parameter, entries, measures
from tracefactory.cli.catalog.types import type_of
from tracefactory.config.project import find_project, pipeline_files
from tracefactory.core import plugins
from tracefactory.core.registry import kinds, registry

ROOT = Path(__file__).parents[2]
WIDTH = 80
Told = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_plugins_afterwards() -> Iterator[None]:
    yield
    plugins.activate(Path(), {})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """Run `tracefactory ops` in this process and return what it prints."""

    def run(*arguments: str, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["tracefactory", "ops", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        assert (end.value.code or 0) == expect, output.err
        return output.err if expect else output.out

    return run


def undescribed(entry: Entry) -> Iterator[str]:
    def walk(parameters: tuple[Parameter, ...], prefix: str) -> Iterator[str]:
        for one in parameters:
            if not one.description.strip():
                yield f"{prefix}{one.name}"
            yield from walk(one.parameters, f"{prefix}{one.name}.")

    if entry.kind == "view":  # of a view the columns; what is inside of them is described where rows are
        yield from (f"{entry.kind} {entry.name}: {one.name}" for one in entry.parameters if not one.description)
    else:
        yield from walk(entry.parameters, f"{entry.kind} {entry.name}: ")


def test_no_parameter_of_anything_registered_lacks_a_description() -> None:
    found = entries()
    assert {entry.kind for entry in found} == {*kinds(), "section"}
    assert [one for entry in found for one in undescribed(entry)] == []
    assert [f"{entry.kind} {entry.name}" for entry in found if not entry.summary] == []


def test_no_column_that_an_operation_adds_lacks_a_description() -> None:
    found = measures(entries())
    assert [one.name for one in found if not one.description] == []
    names = {one.name for one in found}
    assert {"verdict", "pass_rate", "<teacher>/pass_rate", "<student>/rank_surprisal", "prune_kept_share"} <= names
    assert {"<student>/local_naturalness_w1", "<student>/student_share"} <= names  # only with some parameters
    assert {"<student>/p_q0.05", "<student>/acceptance_p0.01_top20"} <= names  # with the defaults


def test_everything_that_is_registered_is_listed(told: Told) -> None:
    listed = json.loads(told("--json"))
    for kind in kinds():
        names = [one["name"] for one in listed["entries"] if one["kind"] == kind]
        assert names == sorted(registry(kind).names())
    overview = told()
    for verb, name in (one["name"].split(":") for one in listed["entries"] if one["kind"] == "operation"):
        assert f"{verb}: {name}" in overview or verb == "filter"


@pytest.mark.parametrize("arguments", [(), ("--full",), ("sample:chat",), ("measure:student",), ("raw",), ("teach",)])
def test_tables_fit_80_columns(arguments: tuple[str, ...], told: Told) -> None:
    lines = told(*arguments).splitlines()
    assert lines
    assert [line for line in lines if len(line) > WIDTH] == []


def test_an_entry_is_shown_with_types_defaults_and_nested_parameters(told: Told) -> None:
    (chat,) = json.loads(told("sample: chat", "--json"))["entries"]
    assert chat["written"] == "sample: chat"
    found = {one["name"]: one for one in chat["parameters"]}
    assert (found["model"]["type"], found["model"]["required"]) == ("name of a model", True)
    assert (found["temperature"]["type"], found["temperature"]["default"]) == ("number >= 0", 0.7)
    assert found["writes"]["type"] == "trace | turn"
    assert re.search(r"\brequired\b", told("sample: chat"))
    shown = told("measure:student")
    assert "measures.quantiles" in shown
    assert "<student>/mean_surprisal" in shown
    (first, second) = json.loads(told("auto", "--json"))["entries"]
    assert {first["kind"], second["kind"]} == {"operation", "verifier"}
    assert [one["kind"] for one in json.loads(told("verifier:auto", "--json"))["entries"]] == ["verifier"]
    (section,) = json.loads(told("teach:", "--json"))["entries"]
    training = next(one for one in section["parameters"] if one["name"] == "training")
    assert {"learning_rates", "warmup", "device"} <= {one["name"] for one in training["parameters"]}


def test_an_unknown_name_is_answered_with_the_nearest(told: Told) -> None:
    assert "nothing is registered as 'sample:chatt' (did you mean 'sample:chat'?)" in told("sample:chatt", expect=2)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer >= 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0, <= 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, "list of (a | b)"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]}, "[number, integer]"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "mapping to text"),
        ({"$ref": "#/$defs/One"}, "x"),
        ({}, "any"),
    ],
)
def test_a_schema_is_described_as_a_short_text(schema: dict[str, Any], words: str) -> None:
    assert type_of(schema, {"One": {"const": "x"}}) == words


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    status, output, errors = here(ROOT, "ops", "--schema", "--project", str(ROOT))
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("file", pipeline_files(find_project(ROOT)), ids=lambda file: file.stem)
def test_the_schema_accepts_every_shipped_pipeline(file: Path, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(file.read_text()))


WRONG = [
    ("models.teacher.use", "opnai", "is not valid under any"),
    ("models.teacher.base_url", 3, "is not valid under any"),
    ("models.teacher.concurency", 3, "Additional properties are not allowed ('concurency'"),
    ("stages.0.with.pths", "x", "Additional properties are not allowed ('pths'"),
    ("stages.1.sample", "chatt", "is not valid under any"),
    ("stages.1.with.temperature", "hot", "'hot' is not of type 'number'"),
    ("stages.1.with.model", None, "None is not of type 'string'"),
    ("stages.1.verify", "auto", "is valid under each of"),
    ("stages.2.filter", ["lenght"], "is not valid under any"),
    ("stages.2.filter", [{"length": {"max_tokns": 1}}], "is not valid under any"),
    ("run.shards", "many", "is not valid under any"),
    ("sections", {}, "Additional properties are not allowed ('sections'"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_the_schema_rejects_invalid_pipelines(path: str, value: Any, message: str, schema: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "name": "t",
        "version": "1",
        "models": {"teacher": {"use": "openai", "model": "m", "base_url": "env:URL"}},
        "stages": [
            {"id": "problems", "source": "files", "with": {"paths": "p.jsonl"}},
            {"id": "sampled", "sample": "chat", "with": {"model": "teacher", "prompt": "p", "temperature": 1}},
            {"id": "clean", "filter": ["thinking_closed", {"length": {"max_tokens": 100}}]},
            {"id": "dataset", "publish": "dataset"},
        ],
        "run": {"shards": "auto"},
        "profiles": {"small": {"stages": {"sampled": {"with": {"samples": 1}}}}},
    }
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(right)] == []
    place: Any = right
    *steps, last = path.split(".")
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    assert any(message in error.message for error in validator.iter_errors(right))


def test_plugins_of_a_project_are_listed_and_in_the_schema(tmp_path: Path, told: Told) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pruners").mkdir()
    file = tmp_path / "pruners" / "mine.py"
    file.write_text(
        (ROOT / "tracefactory/cli/templates/pruner.txt").read_text().replace("$name", "mine").replace("$title", "Mine")
    )
    (mine,) = json.loads(told("prune:mine", "--json", "--project", str(tmp_path)))["entries"]
    assert mine["origin"] == "project"
    assert "prune: mine" in told("--project", str(tmp_path))
    assert '"const": "mine"' in told("--schema", "--project", str(tmp_path))
    file.write_text("1 / 0\n")
    assert "pruners/mine.py:1: pruner 'mine' does not load" in told("--project", str(tmp_path), expect=2)
