"""Raw and pruned traces side by side: two datasets of one pipeline, each with a folder, a card and a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.e2e.conftest import Project, Teacher
from tests.hub_server import TOKEN, running
from tracefactory.publish.release import read_manifest, verify_release

PROMPTS = Path(__file__).parents[2] / "prompts"
PIPELINE = """\
name: sums
version: "1"
models:
  teacher: {{use: openai, model: fake-teacher, base_url: "{url}", concurrency: 16, retries: 8}}
  student: {{use: openai, model: fake-student, base_url: "{url}", retries: 8}}
stages:
  - id: problems
    source: files
    with: {{paths: sums.jsonl}}
  - {{id: long, sample: chat, with: {{model: teacher, prompt: long, samples: 2}}}}
  - {{id: checked, verify: auto}}
  - {{id: right, filter: [verdict]}}
  - {{id: raw, publish: dataset, with: {{views: [sft, raw], hub: someone/sums, token: env:HF_TOKEN}}}}
  - {{id: cut, prune: binary_cut, from: right, with: {{model: student}}}}
  - id: pruned
    publish: dataset
    with: {{name: sums-pruned, views: [sft, masked, raw], hub: someone/sums-pruned, token: env:HF_TOKEN}}
run: {{executor: inline}}
"""


@pytest.fixture
def project(teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]) -> Project:
    url = teacher_of(accuracy=0.8).url
    made = project_of(url, size=12)
    for file in PROMPTS.glob("prune_*.md"):
        (made.root / "prompts" / file.name).write_text(file.read_text())
    made.pipeline.write_text(PIPELINE.format(url=url))
    return made


def test_one_pipeline_publishes_raw_and_pruned_side_by_side(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "hub") as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        outcome = {stage["id"]: stage for stage in project.make()["stages"]}
        again = project.make()
        assert all(stage["cached"] for stage in again["stages"])
        repos = {name: repo["tags"] for name, repo in hub.state["repos"].items()}
        assert sorted(repos) == ["someone/sums", "someone/sums-pruned"]
        assert all(list(tags) == ["v1"] for tags in repos.values())
        output = project.run("publish", "out/sums-pruned/1", "--repo", "someone/elsewhere")
        assert output.startswith(f"pushed: {hub.url}/datasets/someone/elsewhere")

    raw, pruned = (project.root / "out" / name / "1" for name in ("sums", "sums-pruned"))
    assert [path.name for path in raw.parent.iterdir()] == [path.name for path in pruned.parent.iterdir()] == ["1"]
    for folder, stage in ((raw, "raw"), (pruned, "pruned")):
        manifest = verify_release(folder)
        assert manifest.name == folder.parent.name
        assert manifest.configs["raw"].rows == outcome[stage]["tally"]["kept"] > 5
        # As the card says: the cache of `datasets` takes two folders of one name for the same dataset.
        rows = load_dataset("parquet", data_files=f"{folder}/data/sft/*.parquet", split="train")
        assert rows.num_rows == manifest.configs["sft"].rows
        receipt = project.root / ".tracefactory" / "published" / manifest.name / "1.json"
        assert json.loads(receipt.read_text())["repo"] == f"someone/{manifest.name}"
    assert "cut" not in read_manifest(raw).stages
    assert "cut" in read_manifest(pruned).stages
    assert read_manifest(raw).content != read_manifest(pruned).content

    cards = [" ".join((folder / "README.md").read_text().split()) for folder in (raw, pruned)]
    assert cards[0].count("# sums ") == 1
    assert "# sums-pruned" in cards[1]
    assert "under the same version, `sums-pruned` (stage `pruned`, on the Hub as `someone/sums-pruned`)" in cards[0]
    assert "under the same version, `sums` (stage `raw`, on the Hub as `someone/sums`)" in cards[1]

    shown = project.run("show")
    assert "published traces: raw" in shown
    assert "published traces: pruned" in shown
    found = json.loads(project.run("diff", "out/sums/1", "out/sums-pruned/1", "--json"))
    assert (found["first"], found["second"]) == ("sums 1", "sums-pruned 1")
    assert {view["view"] for view in found["views"]} == {"sft", "raw"}
    assert any("cut" in one for one in found["changes"])


COLLISIONS = {
    "the same name": (
        "name: sums-pruned, ",
        "",
        r"sums.yaml:15: stage 'pruned': stage 'raw' in line 13 publishes",
    ),
    "the pipeline's name": ("name: sums-pruned", "name: Sums", r"stage 'raw' in line 13 publishes sums 1 too"),
    "the same repository": ("hub: someone/sums-pruned", "hub: someone/Sums", r"sums.yaml:15: .*hub: someone/sums too"),
    "a name that leaves the folder": ("name: sums-pruned", "name: ../sums", r"sums.yaml:17: .*name"),
}


@pytest.mark.parametrize("case", sorted(COLLISIONS))
def test_a_collision_is_refused_before_anything_is_paid(case: str, project: Project) -> None:
    right, wrong, message = COLLISIONS[case]
    text = project.pipeline.read_text()
    assert right in text
    project.pipeline.write_text(text.replace(right, wrong, 1))
    for command in (["check"], ["run", str(project.pipeline)]):
        output = " ".join(project.run(*command, expect=2).split())
        assert re.search(message, output), output
    assert not (project.root / ".tracefactory" / "requests").exists()
