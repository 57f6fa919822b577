"""The configurations of the trainers: they parse, name what exists, and stand on the card."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest
import yaml

from tracefactory.cli.rendered_row import ChosenRow
from tracefactory.cli.rendered_trainer import configuration, trainer_of
from tracefactory.core.errors import UserError
from tracefactory.publish.card import CardInputs, ConfigLine, ModelLine, render
from tracefactory.publish.views import VIEWS
from tracefactory.trainers import TRAINERS, Data, snippet

READINGS = [(trainer, view) for trainer in TRAINERS.values() for view in trainer.readings]
HOSTILE = "a b': \"#{x}"
PLACES = [
    Data("/data/mix/1"),
    Data("org/mix", hub=True, revision="v1", student="org/tiny"),
    Data(HOSTILE, student=HOSTILE),
]


@pytest.mark.parametrize(("trainer", "view"), READINGS, ids=lambda one: getattr(one, "name", one))
@pytest.mark.parametrize("data", PLACES, ids=["folder", "hub", "hostile"])
def test_every_configuration_parses_and_names_dataset_and_student(trainer: object, view: str, data: Data) -> None:
    files = snippet(trainer, view, data)  # type: ignore[arg-type]
    said = []
    for file in files:
        if file.language == "python":
            said += [one.value for one in ast.walk(ast.parse(file.text)) if isinstance(one, ast.Constant)]
        elif file.language == "sh":
            said += shlex.split(file.text, comments=True)
        else:
            said += list(_values(json.loads(file.text) if file.language == "json" else yaml.safe_load(file.text)))
    text = [str(one) for one in said]
    assert any(data.place in one or (data.hub and f"data/{view}" in one) for one in text)
    assert data.student in text
    assert any(view in file.text for file in files)


def _values(value: object) -> list[object]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _values(inner)]
    return [one for inner in value for one in _values(inner)] if isinstance(value, list) else [value]


def test_every_view_that_trainers_name_exists() -> None:
    for trainer in TRAINERS.values():
        assert {*trainer.readings, *trainer.unread} <= set(VIEWS), trainer.name
        assert not set(trainer.readings) & set(trainer.unread), trainer.name


@pytest.mark.parametrize(
    ("trainer", "view", "said"),
    [
        ("llamafactory", "chat", "drops the reasoning; the view `messages` has it inline"),
        ("llamafactory", "preference", "the view `ranking` has the same pairs"),
        ("verl", "masked", "no loss mask within a message"),
        ("trl", "raw", "TRL does not read the view 'raw'"),
    ],
)
def test_a_view_that_a_trainer_would_read_wrongly_is_refused(trainer: str, view: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        snippet(TRAINERS[trainer], view, Data("x"))


def test_the_card_has_the_configuration_of_every_trainer_that_reads_the_dataset() -> None:
    configs = tuple(ConfigLine(name=name, summary="s", rows=1, files="f") for name in ("messages", "raw"))
    models = (ModelLine(name="student", role="student", model="org/tiny"),)
    card = render(CardInputs(title="t", repo="org/mix", models=models), version="1", configs=configs)
    for trainer in TRAINERS.values():
        assert f"<summary>{trainer.title} ({trainer.proven})</summary>" in card
        for file in snippet(trainer, "messages", Data("org/mix", hub=True, revision="v1", student="org/tiny")):
            assert file.text.rstrip() in card
    bare = render(CardInputs(title="t"), version="1", configs=configs[1:])
    assert "How to train" not in bare


def test_render_prints_the_configuration_and_what_is_trained() -> None:
    chosen = ChosenRow("mix", {}, Path("/out/mix/1"))
    text = "\n".join(configuration(trainer_of("llamafactory"), "messages", chosen, "org/tiny"))
    assert '"file_name": "/out/mix/1/data/messages"' in text
    assert "--- LLaMA-Factory (0.9.5) trains on every message of the assistant" in text
    with pytest.raises(UserError, match="did you mean 'axolotl'"):
        trainer_of("axolotel")
