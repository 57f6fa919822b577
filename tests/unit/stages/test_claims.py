"""A name and version hold one dataset: whoever else of the project claims them is named before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tracefactory.cli import app
from tracefactory.core.errors import Mistake
from tracefactory.core.yamlfile import Node, read_yaml
from tracefactory.publish.release import MANIFEST

PIPELINE = """\
name: NAME
version: "VERSION"
stages:
  - {id: traces, source: traces, with: {paths: traces.jsonl, question: q, answer: a, model: someone}}
  - {id: dataset, publish: dataset, with: {views: [sft], licence: mit}}
profiles:
  small: {stages: {dataset: {with: {views: [sft]}}}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the pipeline `sums`, version 1."""
    (tmp_path / "pipelines").mkdir()
    rows = [{"q": f"What is {n} + 1?", "a": str(n + 1), "response": f"<think>One more.</think>{n + 1}"} for n in (1, 2)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path, "sums")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root: Path, file: str, name: str = "sums", version: str = "1", **changes: str) -> Path:
    text = PIPELINE.replace("NAME", name).replace("VERSION", version)
    for old, new in changes.items():
        text = text.replace(f"{old}: ", f"{new}: ", 1) if new.isidentifier() else text.replace(old, new)
    made = root / "pipelines" / f"{file}.yaml"
    made.write_text(text)
    return made


def output_of(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    text = done.output if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
    return done.exit_code, " ".join(text.split())


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_two_files_that_publish_the_same_version_are_refused_with_file_and_line(root: Path, command: str) -> None:
    assert output_of("check", "pipelines/sums.yaml")[0] == 0
    write(root, "again", name="Sums")
    code, text = output_of(command, "pipelines/sums.yaml")
    assert code != 0
    assert "pipelines/sums.yaml:5: stage 'dataset': stage 'dataset' of pipelines/again.yaml, line 5, publishes" in text
    assert "Sums 1 too, and a version holds one dataset (name one of them otherwise, as in `with: {name:" in text
    assert "again.yaml:5: stage 'dataset': stage 'dataset' of pipelines/sums.yaml, line 5" in output_of("check")[1]
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("name", "version", "old", "new"),
    [
        ("other", "1", "", ""),
        ("sums", "2", "", ""),
        ("sums", "1", "{views: [sft], licence", "{name: others, views: [sft], licence"),
        ("sums", "1", "publish: dataset", "filter: verdict"),
        ("sums", "1", "stages:", "stages: {"),  # no YAML
        ("sums", "1", 'version: "1"', "version: 1.0"),  # no text: it claims nothing, and is reported itself
    ],
)
def test_another_name_or_version_and_a_broken_file_claim_nothing(
    root: Path, name: str, version: str, old: str, new: str
) -> None:
    file = write(root, "again", name, version)
    file.write_text(file.read_text().replace(old, new) if old else file.read_text())
    code, text = output_of("check", "pipelines/sums.yaml")
    assert code == 0, text


def test_a_name_given_to_the_stage_or_by_a_profile_counts(root: Path) -> None:
    file = write(root, "again", name="more")
    own = file.read_text()
    file.write_text(own.replace("{views: [sft], licence", "{name: sums, views: [sft], licence"))
    assert (
        "stage 'dataset' of pipelines/again.yaml, line 5, publishes sums 1"
        in output_of("check", "pipelines/sums.yaml")[1]
    )
    file.write_text(own.replace("{with: {views: [sft]}}", "{with: {name: sums}}"))
    assert "publishes sums 1 too under the profile 'small'" in output_of("check", "pipelines/sums.yaml")[1]
    assert output_of("check", "pipelines/sums.yaml", "--help")[0] == 0


def test_a_release_that_another_pipeline_made_is_refused(root: Path) -> None:
    code, text = output_of("run", "pipelines/sums.yaml")
    assert code == 0, text
    manifest = root / "out" / "sums" / "1" / MANIFEST
    assert json.loads(manifest.read_text())["pipeline"] == "sums"
    (root / "pipelines" / "sums.yaml").unlink()
    file = write(root, "others", name="others")
    file.write_text(file.read_text().replace("{views: [sft], licence", "{name: sums, views: [sft], licence"))
    code, text = output_of("check", "pipelines/others.yaml")
    assert code != 0
    assert "others.yaml:5: stage 'dataset': out/sums/1 was published by another pipeline, 'sums'" in text
    assert "raise `version:`" in text
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in told.items() if key != "pipeline"}))
    assert output_of("check", "pipelines/others.yaml")[0] == 0  # of 0.2, which did not say: the run compares it
    manifest.write_text("{")
    assert output_of("check", "pipelines/others.yaml")[0] == 0


def test_files_without_the_name_are_not_read_as_yaml(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(root, f"p{number}", name=f"p{number}")
    read: list[Path] = []

    def reading(file: Path, mistakes: list[Mistake]) -> Node | None:
        read.append(file)
        return read_yaml(file, mistakes)

    monkeypatch.setattr("tracefactory.publish.claims.read_yaml", reading)
    assert output_of("check", "pipelines/sums.yaml")[0] == 0
    assert not read
    file = write(root, "again")
    file.write_text(file.read_text().replace("publish: dataset", "filter: verdict"))
    assert output_of("check", "pipelines/sums.yaml")[0] == 0
    assert [file.name for file in read] == ["again.yaml"]
