"""Damage in a finished project: named, repaired, and made again without paying what was not lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests import forked
from tests.e2e.conftest import Project
from tests.e2e.test_upgrade import CURRENT, files
from tracefactory.core.files import read_json
from tracefactory.store.requests import compact
from tracefactory.store.stages import StageFolder

PIPELINE = "pipelines/sums.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project that was stored by version 0.2 and run again by this one."""
    folder = tmp_path_factory.mktemp("finished")
    with tarfile.open(CURRENT) as tar:
        tar.extractall(folder, filter="data")
    (root,) = (one for one in folder.iterdir() if (one / "pipelines").is_dir())
    Project(root, root / PIPELINE).make()
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """A finished project."""
    root = tmp_path / finished.name
    shutil.copytree(finished, root, symlinks=True)
    return Project(root, root / PIPELINE)


def state(project: Project) -> Path:
    return project.root / ".tracefactory"


def fsck(project: Project, *options: str) -> tuple[int, dict[str, Any]]:
    status, output, errors = forked.finish("tracefactory", ("fsck", "--json", *options), project.root, 240)
    assert status in (0, 1), errors
    return status, json.loads(output)


def plan(project: Project) -> dict[str, Any]:
    return json.loads(project.run("plan", PIPELINE, "--json"))


def stage(project: Project, name: str) -> Path:
    """Return the folder of a stage of the pipeline."""
    (found,) = (one for one in plan(project)["stages"] if one["id"] == name)
    return StageFolder(state(project), name, found["key"]).path


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def flip_text(part: Path) -> None:
    """Change one bit of the longest column of a part."""
    group = pq.read_metadata(part).row_group(0)
    column = max((group.column(n) for n in range(group.num_columns)), key=lambda one: one.total_compressed_size)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(part.read_bytes())
    content[start + column.total_compressed_size // 2] ^= 1
    part.write_bytes(content)


def test_a_clean_store_has_no_findings_and_is_left_as_it_is(project: Project) -> None:
    compact(state(project), at_least=1)
    before = files(state(project))
    code, report = fsck(project, "--repair")
    assert (code, report["damage"], report["set_aside"]) == (0, [], None)
    assert report["completions"] > 100
    assert report["files"] > 100
    assert files(state(project)) == before


def test_every_planted_damage_is_found_and_repaired(project: Project) -> None:
    root = state(project)
    planted = [
        root / "requests" / "journal-garbage.jsonl",
        root / "requests" / "garbage.parquet",
        root / "requests" / "notes.txt",
        root / "stages" / "stray.txt",
        stage(project, "short") / "stray.txt",
        stage(project, "mixed") / "record.json",
        stage(project, "checked") / "identity.json",
        next(stage(project, "problems").glob("problems-*")),
        min(stage(project, "long").glob("traces-*")),
        next(stage(project, "clean").glob("judged-*")),
        stage(project, "clean") / "lease.json",
        next((root / "runs").glob("*/outcome.json")),
    ]
    for path in planted[:5]:
        path.write_bytes(os.urandom(300) + b"\n")
    planted[5].write_text(planted[5].read_text()[:-20])
    planted[6].write_text(planted[6].read_text().replace('"op"', '"oq"'))
    planted[7].write_bytes(planted[7].read_bytes()[:-100])
    flip_text(planted[8])
    planted[9].write_bytes(b"")
    planted[10].write_bytes(b'{"run": "x')
    planted[11].write_bytes(b"[]")
    before = {path.relative_to(root): path.read_bytes() for path in planted}
    code, report = fsck(project)
    assert code == 1
    assert {Path(one["path"]) for one in report["damage"]} == set(planted)
    assert all(one["place"] and one["what"] and one["consequence"] for one in report["damage"])
    code, report = fsck(project, "--repair")
    assert (code, report["repaired"]) == (0, True)
    kept = Path(report["set_aside"])
    aside = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert before.items() <= aside.items()
    assert fsck(project)[1]["damage"] == []
    assert plan(project)["requests"] == 0
    project.run("run", PIPELINE)
    assert fsck(project)[1]["damage"] == []


@pytest.mark.parametrize("compacted", [False, True])
def test_exactly_the_damaged_completions_are_owed_again(project: Project, compacted: bool) -> None:
    shutil.rmtree(state(project) / "stages")
    folder = state(project) / "requests"
    if compacted:
        compact(state(project), at_least=1)
        (segment,) = folder.glob("*.parquet")
        flip(segment, 0.3)
    else:
        for journal in folder.glob("journal-*"):
            lines = journal.read_bytes().splitlines(keepends=True)
            for number in (3, 7, 8):
                lines[number] = lines[number][:200] + b"?" + lines[number][201:]
            journal.write_bytes(b"".join(lines))
    first = plan(project)["requests"]
    code, report = fsck(project, "--repair")
    assert (code, report["repaired"]) == (0, True)
    again = plan(project)
    assert again["damage"] == []
    if compacted:
        assert report["lost_completions"] > 40
        assert again["requests"] == 48  # the only row group is lost
    else:
        assert report["lost_completions"] == 9
        assert 0 < first == again["requests"] <= 9
    outcome = json.loads(project.run("run", PIPELINE, "--json"))
    paid = {one["id"]: one["paid"].get("requests", 0) for one in outcome["stages"]}
    assert paid["long"] + paid["short"] == again["requests"]


def test_a_run_that_meets_a_damaged_part_names_it_and_the_repair(project: Project) -> None:
    published = files(project.root / "out")
    part = next(stage(project, "short").glob("traces-*"))
    part.write_bytes(part.read_bytes()[:-50])
    shutil.rmtree(stage(project, "checked"))
    printed = project.run("run", PIPELINE, expect=1)
    assert str(part) in printed
    assert "tracefactory fsck --repair" in printed
    assert "Traceback" not in printed
    assert "short-" in project.run("fsck", "--repair")
    outcome = json.loads(project.run("run", PIPELINE, "--json"))
    assert sum(one["paid"].get("requests", 0) for one in outcome["stages"]) == 0
    assert files(project.root / "out") == published


@pytest.mark.parametrize("name", ["record.json", "identity.json", "judged", "lease.json"])
def test_a_run_goes_on_with_a_damaged_record_part_or_lease(
    project: Project, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(project, "checked")
    path = next(folder.glob("judged-*")) if name == "judged" else folder / name
    if name == "judged":
        (folder / "record.json").unlink()  # the run was interrupted, and the part it finished was damaged
        path.write_bytes(path.read_bytes()[:-9])
    elif name == "lease.json":
        (folder / "record.json").unlink()
        path.write_bytes(os.urandom(50))
        os.utime(path, (0, 0))
        (tmp_path / "sitecustomize.py").write_text("from tracefactory.store import leases\nleases.STALE_S = 5.0\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    else:
        path.write_text(path.read_text()[:40])
    made = plan(project)
    assert made["requests"] == 0
    if name != "lease.json":
        assert any(str(path) in one for one in made["damage"]) or name in ("judged", "identity.json")
    outcome = json.loads(project.run("run", PIPELINE, "--json"))
    assert sum(one["paid"].get("requests", 0) for one in outcome["stages"]) == 0
    assert {one["state"] for one in plan(project)["stages"]} == {"cached"}


def test_a_repair_is_refused_while_a_run_is_going_on(project: Project) -> None:
    (state(project) / "requests" / "garbage.parquet").write_bytes(b"x" * 100)
    alive = next((state(project) / "runs").glob("*/alive"))
    with alive.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        printed = project.run("fsck", "--repair", expect=2)
    assert f"run {alive.parent.name} is going on" in printed
    assert (state(project) / "requests" / "garbage.parquet").exists()
    journal = next((state(project) / "requests").glob("journal-*"))
    with journal.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert journal.name in project.run("fsck", "--repair", expect=2)


def test_the_ledger_of_batches_is_read_and_left_as_it_is(project: Project) -> None:
    folder = state(project) / "batches"
    folder.mkdir()
    entries = {
        "stored.json": b'{"id":"stored","state":"stored"}\n',
        "torn.json": b'{"id":"torn","sta',
        "other.json": b'{"id":"another","state":"submitted"}\n',
        "open.json": b'{"id":"open","state":"submitted"}\n',
        "lost.json": b'{"id":"lost","state":"intent"}\n',
        "open.requests.jsonl": b'{"key":"%s","request":1}\n{"key":"1' % (b"0" * 64),
        "ledger.lock": b"",
    }
    for name, content in entries.items():
        (folder / name).write_bytes(content)
    code, report = fsck(project, "--repair")
    assert (code, report["repaired"]) == (1, False)
    found = {Path(one["path"]).name: one["place"] for one in report["damage"]}
    assert found == {
        "torn.json": "the whole file",
        "other.json": "the whole file",
        "open.requests.jsonl": "line 2",
        "lost.requests.jsonl": "the whole file",
    }
    assert all("delete the entry of the batch to pay for its requests again" in str(one) for one in report["damage"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == entries


def test_a_record_has_a_checksum(project: Project) -> None:
    shutil.rmtree(stage(project, "mixed"))
    project.run("run", PIPELINE)
    folder = stage(project, "mixed")
    for name in ("record.json", "identity.json"):
        path = folder / name
        content = read_json(path)
        assert len(content["checksum"]) == 64
        text = path.read_text()
        path.write_text(text.replace("mix", "mux", 1))
        (damage,) = fsck(project)[1]["damage"]
        assert (damage["path"], damage["what"]) == (str(path), "wrong checksum")
        path.write_text(text)
    assert fsck(project)[1]["damage"] == []


@pytest.fixture
def read_only(project: Project) -> Iterator[Project]:
    """The project on a file system that is mounted read-only."""
    for command in (["mount", "--bind", project.root, project.root], ["mount", "-o", "remount,ro,bind", project.root]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", project.root], check=False, capture_output=True)
            pytest.skip(f"nothing can be mounted read-only here: {done.stderr.strip()}")
    yield project
    subprocess.run(["umount", "--lazy", project.root], check=True)


def test_plan_show_and_fsck_work_on_a_read_only_store(project: Project, request: pytest.FixtureRequest) -> None:
    compact(state(project), at_least=1)
    shutil.rmtree(stage(project, "long"))  # so that the plan looks at completions
    (index,) = (state(project) / "requests").glob("*.index")
    index.unlink()
    expected = plan(project), project.run("show"), fsck(project)[1]["damage"]
    (index,) = (state(project) / "requests").glob("*.index")
    index.unlink()
    before = files(project.root)
    request.getfixturevalue("read_only")
    with pytest.raises(OSError, match="Read-only"):
        (state(project) / "x").touch()
    assert (plan(project), project.run("show"), fsck(project)[1]["damage"]) == expected
    assert files(project.root) == before
