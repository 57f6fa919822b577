"""`publish: dataset`: a version is put in place whole, once, and never changed; what is left lying about is removed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import line, trace
from tracefactory.core.errors import RunError, UserError
from tracefactory.publish import dataset, release
from tracefactory.publish.release import read_manifest
from tracefactory.store.leases import RunLock
from tracefactory.verification.base import VERIFIERS

STAGES = """\
  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}
  - {id: dataset, publish: dataset, with: {views: [sft, raw], licence: LICENCE}}
"""
ROWS = trace() + trace(question="What is 40 + 2?")


def stages(licence: str = "mit") -> str:
    return STAGES.replace("LICENCE", licence)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the versions of the pipeline `t` are published."""
    return tmp_path / "project" / "out" / "t"


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_publishing_again_is_a_no_op_and_other_content_is_refused(run_stages: RunStages, out: Path) -> None:
    made = await run_stages(stages(), ROWS)
    assert made.stage("dataset").tally.notes == ("published: out/t/1",)
    before, manifest = times(out), read_manifest(out / "1")
    assert {view: found.rows for view, found in manifest.configs.items()} == {"sft": 2, "raw": 2}
    assert list(manifest.stages) == list(manifest.recipe) == ["raw"]
    for folder in (made.root / "stages").glob("dataset-*"):
        shutil.rmtree(folder)
    again = await run_stages(stages(), ROWS)
    assert not again.stage("dataset").cached
    assert again.stage("dataset").tally.notes == ("published: out/t/1",)
    with pytest.raises(UserError, match=r"exists in .* with other content \(raw: .*raise `version:`"):
        await run_stages(stages(), ROWS + trace(question="What is 6 * 7?"))
    with pytest.raises(UserError, match="raise `version:`"):
        await run_stages(stages("cc-by-4.0"), ROWS)
    assert times(out) == before
    assert names(out) == ["1"]


