"""The configurations of the trainers: they parse, name what exists, and stand on the card."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.trainers import proved
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
    message = []
    for file in files:
        if file.language == "python":
            message += [one.value for one in ast.walk(ast.parse(file.text)) if isinstance(one, ast.Constant)]
        elif file.language == "sh":
            message += shlex.split(file.text, comments=True)
        else:
            message += list(_values(json.loads(file.text) if file.language == "json" else yaml.safe_load(file.text)))
    text = [str(one) for one in message]
    assert any(data.place in one or (data.hub and f"data/{view}" in one) for one in text)
    assert data.student in text
    assert any(view in file.text for file in files)


def _values(value: object) -> list[object]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _values(inner)]
    return [one for inner in value for one in _values(inner)] if isinstance(value, list) else [value]


def test_a_configuration_that_changes_is_read_by_its_trainer_again() -> None:
    """`make trainers-table` reads them with the trainers' own code, and writes the digests."""
    assert proved.digests() == json.loads(proved.FILE.read_text())


def test_every_view_that_trainers_name_exists() -> None:
    for trainer in TRAINERS.values():
        assert {*trainer.readings, *trainer.unread} <= set(VIEWS), trainer.name
        assert not set(trainer.readings) & set(trainer.unread), trainer.name


@pytest.mark.parametrize(
    ("trainer", "view", "message"),
    [
        ("llamafactory", "chat", "drops the reasoning; the view `messages` has it inline"),
        ("llamafactory", "preference", "the view `ranking` has the same pairs"),
        ("verl", "masked", "no loss mask within a message"),
        ("trl", "raw", "TRL does not read the view 'raw'"),
    ],
)
def test_a_view_that_a_trainer_would_read_wrongly_is_refused(trainer: str, view: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
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


def test_releases_with_the_same_version_are_not_mistaken_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of `datasets` knows a folder by its last name: `load_dataset(FOLDER, VIEW)` returns the first one."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found, by_folder = [], []
    for name in ("raw", "pruned"):
        release = tmp_path / name / "1"
        (release / "data" / "sft").mkdir(parents=True)
        pq.write_table(pa.table({"id": [name]}), release / "data" / "sft" / "train-00000.parquet")
        files = "  data_files:\n  - split: train\n    path: data/sft/*.parquet\n"
        (release / "README.md").write_text(f"---\nconfigs:\n- config_name: sft\n{files}---\n")
        code = Data(str(release)).loaded("sft")
        found.append(eval(code, {"load_dataset": datasets.load_dataset})["id"][0])
        by_folder.append(datasets.load_dataset(str(release), "sft", split="train")["id"][0])
        (train,) = snippet(TRAINERS["axolotl"], "messages", Data(str(release)))
        (entry,) = yaml.safe_load(train.text)["datasets"]
        assert entry["data_files"] == [f"{release}/data/messages/*.parquet"]
    assert found == ["raw", "pruned"]
    assert by_folder == ["raw", "raw"]  # when this fails, folders can be loaded by their names again


@pytest.mark.parametrize(
    "cut",
    ["So is it? No. ", " So is it? No.", '"Moved" is a word. ', "Let me check: 40 + 2 = 42.\n\n", "Take 40 and 2. "],
)
def test_labels_leave_out_whole_sentences_that_were_cut_within_a_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Tokens begin with the space before a word: taken by their first character, first words were on the wrong side."""
    import runpy

    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_from_disk

    from tests.unit.students.test_masks import USER, renderer
    from tracefactory.testing.templates import shipped

    tokenizer = renderer(shipped()["smollm2"]).tokenizer
    tokenizer.save_pretrained(tmp_path / "student")
    reasoning = 'Take 40 and 2. So is it? No. "Moved" is a word. It is 42.\n\nLet me check: 40 + 2 = 42.\n\nYes.'
    content = f"<think>\n{reasoning}\n</think>\n\nIt is 42."
    at = content.index(cut)
    ranges = [(0, at, True), (at, at + len(cut), False), (at + len(cut), len(content), True)]
    details = [{"begin_offset": begin, "end_offset": end - 1, "train": train} for begin, end, train in ranges]
    messages = [{**USER, "train_detail": None}, {"role": "assistant", "content": content, "train_detail": details}]
    (tmp_path / "data" / "masked").mkdir(parents=True)
    pq.write_table(pa.table({"id": ["r"], "masked_messages": [messages]}), tmp_path / "data" / "masked" / "a.parquet")
    script = snippet(TRAINERS["trl"], "masked", Data(str(tmp_path), student=str(tmp_path / "student")))[0]
    (tmp_path / script.name).write_text(script.text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(script.name)
    (row,) = load_from_disk("masked-labels")["train"]
    trained = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert trained.split() == (content.replace(cut, " ") + "<|im_end|>").split()
