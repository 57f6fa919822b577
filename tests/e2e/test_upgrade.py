"""Projects that earlier versions stored, opened by this one: nothing is paid again. Kept for every release.

stored/ holds a project of every release as its commands left it (see CONTRIBUTING.md, Releases): pipelines that sample,
judge, prune, vote, revise and publish, with fake models that a run has to start before it can pay.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project
from tracefactory.core.fingerprint import digest_file

STORED = Path(__file__).parent / "stored"
ARCHIVES = sorted(STORED.glob("project-*.tar.xz"))
CURRENT = ARCHIVES[-1]
OLD = [archive for archive in ARCHIVES if archive != CURRENT]
Open = Callable[[Path], Project]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def unpack(archive: Path) -> Project:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        (root,) = (folder for folder in tmp_path.iterdir() if (folder / "pipelines").is_dir())
        return Project(root, root / "pipelines" / "sums.yaml")

    return unpack


def pipelines(project: Project) -> list[str]:
    return [f"pipelines/{file.name}" for file in sorted((project.root / "pipelines").iterdir())]


def plan(project: Project, pipeline: str) -> dict[str, Any]:
    return json.loads(project.run("plan", pipeline, "--json"))


def run(project: Project, pipeline: str, expect: int = 0) -> dict[str, Any]:
    return json.loads(project.run("run", pipeline, "--json", expect=expect))


def paid(outcome: dict[str, Any]) -> float:
    return sum(stage["paid"].get("requests", 0) for stage in outcome["stages"])


def files(folder: Path) -> dict[str, str]:
    """Return the digests of all files of a folder, by path."""
    return {str(one.relative_to(folder)): digest_file(one) for one in sorted(folder.rglob("*")) if one.is_file()}


def test_the_version_before_is_stored() -> None:
    assert [archive.name for archive in ARCHIVES] == ["project-0.1.tar.xz", "project-0.2.tar.xz"]


def with_remedy(project: Project) -> Project:
    """Make the change that version 0.3 requires: a pruner that copies the answer text has to name its check."""
    file = project.root / "pipelines" / "cut.yaml"
    assert "or write check: answer" in project.run("plan", str(file), expect=2)
    text = file.read_text().replace("reached: 0}", "reached: 0, check: answer}")
    # What is checked of pruned traces is a new column, so the release has other content.
    file.write_text(text.replace('version: "1"', 'version: "2"'))
    return project


def test_a_project_of_the_version_before_owes_nothing_and_runs_what_changed_again(opened: Open) -> None:
    project = with_remedy(opened(CURRENT))
    planned = plan(project, "pipelines/cut.yaml")
    again = {stage["id"] for stage in planned["stages"] if stage["state"] != "cached"}
    assert again == {"checked", "right", "cut", "rest", "dataset"}  # verifiers have other versions
    assert paid(run(project, "pipelines/cut.yaml")) == 0
    published = files(project.root / "out")
    for pipeline in pipelines(project):
        again = {stage["id"] for stage in plan(project, pipeline)["stages"] if stage["state"] != "cached"}
        assert not again & {"problems", "long", "short", "first"}
        assert paid(run(project, pipeline)) == 0
    assert files(project.root / "out") == published  # what is published stays as it is
    before = files(project.root / ".tracefactory" / "stages")
    for pipeline in pipelines(project):
        planned = plan(project, pipeline)
        assert {stage["state"] for stage in planned["stages"]} == {"cached"}
        assert planned["requests"] == 0
        outcome = run(project, pipeline)
        assert all(stage["cached"] for stage in outcome["stages"])
    assert files(project.root / ".tracefactory" / "stages") == before


def test_stored_verdicts_are_compared_before_they_are_made_again(opened: Open) -> None:
    project = opened(CURRENT)
    stages = {one["id"]: one for one in plan(project, "pipelines/sums.yaml")["stages"]}
    assert stages["checked"]["why"] == "versions.math: 2 -> 3"  # and not what differs from `checked` of wide.yaml
    told = stages["checked"]["upgrade"]
    assert told["words"][0].startswith("math 3: ")
    assert (told["verdicts"]["stored"], told["verdicts"]["compared"]) == (48, 48)
    assert told["verdicts"]["changed"] == []
    assert {name for name, one in stages.items() if one["upgrade"]} == {"checked"}
    text = " ".join(project.run("plan", "pipelines/sums.yaml").split())
    assert "• checked: of 48 stored verdicts 48 were compared: no verdict changes" in text


@pytest.mark.parametrize("archive", OLD, ids=lambda archive: archive.stem)
def test_a_project_of_an_earlier_version_is_rebuilt_for_nothing(opened: Open, archive: Path) -> None:
    project = with_remedy(opened(archive))
    published = files(project.root / "out")
    for pipeline in pipelines(project):
        planned = plan(project, pipeline)
        assert planned["requests"] == 0 or pipeline.endswith("cut.yaml")
        assert planned["rebuilt"] > 0
        assert any("stored by an earlier version: rebuilt" in stage["why"] for stage in planned["stages"])
        outcome = run(project, pipeline)
        assert paid(outcome) == 0
        assert "made by tracefactory 0.1.0" in json.dumps(outcome) or pipeline.endswith("cut.yaml")
        assert all(stage["cached"] for stage in run(project, pipeline)["stages"])
    assert published.items() <= files(project.root / "out").items()


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.stem)
def test_twice_the_samples_owe_the_other_half_alone(opened: Open, archive: Path) -> None:
    project = opened(archive)
    text = project.pipeline.read_text()
    doubled = text.replace("prompt: long, samples: 2", "prompt: long, samples: 4")
    assert doubled != text
    project.pipeline.write_text(doubled.replace('version: "1"', 'version: "2"'))
    assert plan(project, "pipelines/sums.yaml")["requests"] == 24
    outcome = run(project, "pipelines/sums.yaml")
    by_stage = {stage["id"]: stage["paid"].get("requests", 0) for stage in outcome["stages"]}
    # The judge is asked about answers: of the 24 new ones it has seen those that say what an old one says.
    assert (by_stage["long"], by_stage["short"]) == (24, 0)
    assert by_stage["judged"] <= 24


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.stem)
def test_what_the_request_store_lost_is_owed_and_nothing_else(opened: Open, archive: Path) -> None:
    """Without its journals and segments the project owes everything: the test above cannot pass by not looking."""
    project = opened(archive)
    shutil.rmtree(project.root / ".tracefactory" / "requests")
    shutil.rmtree(project.root / ".tracefactory" / "stages")
    assert plan(project, "pipelines/sums.yaml")["requests"] == 48


def test_ids_of_rows_are_those_of_the_earlier_version(opened: Open) -> None:
    """What was published then and what is made now are the same traces, and lineage finds them by the same ids."""
    import polars as pl

    project = with_remedy(opened(OLD[0]))
    for pipeline in pipelines(project):
        run(project, pipeline)
    stages = project.root / ".tracefactory" / "stages"
    now = pl.concat([pl.read_parquet(file, columns=["id"]) for file in stages.glob("*/traces-*.parquet")])
    for release in (project.root / "out").glob("*/1/data/raw/*.parquet"):
        published = pl.read_parquet(release, columns=["id"])
        assert published.height
        assert published.join(now, on="id", how="anti").is_empty(), release