async def test_a_failure_while_writing_leaves_nothing(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dataset.write_range

    def failing(*given: Any) -> Any:
        real(*given)
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(dataset, "write_range", failing)
        with pytest.raises(OSError, match="disk is full"):
            await run_stages(stages(), ROWS)
    assert names(out) == []


async def test_a_failure_while_assembling_leaves_nothing(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **rest: Any) -> Any:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(dataset, "assemble", failing)
        with pytest.raises(OSError, match="disk is full"):
            await run_stages(stages(), ROWS)
    assert names(out) == []


async def test_the_temporary_folder_of_a_killed_run_is_removed(run_stages: RunStages, out: Path) -> None:
    leftover = out / ".1.tmp-dead" / "sft"
    leftover.mkdir(parents=True)
    (leftover / "00000.parquet").write_bytes(b"PAR1")
    await run_stages(stages(), ROWS)
    assert names(out) == ["1"]


async def test_the_temporary_folder_of_another_live_run_is_kept(
    run_stages: RunStages, out: Path, tmp_path: Path
) -> None:
    busy = out / ".1.tmp-theirs"
    busy.mkdir(parents=True)
    (busy / "kept").touch()
    lock = RunLock(tmp_path / "project" / ".tracefactory", "theirs")
    await run_stages(stages(), ROWS)
    assert (busy / "kept").exists()
    lock.close()


async def test_a_trace_that_no_view_can_hold_is_dropped_with_the_views_reason(run_stages: RunStages, out: Path) -> None:
    made = await run_stages(stages(), ROWS + line("<think>\nHm, which", question="Which?"))
    judged = made.judged("dataset")
    dropped = judged.filter(~judged["kept"])
    assert dropped["reason"].to_list() == ["thinking_open"]
    tally = made.stage("dataset").tally
    assert (tally.rows_in, tally.kept, tally.dropped) == (3, 2, 1)
    assert {view: found.rows for view, found in read_manifest(out / "1").configs.items()} == {"sft": 2, "raw": 2}


VERIFIED = """\
  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}
  - {id: checked, verify: auto}
  - {id: dataset, publish: dataset, with: {views: [sft], licence: mit}}
"""


async def test_another_version_of_a_verifier_that_was_not_used_runs_nothing_again(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_stages(VERIFIED, ROWS)
    before = times(out)
    monkeypatch.setattr(VERIFIERS.get("choice"), "version", "99")
    again = await run_stages(VERIFIED, ROWS)
    assert all(stage.cached for stage in again.outcome.stages)
    assert times(out) == before


@pytest.mark.parametrize(
    ("views", "note"),
    [
        ("[sft]", "published: out/t/1"),  # it holds no verdict: its content is the same
        (
            "[sft, raw]",
            "published: out/t/1, made by tracefactory .*; this version would make different rows .*math: 3 -> 99.*",
        ),
    ],
)
async def test_an_upgrade_does_not_publish_again_and_notes_the_changes(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch, views: str, note: str
) -> None:
    stages = VERIFIED.replace("[sft]", views)
    await run_stages(stages, ROWS)
    before = times(out)
    monkeypatch.setattr(VERIFIERS.get("math"), "version", "99")
    made = await run_stages(stages, ROWS)
    assert [stage.cached for stage in made.outcome.stages] == [True, False, False]
    assert re.fullmatch(note, made.stage("dataset").tally.notes[0])
    assert times(out) == before


async def test_a_release_that_does_not_load_is_not_put_in_place(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card names the files of each configuration: a card that names others is what this check is for."""
    real = release.render
    broken = [("data/raw", "data/sft"), ("config_name: raw", "config_name: sft2"), ("data/sft/*", "data/nothing/*")]
    for old, new in broken:
        with monkeypatch.context() as patched:
            patched.setattr(release, "render", lambda *a, _o=old, _n=new, **k: real(*a, **k).replace(_o, _n))
            with pytest.raises(RunError, match="`datasets`"):
                await run_stages(stages(), ROWS)
        assert names(out) == []


async def test_the_card_names_the_licences_of_what_is_in_the_dataset_alone(run_stages: RunStages, out: Path) -> None:
    source = STAGES.splitlines(keepends=True)[0].replace("model: someone", "model: someone, licence_field: l")
    closed = "  - {id: closed, filter: [thinking_closed]}\n"
    rows = [trace(), trace(question="What is 40 + 2?"), line("<think>\nHm, which", question="Which?")]
    licences = ("mit", "cc-by-4.0", "cc-by-nc-4.0")
    lines = "".join(f'{{"l": "{one}", {row[1:]}' for one, row in zip(licences, rows, strict=True))
    made = await run_stages(source + closed + stages().splitlines()[1], lines)
    assert [made.stage(one).tally.kept for one in ("raw", "closed", "dataset")] == [3, 2, 2]
    card = (out / "1" / "README.md").read_text()
    assert "cc-by-4.0, mit" in card
    assert "cc-by-nc-4.0" not in card


async def test_a_release_in_ranges_by_processes_of_their_own_has_the_same_content(
    run_stages: RunStages, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(trace(question=f"What is {n} + 1?") for n in range(40))
    made = await run_stages(stages(), rows)
    whole = read_manifest(out / "1")
    shutil.rmtree(out / "1")
    for folder in (made.root / "stages").glob("dataset-*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(dataset, "FILE_CHARACTERS", 1000)
    await run_stages(stages(), rows)
    ranges = read_manifest(out / "1")
    assert len([line for line in ranges.files if line.path.startswith("data/sft/")]) > 2
    assert ranges.content == whole.content
    assert {view: found.rows for view, found in ranges.configs.items()} == {"sft": 40, "raw": 40}


async def test_the_card_of_pruned_traces_tells_models_prompts_and_lengths(run_stages: RunStages, out: Path) -> None:
    source = STAGES.splitlines(keepends=True)[0]
    cut = "  - {id: checked, verify: auto}\n  - {id: cut, prune: after_answer, with: {conclude: {model: pupil}}}\n"
    pupil = {"reply": "It is \\boxed{42}.", "entry": {"model": "/srv/weights/pupil-7b", "revision": "1"}}
    made = await run_stages(source + cut + stages().splitlines()[1], ROWS, pupil=pupil)
    assert made.stage("cut").tally.numbers["pruned"] == 2
    card = (out / "1" / "README.md").read_text()
    assert "| `pupil` | student | `pupil-7b` |" in card
    assert re.search(r"\| `prune_conclude` \| `[0-9a-f]{8,}", card)
    assert re.search(r"\| `cut` \| `prune:after_answer` \| 2 \| [1-9][0-9]?\.\d% \| [1-9]\d* \| ", card)
    assert "those of the 2 pruned rows are estimates" in card
    assert "/srv/" not in card
    assert "/srv/" not in (out / "1" / "manifest.json").read_text()
