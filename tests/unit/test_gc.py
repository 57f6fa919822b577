"""What `gc` deletes, what it keeps and why, and what it does beside runs and kills. The state is a stored project."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.store.clouds import Cloud
from tracefactory.cli import app
from tracefactory.cli.gc import in_bytes
from tracefactory.config.project import find_project
from tracefactory.core.errors import UserError
from tracefactory.core.pipeline import Project
from tracefactory.engine.garbage import collection as engine_garbage
from tracefactory.engine.garbage.collection import GarbagePlan, Item, collect, plan_garbage
from tracefactory.engine.garbage.reach import STAGE
from tracefactory.engine.garbage.usage import usage_of
from tracefactory.store import garbage
from tracefactory.store.garbage import delete_stage
from tracefactory.store.leases import Lease, RunLock
from tracefactory.store.requests import RequestStore, compact
from tracefactory.store.segments import write_segment
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import StageFolder

ARCHIVE = Path(__file__).parents[1] / "e2e" / "stored" / "project-0.2.tar.xz"
WIDE_RUN = "20261121-161127-331191-wide"
FIRST, AGAIN = "first-220a37ad3d0b86a8", "again-95e59fa1595eabff"  # sampled by the pipeline `wide`
SMALL = "best-a65d4cc58d59eed9"  # selected by it: nothing is made from it


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder / "v2"


@pytest.fixture
def root(stored: Path, tmp_path: Path) -> Path:
    """Return a project whose pipelines `wide` and `cut` were deleted, with what they left."""
    root = tmp_path / "project"
    shutil.copytree(stored, root)
    for name in ("cut", "wide"):
        (root / "pipelines" / f"{name}.yaml").unlink()
    shutil.rmtree(root / "out")
    shutil.rmtree(root / ".tracefactory" / "runs")
    return root


def project_of(root: Path) -> Project:
    return find_project(root, {})


def planned(root: Path, **options: Any) -> GarbagePlan:
    return plan_garbage(project_of(root), **options)


def item(plan: GarbagePlan, name: str) -> Item:
    (found,) = (one for one in plan.items if one.name == name)
    return found


def deleted(root: Path, **options: Any) -> set[str]:
    done = asyncio.run(collect(project_of(root), planned(root, **options)))
    return {one.name for one in done.deleted}


def stage_names(root: Path) -> set[str]:
    return {path.name for path in (root / ".tracefactory" / "stages").iterdir()}


def invoke(root: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["gc", "--project", str(root), *arguments])
    return done.exit_code, done.output if done.exception is None else f"{done.output}{done.exception}"


def add_run(root: Path, run: str, stages: set[str], version: str = "1") -> Path:
    matches = [STAGE.fullmatch(name) for name in stages]
    folder = root / ".tracefactory" / "runs" / run
    folder.mkdir(parents=True)
    lines = [{"id": one[1], "key": one[2] * 4} for one in matches if one is not None]
    (folder / "plan.json").write_text(json.dumps({"pipeline": run[23:], "version": version, "stages": lines}))
    return folder


def end_run(folder: Path) -> None:
    (folder / "outcome.json").write_text("{}")


# ------------------------------------------------------------------------------------------------ what is listed


def test_what_nothing_reaches_is_deleted_and_what_cannot_come_back_for_nothing_is_kept(
    root: Path, stored: Path
) -> None:
    plan = planned(root)
    assert "made again from 36 stored completions" in item(plan, f"stages/{FIRST}").why
    assert "CPUs" in item(plan, "stages/voted-b5a16ba58d0b5c14").why
    for name in ("judged-80d04535e0c61513", "cut-37283376a2d08d42", "rest-f5c27cd6569aa0ef"):  # ask several requests
        assert "do not name all requests" in item(plan, f"stages/{name}").kept
    # What is kept keeps its text, which is in the stages above it.
    assert "judged-80d04535e0c61513" in item(plan, "stages/checked-3b30b1df64e6ab2c").kept
    assert not any("problems-4d3b03f209d4c280" in one.name for one in plan.items)  # `sums.yaml` reads it
    before = stage_names(root)
    gone = deleted(root)
    assert f"stages/{FIRST}" in gone
    assert stage_names(root) == before - {name.removeprefix("stages/") for name in gone}
    assert {one.name for one in planned(root).items} == {one.name for one in plan.items} - gone
    shutil.copy(stored / "pipelines" / "wide.yaml", root / "pipelines")
    told = json.loads(CliRunner().invoke(app, ["plan", str(root / "pipelines" / "wide.yaml"), "--json"]).output)
    first = next(stage["to_pay"] for stage in told["stages"] if stage["id"] == "first")
    assert (first["requests"], first["paid"]) == (0, 36)


def test_a_link_to_a_folder_is_no_stage(root: Path, tmp_path: Path) -> None:
    outside = shutil.move(root / ".tracefactory" / "stages" / SMALL, tmp_path / "outside")
    (root / ".tracefactory" / "stages" / SMALL).symlink_to(outside)
    assert f"stages/{SMALL}" not in deleted(root)
    assert (outside / "record.json").exists()


def test_a_plan_deletes_nothing_and_without_a_yes_nothing_is_deleted(root: Path) -> None:
    before = sorted(root.rglob("*"))
    code, told = invoke(root, "--plan")
    assert (code, FIRST in told) == (0, True)
    code, told = invoke(root)
    assert "nothing was deleted" in told
    assert code != 0
    assert json.loads(invoke(root, "--plan", "--json")[1])["deleted"] == []
    assert sorted(root.rglob("*")) == before
    code, told = invoke(root, "--yes", "--json")
    assert f"stages/{FIRST}" in {one["name"] for one in json.loads(told)["deleted"]}
    assert FIRST not in stage_names(root)


def test_completions_that_are_not_stored_keep_a_stage_with_its_inputs(root: Path) -> None:
    shutil.rmtree(root / ".tracefactory" / "requests")
    plan = planned(root)
    assert "28 of its 28 completions are not stored" in item(plan, f"stages/{AGAIN}").kept
    assert not any(name.removeprefix("stages/") == FIRST for name in deleted(root))
    assert {FIRST, AGAIN, "wrong-90a87d8a9dbe8c4a", "voted-b5a16ba58d0b5c14"} <= stage_names(root)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_source_that_cannot_be_read_again_is_kept(root: Path, change: str) -> None:
    (root / "pipelines" / "sums.yaml").unlink()
    data = root / "data" / "sums.jsonl"
    if change == "gone":
        data.unlink()
    else:
        data.write_text(data.read_text() + '{"question": "1 + 1?", "answer": "2"}\n')
    kept = item(planned(root), "stages/problems-4d3b03f209d4c280").kept
    assert ("no file 'data/sums.jsonl'" if change == "gone" else "other content") in kept


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({"revision": "main", "allow_moving": True}, True),
        ({"revision": "v1.0"}, True),  # a tag can be moved
        ({"revision": "0123456789abcdef" * 2 + "01234567"}, False),
    ],
)
def test_a_source_on_the_hub_is_kept_unless_it_is_pinned(root: Path, parameters: dict[str, Any], kept: bool) -> None:
    (root / "pipelines" / "sums.yaml").unlink()
    edit_identity(root, "problems-4d3b03f209d4c280", op="source:hub_dataset", parameters={"repo": "a/b", **parameters})
    found = item(planned(root), "stages/problems-4d3b03f209d4c280")
    assert ("not pinned" in found.kept) is kept
    assert kept or "read again at commit 0123456789ab" in found.why


def edit_identity(root: Path, name: str, **changes: Any) -> None:
    path = root / ".tracefactory" / "stages" / name / "identity.json"
    content = json.loads(path.read_bytes())
    content.pop("sha256", None)
    path.write_text(json.dumps({**content, **changes}))


def test_what_a_student_measured_is_kept_unless_it_is_named(root: Path) -> None:
    edit_identity(root, SMALL, op="measure:student")
    scores = root / ".tracefactory" / "scores" / "0123456789abcdef" / "part-1.parquet"
    scores.parent.mkdir(parents=True)
    scores.write_bytes(b"scores")
    plan = planned(root)
    names = ["scores/0123456789abcdef", f"stages/{SMALL}"]
    assert all("GPU time" in item(plan, name).kept for name in names)
    assert set(names) <= deleted(root, named=names)
    assert not scores.parent.exists()


def test_what_a_comparison_makes_again_is_deleted_when_nothing_may_use_it(root: Path) -> None:
    teaching, student = root / ".tracefactory" / "teaching", f"{8:016x}"
    files = ("rows/a.parquet", "untouched-1/config.json", "gguf/1.gguf", "hub/a--b@v1/manifest.json")
    for name in files:
        (teaching / name).parent.mkdir(parents=True)
        (teaching / name).write_bytes(bytes(100))
    (teaching / "answers").mkdir()
    (teaching / "answers" / "a.json").write_text("{}")
    names = {"teaching/rows", "teaching/untouched-1", "teaching/gguf", "teaching/hub"}
    assert {one.name for one in planned(root).left if one.what == "copy"} == names
    assert "less than a day ago" in item(planned(root), "teaching/rows").kept
    for name in names:
        os.utime(root / ".tracefactory" / name, (0, 0))
    (teaching / student).mkdir()
    with (teaching / student / "log.txt").open("wb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        plan = planned(root, named=["teaching/rows"])
        assert {item(plan, name).kept for name in names} == {"a process trains a student, which may need it"}
    plan = planned(root)
    with (teaching / student / "log.txt").open("ab") as log:  # it began after the plan was made
        fcntl.flock(log, fcntl.LOCK_EX)
        assert {one.name for one in asyncio.run(collect(project_of(root), plan)).left} >= names - {"teaching/hub"}
    assert deleted(root) >= names - {"teaching/hub"}
    assert [path.name for path in teaching.iterdir() if path.name not in ("answers", student)] == ["hub"]
    assert "may not have it" in item(planned(root), "teaching/hub").kept
    assert "teaching/hub" in deleted(root, named=["teaching/hub"])
    assert (teaching / "answers" / "a.json").exists()


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (10**9, "1.0 GB"), (10**16, "10000.0 TB")]
)
def test_sizes_are_told_with_a_unit(size: int, text: str) -> None:
    assert in_bytes(size) == text


def test_trained_students_are_kept_unless_they_are_named(root: Path) -> None:
    teaching = root / ".tracefactory" / "teaching"
    done, going = f"{7:016x}", f"{8:016x}"
    for key in (done, going):
        (teaching / key / "model").mkdir(parents=True)
        (teaching / key / "model" / "weights").write_bytes(bytes(100))
        (teaching / key / "log.txt").touch()
    (teaching / done / "record.json").write_text(json.dumps({"seconds": 5400.0}))
    for folder in ("answers", "rows", f"untouched-{done}"):
        (teaching / folder).mkdir()
    (teaching / "answers" / "a.json").write_text(json.dumps({"student": done + "f" * 48}))
    (teaching / "answers" / "torn.json").write_text("{")
    plan = planned(root)
    assert {one.name for one in plan.items if one.what == "training"} == {f"teaching/{done}", f"teaching/{going}"}
    finished = item(plan, f"teaching/{done}")
    assert finished.kept == "it took 1.5 h to train"
    assert finished.why == "weights of a trained student, whose answers are stored"
    assert (finished.files, finished.bytes > 100) == (3, True)
    assert "none are stored" in item(plan, f"teaching/{going}").why
    assert "its command goes on" in item(plan, f"teaching/{going}").kept
    assert not any(name.startswith("teaching/") for name in deleted(root))
    with (teaching / going / "log.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert item(planned(root, named=[f"teaching/{going}"]), f"teaching/{going}").kept == "a process trains it"
    plan = planned(root, named=[f"teaching/{done}", f"teaching/{going}"])
    with (teaching / going / "log.txt").open("ab") as log:  # it began after the plan was made
        fcntl.flock(log, fcntl.LOCK_EX)
        collected = asyncio.run(collect(project_of(root), plan))
    assert f"teaching/{done}" in {one.name for one in collected.deleted}
    assert [(one.name, one.kept) for one in collected.left] == [(f"teaching/{going}", "a process trains it")]
    assert not (teaching / done).exists()
    assert (teaching / going / "model" / "weights").exists()
    assert (teaching / "answers" / "a.json").exists()


def test_what_teach_may_be_writing_is_a_leftover_after_a_day(root: Path) -> None:
    draft = root / ".tracefactory" / "teaching" / "rows" / ".tmp-1-a.parquet"
    draft.parent.mkdir(parents=True)
    draft.write_bytes(b"torn")
    name = "teaching/rows/.tmp-1-a.parquet"
    assert name not in deleted(root)
    os.utime(draft, (0, 0))
    assert name in deleted(root)
    assert not draft.exists()


def test_names_that_are_needed_or_unknown_are_mistakes(root: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(root, named=["stages/problems-4d3b03f209d4c280", f"stages/{SMALL}x"])
    assert "needed by pipelines/sums.yaml" in str(caught.value)
    assert f"did you mean 'stages/{SMALL}'" in str(caught.value)


def test_a_stage_with_failed_requests_or_of_an_unknown_operation_is_kept(root: Path) -> None:
    edit_identity(root, FIRST, op="sample:of_a_plugin")
    assert "no operation 'sample:of_a_plugin'" in item(planned(root), f"stages/{FIRST}").kept
    edit_identity(root, FIRST, op="sample:chat", parameters={"nonsense": 1})
    assert "other parameters" in item(planned(root), f"stages/{FIRST}").kept
    (root / ".tracefactory" / "stages" / FIRST / "identity.json").write_text("{")
    assert "what it was made from" in item(planned(root), f"stages/{FIRST}").kept


def test_a_stage_whose_input_is_gone_is_kept(root: Path) -> None:
    shutil.rmtree(root / ".tracefactory" / "stages" / FIRST)
    assert f"{FIRST} is gone" in item(planned(root), "stages/voted-b5a16ba58d0b5c14").kept


# --------------------------------------------------------------------------------------------- what is reached


def test_a_pipeline_with_mistakes_protects_every_stage(root: Path) -> None:
    (root / "pipelines" / "broken.yaml").write_text("name: broken\nversion: a\nstages: [{id: a, sampel: chat}]\n")
    plan = planned(root)
    assert not [one for one in plan.to_delete if one.what == "stage"]
    assert any("pipelines/broken.yaml:3" in one for one in plan.broken)
    assert "pipelines/broken.yaml:3" in invoke(root, "--plan")[1]
    assert not deleted(root, named=[f"stages/{SMALL}"])


@pytest.mark.parametrize("content", ["", "[]", "\x00", "profiles: 3", "{" * 200])
def test_nonsense_in_a_pipeline_file_protects_every_stage(root: Path, content: str) -> None:
    (root / "pipelines" / "broken.yaml").write_text(content)
    assert planned(root).broken
    assert not deleted(root)


def test_profiles_reach_their_stages(root: Path, stored: Path) -> None:
    text = (stored / "pipelines" / "wide.yaml").read_text()
    small = text.replace(
        "first, sample: chat, with: {model: small, prompt: short, samples: 3",
        "first, sample: chat, with: {model: small, prompt: short, samples: 2",
    )
    assert small != text
    file = root / "pipelines" / "wide.yaml"
    file.write_text(small)
    assert f"stages/{FIRST}" in {one.name for one in planned(root).items}
    file.write_text(small + "profiles:\n  more: {stages: {first: {with: {samples: 3}}}}\n")
    assert f"stages/{FIRST}" not in {one.name for one in planned(root).items}


def test_the_newest_run_of_each_pipeline_of_the_project_keeps_its_stages(root: Path) -> None:
    end_run(add_run(root, "20261121-000000-000000-sums", {SMALL}))
    assert SMALL not in str(planned(root).items)
    end_run(add_run(root, "20261122-000000-000000-sums", {FIRST}))
    plan = planned(root)
    assert f"stages/{FIRST}" not in {one.name for one in plan.items}
    assert not item(plan, f"stages/{SMALL}").kept
    # Of a pipeline that is no longer there, only the newest run of all counts.
    end_run(add_run(root, "20261123-000000-000000-gone", {SMALL}))
    assert SMALL not in str(planned(root).items)
    end_run(add_run(root, "20261124-000000-000000-sums", {FIRST}))
    assert not item(planned(root), f"stages/{SMALL}").kept
    receipt = root / ".tracefactory" / "published" / "gone" / "7.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text("{}")
    end_run(add_run(root, "20261110-000000-000000-gone", {SMALL}, version="7"))
    assert SMALL not in str(planned(root).items)
    (root / ".tracefactory/runs/20261124-000000-000000-sums/plan.json").write_text("[")
    assert planned(root).broken  # it may need anything


def test_a_state_outside_of_the_project_may_be_that_of_other_projects_too(root: Path, tmp_path: Path) -> None:
    end_run(add_run(root, "20261123-000000-000000-other", {SMALL}))
    end_run(add_run(root, "20261124-000000-000000-sums", {FIRST}))
    state = shutil.move(root / ".tracefactory", tmp_path / "state")
    plan = plan_garbage(find_project(root, {"TRACEFACTORY_HOME": str(state)}))
    assert SMALL not in str(plan.items)


def test_a_release_keeps_its_stages_and_its_run(root: Path) -> None:
    for number in range(3):
        end_run(add_run(root, f"2026112{number}-000000-000000-sums", {SMALL} if number == 0 else {FIRST}))
    assert item(planned(root, keep_runs=1), "runs/20261120-000000-000000-sums")
    release = root / "out" / "wide" / "1"
    release.mkdir(parents=True)
    (release / "manifest.json").write_text(json.dumps({"stages": {"best": SMALL[5:] * 4}}))
    assert SMALL not in str(planned(root).items)
    assert [one.name for one in planned(root, keep_runs=1).items if one.what == "run"] == [
        "runs/20261121-000000-000000-sums"
    ]
    (release / "manifest.json").write_text("")
    assert "manifest.json cannot be read" in str(planned(root).broken)


# ------------------------------------------------------------------------------------------------- runs and rests


def test_old_runs_are_deleted_and_running_and_pushed_ones_never(root: Path) -> None:
    runs = [f"202611{day}-000000-000000-sums" for day in (10, 11, 12, 13, 14)]
    for run in runs:
        end_run(add_run(root, run, {FIRST}, version="7" if run == runs[1] else "1"))
    pushed = root / ".tracefactory" / "published" / "sums" / "7.json"
    pushed.parent.mkdir(parents=True)
    pushed.write_text("{}")
    (root / ".tracefactory" / "runs" / runs[3] / "outcome.json").unlink()  # perhaps it goes on, on another host
    running = RunLock(root / ".tracefactory", runs[0])
    assert {name for name in deleted(root, keep_runs=1) if name.startswith("runs/")} == {f"runs/{runs[2]}"}
    running.close()
    assert {name for name in deleted(root, keep_runs=1) if name.startswith("runs/")} == {f"runs/{runs[0]}"}


def test_leftovers_of_killed_writes_go_unless_somebody_writes(root: Path) -> None:
    state = root / ".tracefactory"
    in_requests, in_stage = state / "requests" / ".tmp-1-a.parquet", state / "stages" / SMALL / ".tmp-2-b.parquet"
    release = root / "out" / "sums" / ".2.tmp-20261110-000000-000000-sums"
    folder = state / "stages" / "problems-4d3b03f209d4c280" / ".tmp-runs-x"
    release.mkdir(parents=True)
    folder.mkdir()
    for path in (in_requests, in_stage, release / "rows.parquet", folder / "rows.arrow"):
        path.write_bytes(b"torn")
    running = RunLock(state, "20261110-000000-000000-sums")
    names = {one.name for one in planned(root).items if one.what == "leftover"}
    assert names == {f"stages/{SMALL}/.tmp-2-b.parquet", "stages/problems-4d3b03f209d4c280/.tmp-runs-x"}
    os.utime(in_requests, (0, 0))
    assert "requests/.tmp-1-a.parquet" in {one.name for one in planned(root).items}
    running.close()
    assert {"out/sums/.2.tmp-20261110-000000-000000-sums", "requests/.tmp-1-a.parquet"} <= deleted(root)
    assert not list(root.rglob(".tmp-*"))
    assert not release.exists()


def segment_of(folder: Path, keys: range) -> Path:
    return write_segment(folder, [("", f"{key:064x}", json.dumps({"number": key}).encode()) for key in keys], {2})


def test_a_segment_goes_only_if_all_of_it_can_be_read_in_others(root: Path) -> None:
    folder = root / ".tracefactory" / "requests"
    large, inside = segment_of(folder, range(64)), segment_of(folder, range(8, 24))
    half = segment_of(folder, range(60, 68))
    twice = write_segment(folder, [("", f"{9:064x}", b'{"number": "another"}')], {2})
    assert [one.name for one in planned(root).items if one.what == "segment"] == [f"requests/{inside.name}"]
    assert f"requests/{inside.name}" in deleted(root)
    assert not inside.exists()
    assert not inside.with_suffix(".index").exists()
    assert all(one.exists() and one.with_suffix(".index").exists() for one in (large, half, twice))
    inside = segment_of(folder, range(8, 24))
    content = bytearray(large.read_bytes())
    content[40] ^= 1  # in its first page: the copies there are damaged
    large.write_bytes(content)
    assert not [one for one in planned(root).items if one.what == "segment"]


# ------------------------------------------------------------------------------------------- beside runs and kills


def test_stages_of_a_run_that_goes_on_are_left(root: Path) -> None:
    state = root / ".tracefactory"
    plan = planned(root)
    add_run(root, "20261123-000000-000000-wide", {SMALL, "wrong-90a87d8a9dbe8c4a", FIRST})
    running = RunLock(state, "20261123-000000-000000-wide")  # since the plan was made
    done = asyncio.run(collect(project_of(root), plan))
    running.close()
    left = {one.name: one.kept for one in done.left}
    assert "goes on and has it in its plan" in left[f"stages/{SMALL}"]
    assert StageFolder(state, "best", SMALL[5:]).record() is not None
    assert StageFolder(state, "first", FIRST[6:]).record() is not None
    assert "mixed-7f02bfa0d15e5a99" not in stage_names(root)  # no run has it


def test_nothing_is_deleted_while_a_run_starts(root: Path) -> None:
    state = root / ".tracefactory"
    files = {path: path.read_bytes() for path in (state / "stages").rglob("*") if path.is_file()}
    plan = planned(root)
    running = RunLock(state, "20261123-000000-000000-wide")  # its plan is not written yet
    done = asyncio.run(collect(project_of(root), plan))
    running.close()
    assert not [one for one in done.deleted if one.what == "stage"]
    assert {path: path.read_bytes() for path in files} == files  # every record was put back


async def test_a_stage_that_somebody_writes_is_left(root: Path) -> None:
    state = root / ".tracefactory"
    folder = state / "stages" / SMALL
    async with Lease(state, folder, "theirs", lambda text: None):
        assert "run theirs" in await delete_stage(state, folder)
        assert StageFolder(state, "best", SMALL[5:]).record() is not None
    assert await delete_stage(state, folder) == ""
    assert not folder.exists()


async def test_the_inputs_of_a_stage_that_is_left_are_left_too(root: Path) -> None:
    state = root / ".tracefactory"
    plan = planned(root)
    async with Lease(state, state / "stages" / "wrong-90a87d8a9dbe8c4a", "theirs", lambda text: None):
        done = await collect(project_of(root), plan)
    assert {one.name.removeprefix("stages/") for one in done.left} == {
        "wrong-90a87d8a9dbe8c4a",
        "voted-b5a16ba58d0b5c14",
        FIRST,
    }
    assert StageFolder(state, "first", FIRST[6:]).record() is not None


async def test_who_waits_for_a_stage_that_is_deleted_has_the_lease_of_the_new_folder(tmp_path: Path) -> None:
    """The lease of a deleted file would let a third one in."""
    folder = tmp_path / "stages" / "a-0123456789abcdef"
    waiting, held = asyncio.Event(), asyncio.Event()
    told: list[str] = []

    async def hold(run: str) -> None:
        async with Lease(tmp_path, folder, run, lambda text: (told.append(text), waiting.set())[0]):
            held.set()
            await asyncio.sleep(0.5)

    async with Lease(tmp_path, folder, "first", lambda text: None):
        second = asyncio.create_task(hold("second"))
        await waiting.wait()
        shutil.rmtree(folder)
    await held.wait()
    await hold("third")
    await second
    assert "run first" in told[0]
    assert "run second" in told[1]


@pytest.mark.parametrize("after", range(6))
async def test_a_kill_in_the_middle_leaves_a_stage_that_is_not_done(
    root: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    state, left = root / ".tracefactory", [after]
    remove = garbage._remove

    def killed(path: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(path)

    monkeypatch.setattr(garbage, "_remove", killed)
    folder = StageFolder(state, "first", FIRST[6:])
    with pytest.raises(KeyboardInterrupt):
        await delete_stage(state, folder.path)
    assert folder.record() is None
    for shard in folder.finished_shards():  # whole ones
        assert folder.shard_record(*shard) is not None
        assert (folder.path / f"traces-{shard[0]:05d}-of-{shard[1]:05d}.parquet").exists()
    monkeypatch.undo()
    await collect(project_of(root), planned(root))
    assert not folder.path.exists()


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = garbage._remove

    def refused(path: Path) -> None:
        if path.parent.name == SMALL:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(garbage, "_remove", refused)
    done = asyncio.run(collect(project_of(root), planned(root)))
    left = {one.name: one.kept for one in done.left}
    assert "Permission denied" in left[f"stages/{SMALL}"]
    assert "stages/mixed-7f02bfa0d15e5a99" in {one.name for one in done.deleted}
    assert StageFolder(root / ".tracefactory", "best", SMALL[5:]).record() is None


# ---------------------------------------------------------------------------------------------- paid completions


def completions(root: Path) -> set[str]:
    store = RequestStore(root / ".tracefactory")
    found = set(store.find(""))
    store.close()
    return found


@pytest.mark.parametrize("compacted", [False, True])
def test_completions_are_deleted_only_for_a_model_that_is_named(root: Path, compacted: bool) -> None:
    state = root / ".tracefactory"
    if compacted:
        compact(state, at_least=1)
    before = completions(root)
    assert len(before) > 200
    deleted(root)
    assert completions(root) == before
    code, told = invoke(root, "--completions-of", "fake-small", "--plan")
    assert (code, completions(root)) == (0, before)
    assert "36 completions of fake-small" in told
    assert "cost 0.0003 $" in told
    assert "nothing was deleted" in invoke(root, "--completions-of", "fake-small")[1]
    running = RunLock(state, "20261123-000000-000000-wide")
    assert "is going on" in invoke(root, "--completions-of", "fake-small", "--yes")[1]
    running.close()
    assert completions(root) == before
    assert json.loads(invoke(root, "--completions-of", "fake-small", "--yes", "--json")[1])["deleted"] == 36
    assert len(before - completions(root)) == 36
    assert "did you mean 'fake-long'" in invoke(root, "--completions-of", "fake-lon", "--yes")[1]
    assert bool(list((state / "requests").glob("*.parquet"))) is compacted


def test_completions_of_a_damaged_store_are_left(root: Path) -> None:
    journal = next((root / ".tracefactory" / "requests").glob("*.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-20] + b"\n")
    files = {path: path.read_bytes() for path in journal.parent.iterdir()}
    assert "fsck --repair" in invoke(root, "--completions-of", "fake-small", "--yes")[1]
    assert {path: path.read_bytes() for path in journal.parent.iterdir()} == files


# ------------------------------------------------------------------------------------------------- a shared state


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    one = Cloud()
    monkeypatch.setattr(engine_garbage, "open_objects", lambda url: one)
    return one


def test_what_the_shared_state_lacks_is_kept_and_nothing_is_deleted_there(root: Path, cloud: Cloud) -> None:
    state = root / ".tracefactory"
    end_run(add_run(root, "20261101-000000-000000-sums", set()))
    end_run(add_run(root, "20261102-000000-000000-sums", set()))
    project = find_project(root, {"TRACEFACTORY_SHARED": "s3://bucket/state"})
    plan = plan_garbage(project, keep_runs=1)
    assert "the shared state does not have it" in item(plan, f"stages/{SMALL}").kept
    assert not [one for one in plan.to_delete if one.what in ("stage", "run")]
    shared = SharedStage(state / "stages" / SMALL, cloud)
    shared.pull()
    shared.push()
    there = {one.name: cloud.get(one.name)[0] for one in cloud.list("stages")}
    assert there
    done = asyncio.run(collect(project, plan_garbage(project)))
    assert [one.name for one in done.deleted] == [f"stages/{SMALL}"]
    assert {one.name: cloud.get(one.name)[0] for one in cloud.list("stages")} == there
    SharedStage(state / "stages" / SMALL, cloud).pull()
    assert StageFolder(state, "best", SMALL[5:]).record() is not None


# --------------------------------------------------------------------------------------------------------------- du


def test_du_counts_every_file_and_tells_what_is_reached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(root, "20261101-000000-000000-wide", {SMALL})
    end_run(add_run(root, "20261102-000000-000000-sums", set()))
    (root / ".tracefactory" / "unknown").write_text("abc")
    found = usage_of(project_of(root))
    files = [path for folder in (".tracefactory", "out") for path in (root / folder).rglob("*") if path.is_file()]
    assert sum(one.files for one in found.kinds) == len(files)
    assert sum(one.bytes for one in found.kinds) == sum(path.stat().st_size for path in files)
    assert {one.kind: one.bytes for one in found.kinds}["other"] == 3
    by_name = {one.name: one for one in found.stages}
    assert by_name["problems-4d3b03f209d4c280"].needed_by == "pipelines/sums.yaml"
    assert (by_name[SMALL].needed_by, by_name[SMALL].pipelines) == ("", ("wide",))
    assert [one.bytes for one in found.stages] == sorted((one.bytes for one in found.stages), reverse=True)
    told = CliRunner().invoke(app, ["du", "--project", str(root), "--largest", "30"]).output
    assert "nothing; run by wide" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80
    assert len(json.loads(CliRunner().invoke(app, ["du", "--project", str(root), "--json"]).output)["stages"]) == 23


def test_a_project_without_a_state_has_nothing_to_delete(root: Path) -> None:
    shutil.rmtree(root / ".tracefactory")
    assert "nothing to delete" in invoke(root)[1]
    assert sum(one.files for one in usage_of(project_of(root)).kinds) == 0
    assert not (root / ".tracefactory" / "stages").exists()
