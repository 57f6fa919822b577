"""Hub data sets as sources, against a local Hub and the real client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer, running
from tracefactory.sources.hub_dataset import HubDataset

REPO = "org/math"
COMMIT = "a" * 40
SCRIPT = """
import json, sys
from pathlib import Path
from tracefactory.core.errors import RunError, UserError
from tracefactory.reading.base import Rejected
from tracefactory.sources.hub_dataset import HubDataset
for params, limit in json.load(sys.stdin):
    source, params = HubDataset(), HubDataset.Params.model_validate(params)
    try:
        rows = list(source.read(params, base_dir=Path(), limit=limit))
        print(json.dumps({"rows": [row.model_dump() for row in rows], "identity": source.identity(params, Path())}))
    except (UserError, RunError) as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with running(tmp_path / "hub") as server:
        server.create_repo(REPO)
        yield server


def commit(hub: HubServer, rows: list[dict[str, Any]]) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    name = "data/train-00000-of-00001.parquet"
    return hub.add_commit(REPO, {name: hub.entry(sink.getvalue().to_pybytes(), lfs=True)}, "rows")


def ask(hub: HubServer, folder: Path, limit: int | None = None, **params: Any) -> dict[str, Any]:
    """Read in a process of its own: the client takes its endpoint from the environment when it is imported."""
    (answer,) = ask_all(hub, folder, params, limit=limit)
    return answer


def ask_all(hub: HubServer, folder: Path, *asked_for: dict[str, Any], limit: int | None = None) -> list[dict[str, Any]]:
    """Read several times, one after the other, in one process, which takes a second to start."""
    home = folder / "home"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    asked = json.dumps([[{"repo": REPO, "question": "problem", **params}, limit] for params in asked_for])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=asked,
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return answers


def test_a_pinned_revision_is_read_and_later_commits_are_not(hub: HubServer, tmp_path: Path):
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2.0 * n} for n in range(5)]
    first = commit(hub, [*rows, {"problem": None, "answer": 1.0}])
    hub.state["repos"][REPO]["tags"]["v1"] = first
    latest = commit(hub, [{"problem": "changed", "answer": 0.0}])

    by_commit = ask(hub, tmp_path, revision=first)
    assert [row.get("answer") for row in by_commit["rows"]] == ["0", "2", "4", "6", "8", None]
    assert by_commit["rows"][5]["reason"] == "no_question"
    assert "row 6" in by_commit["rows"][5]["detail"]
    assert by_commit["rows"][2]["source"] == f"{REPO}@{first}"
    assert by_commit["identity"] == {"revision": first}

    by_tag = ask(hub, tmp_path, revision="v1", limit=2)
    assert [row["id"] for row in by_tag["rows"]] == [row["id"] for row in by_commit["rows"][:2]]

    moving = ask(hub, tmp_path, revision="main", allow_moving=True)
    assert [row["question"] for row in moving["rows"]] == ["changed"]
    assert moving["identity"] == {"revision": latest}


def test_a_revision_that_is_not_a_tag_is_refused(hub: HubServer, tmp_path: Path):
    hub.state["repos"][REPO]["tags"]["v1.0"] = commit(hub, [{"problem": "p", "answer": 1.0}])
    unknown, moving, nowhere = ask_all(
        hub, tmp_path, {"revision": "v1.1"}, {"revision": "main"}, {"repo": "org/none", "revision": COMMIT}
    )
    assert "has no tag 'v1.1' (did you mean 'v1.0'?)" in unknown["error"]
    assert "moves; give a commit or a tag" in moving["error"]
    assert "no data set 'org/none'" in nowhere["error"]


def test_a_wrong_field_is_refused_with_the_nearest_one(hub: HubServer, tmp_path: Path):
    first = commit(hub, [{"problem": "1 + 1?", "answer": 2.0}])
    field, split = ask_all(
        hub, tmp_path, {"revision": first, "question": "probelm"}, {"revision": first, "split": "tset"}
    )
    assert f"{REPO}@{first} has no field 'probelm' (did you mean 'problem'?)" in field["error"]
    assert "Available splits: " in split["error"]


def test_a_hub_that_cannot_be_reached_is_a_message(hub: HubServer, tmp_path: Path):
    hub.url = "http://127.0.0.1:9"
    for answer in ask_all(hub, tmp_path, {"revision": "v1"}, {"revision": "main", "allow_moving": True}):
        output = answer["error"]
        assert output.startswith(f"the Hub cannot be reached for the data set '{REPO}' (")
        assert "check the network" in output


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"revision": "main"}, "moves"),
        ({"revision": "refs/convert/parquet"}, "moves"),
        ({"revision": COMMIT, "repo": "a/b/c"}, "not written owner/name"),
        ({"revision": COMMIT, "repo": "../x"}, "not written owner/name"),
        ({"revision": COMMIT, "repo": "tests/unit"}, "also a folder here"),
    ],
)
def test_hub_check_works_offline(params: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (wrong,) = HubDataset().check(HubDataset.Params.model_validate({"repo": REPO, **params}), tmp_path)
    assert message in wrong


@pytest.mark.parametrize("revision", [COMMIT, "9f2c1de", "v1.0", "2026.11.1"])
def test_commits_and_tags_are_accepted_as_revisions(revision: str, tmp_path: Path):
    assert HubDataset().check(HubDataset.Params(repo=REPO, revision=revision), tmp_path) == []
    assert HubDataset().identity(HubDataset.Params(repo=REPO, revision=revision), tmp_path) == {"revision": revision}


def test_a_branch_is_accepted_with_allow_moving(tmp_path: Path):
    assert HubDataset().check(HubDataset.Params(repo=REPO, revision="main", allow_moving=True), tmp_path) == []
