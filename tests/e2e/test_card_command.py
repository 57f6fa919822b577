"""The command on a card is what made the dataset: run again, it makes the same one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.e2e.conftest import Project, Teacher
from tracefactory.config import load_pipeline
from tracefactory.engine.identity import identities
from tracefactory.engine.reporting.display import Display
from tracefactory.engine.run import run_pipeline
from tracefactory.publish.release import Manifest, read_manifest

PROFILES = """\
profiles:
  "quick & small":  # a name that a shell would read as two commands
    stages: {short: {with: {samples: 1}}}
"""
DESCRIPTION = 'it\'s "two"\nlines of $HOME `ls` \\ 1e3 — é 日本\r\u202e\x1b[0m'
OPTIONS = [
    *("--profile", "quick & small"),
    *("--set", "version=1e3"),
    *("--set", f"description={DESCRIPTION}"),
    *("--set", "stages.problems.with.size=8"),
    *("--set", "stages.long.with.samples=3"),
    *("--set", "stages.long.with.samples=2"),
    *("--set", 'stages.long.with.stop=["a \'b\'", "\\n\\n\\n", "no", "#"]'),
    *("--set", "stages.dataset.with={views: [sft, raw], tags: ['x: y', '1e5'], allow_missing: 0.5%}"),
    *("--set", "stages.clean.filter.length={max_tokens: 900}"),
    *("--limit", "6"),
]


@pytest.fixture
def teacher(teacher_of: Callable[..., Teacher]) -> Teacher:
    return teacher_of(accuracy=0.8)


@pytest.fixture
def project(teacher: Teacher, project_of: Callable[..., Project]) -> Project:
    """A project in a folder with a space, whose pipeline is not in pipelines/."""
    made = project_of(teacher.url, size=10, name="my project", gym=True)
    file = made.root / "sub folder" / "it's sums.yaml"
    file.parent.mkdir()
    file.write_text(made.pipeline.read_text() + PROFILES)
    made.pipeline.unlink()
    return Project(made.root, file)


def command_on(card: str) -> str:
    found = re.search(r"^(`{3,})sh\n(tracefactory run .*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2]


def pipeline_on(card: str) -> str:
    found = re.findall(r"^(`{3,})yaml\n(name: .*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    return str(found[-1][1])


def run_command(root: Path, command: str) -> None:
    folder = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=root, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def copy(project: Project, name: str, *without: str) -> Path:
    root = project.root.parent / name
    shutil.copytree(project.root, root, symlinks=True, ignore=shutil.ignore_patterns("out", *without))
    return root


def rows_of(manifest: Manifest) -> tuple[object, ...]:
    return manifest.name, manifest.version, manifest.content, dict(manifest.configs), dict(manifest.stages)


def test_the_command_on_the_card_makes_the_dataset_again(project: Project, teacher: Teacher) -> None:
    project.make(*OPTIONS)
    folder = project.root / "out" / "sums" / "1e3-limit6"
    first, card = read_manifest(folder), (folder / "README.md").read_text()
    paid = teacher.stats()["completed_total"]
    assert paid == 6 * 2 + 6
    command = command_on(card)

    same_store = copy(project, "same store")
    run_command(same_store, command)
    assert teacher.stats()["completed_total"] == paid
    again = same_store / "out" / "sums" / "1e3-limit6"
    assert rows_of(read_manifest(again)) == rows_of(first)
    assert (again / "README.md").read_text() == card

    fresh = copy(project, "fresh store", ".tracefactory")
    run_command(fresh, command)
    assert teacher.stats()["completed_total"] == 2 * paid
    assert rows_of(read_manifest(fresh / "out" / "sums" / "1e3-limit6")) == rows_of(first)


def test_the_pipeline_on_the_card_is_the_one_that_ran(project: Project) -> None:
    project.make(*OPTIONS)
    folder = project.root / "out" / "sums" / "1e3-limit6"
    card = (folder / "README.md").read_text()
    alone = copy(project, "alone", ".tracefactory", "sub folder")
    file = alone / "pipelines" / "resolved.yaml"
    file.write_text(pipeline_on(card))
    Project(alone, file).run("check")
    pipeline = load_pipeline(file, limit=6)
    assert pipeline.description == DESCRIPTION
    assert pipeline.version == "1e3"
    keys = {stage: one.key for stage, one in identities(pipeline).items()}
    stages = read_manifest(folder).stages
    assert {stage: keys[stage] for stage in stages} == dict(stages)

    told = card.split("## How to reproduce")[1]
    assert "| `stages.long.with.samples` | `2` | `2` |" not in told  # nothing changed in the end
    assert "| `stages.short.with.samples` | `2` | `1` |" in told
    assert "| `stages.problems.with.size` | `10` | `8` |" in told
    # What the run recorded of itself is the same, and reads as the same.
    (record,) = (project.root / ".tracefactory" / "runs").glob("*/resolved.yaml")
    assert yaml.safe_load(record.read_text())["stages"] == yaml.safe_load(pipeline_on(card))["stages"]


def test_without_options_the_card_has_the_file_as_it_was_read(project: Project) -> None:
    """The file is edited while the run is under way."""
    text = project.pipeline.read_text()
    loaded = load_pipeline(project.pipeline)
    project.pipeline.write_text(text.replace('version: "1"', 'version: "2" # edited'))
    with Path(os.devnull).open("w") as nowhere:
        asyncio.run(run_pipeline(loaded, Display(Console(file=nowhere), "plain")))
    card = (project.root / "out" / "sums" / "1" / "README.md").read_text()
    assert pipeline_on(card) == text.rstrip()
    assert "# a name that a shell" in card
    assert command_on(card) == "tracefactory run 'sub folder/it'\"'\"'s sums.yaml'"


def test_the_card_of_a_resumed_run_has_the_options_that_its_rows_come_from(project: Project) -> None:
    project.run("run", str(project.pipeline), "--set", "stages.long.with.samples=1", "--budget", "requests=4", expect=3)
    project.make("--set", "stages.long.with.samples=3")
    card = project.root / "out" / "sums" / "1" / "README.md"
    before = card.read_text()
    assert "| `stages.long.with.samples` | `2` | `3` |" in before
    assert command_on(before).endswith("--set stages.long.with.samples=3")
    rows = yaml.safe_load(pipeline_on(before))["stages"]
    assert next(stage for stage in rows if stage["id"] == "long")["with"]["samples"] == 3
    # Other options that make the same rows leave the release as it is.
    project.make("--set", "stages.long.with.samples=3", "--set", "run.shards=2", "--no-requests")
    assert card.read_text() == before


def test_a_secret_is_on_no_card(project: Project) -> None:
    """Not even one that a later option replaces, which the models do not see."""
    literal = "sk-live-0123456789abcdef0123"
    environment = ["--set", "models.long_teacher.api_key=env:TEACHER_KEY"]
    for first in (f"models.long_teacher.api_key={literal}", f"models.long_teacher.base_url=http://u:{literal}@h/v1"):
        later = [*environment, "--set", "models.long_teacher.base_url=http://127.0.0.1:9/v1"]
        output = project.run("plan", str(project.pipeline), "--set", first, *later, expect=2)
        assert "env:NAME" in output
        assert literal not in output
    os.environ["TEACHER_KEY"] = literal
    try:
        project.make(*environment)
    finally:
        del os.environ["TEACHER_KEY"]
    card = (project.root / "out" / "sums" / "1" / "README.md").read_text()
    assert literal not in card
    assert "api_key: env:TEACHER_KEY" in card
    assert "with these environment variables: `TEACHER_KEY`:" in card
    assert literal not in json.dumps([path.read_text() for path in project.root.rglob("*.yaml")])


def test_a_partial_release_is_made_again_from_what_is_stored(project: Project, teacher: Teacher) -> None:
    project.run("run", str(project.pipeline), "--budget", "requests=12", expect=3)
    partial = ["--set", "stages.dataset.with.allow_missing=100%", "--set", "stages.dataset.from=clean"]
    project.make("--no-requests", *partial)
    paid = teacher.stats()["completed_total"]
    folder = project.root / "out" / "sums" / "1"
    card = (folder / "README.md").read_text()
    assert read_manifest(folder).missing
    assert "With `--no-requests` it makes the rows of this version" in " ".join(card.split())
    again = copy(project, "again")
    run_command(again, f"{command_on(card)} --no-requests")
    assert teacher.stats()["completed_total"] == paid
    assert rows_of(read_manifest(again / "out" / "sums" / "1")) == rows_of(read_manifest(folder))
