"""Publishing: one commit, verified, then a tag that never moves, whatever fails on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.hub_server import TOKEN, HubServer
from tests.unit.test_release import row_id, write
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.rows import Problem, Thinking, Trace
from tracefactory.publish import hub_client
from tracefactory.publish.card import CardInputs
from tracefactory.publish.hub import Receipt, push
from tracefactory.publish.release import read_manifest

REPO = "someone/traces"
# huggingface_hub 2.4 passes `data=` to its HTTP client when it sends a large file; only that client can change it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def release(
    root: Path,
    version: str,
    count: int = 5,
    *,
    answer: str = "4",
    views: tuple[str, ...] = ("sft", "raw"),
    card: CardInputs = CardInputs(title="Traces", licence="mit", repo=REPO),  # noqa: B008 - it is frozen
) -> Path:
    """Write a small release and return its folder."""
    problems = [Problem.make(question=f"{n} + 2?", answer=str(n + 2), verifier="math") for n in range(count)]
    traces = [
        Trace(id=row_id(n), problem=problem, reasoning="Add two.", answer_text=answer, thinking=Thinking.CLOSED)
        for n, problem in enumerate(problems)
    ]
    write(root / version, traces, name="traces", views=views, card=card)
    return root / version


def publish(server: HubServer, folder: Path, *, private: bool = False, repo: str = REPO) -> Receipt:
    return push(folder, repo=repo, version=folder.name, private=private, token=SecretStr(TOKEN), endpoint=server.url)


def client(server: HubServer, tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """Start a fresh Python with the Hub's environment set before anything is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE)


def test_a_release_becomes_one_commit_and_one_tag(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    receipt = publish(server, folder)
    assert receipt.created
    assert receipt.tag == "v1.0"
    assert receipt.commit == server.resolve(REPO, "v1.0") == server.resolve(REPO, "main")
    assert server.commits(REPO) == ["traces 1.0", "initial commit"]
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(server.files(REPO, "v1.0")) == held | {".gitattributes"}
    for path in held:
        assert server.read(REPO, path, "v1.0") == (folder / path).read_bytes()
    assert TOKEN not in receipt.model_dump_json()


def test_the_card_on_the_hub_names_the_repository(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0", card=CardInputs(title="Traces", licence="mit"))
    assert "PATH/TO/THIS/FOLDER" in (folder / "README.md").read_text()
    first, again = publish(server, folder), publish(server, folder)
    card = server.read(REPO, "README.md", "v1.0").decode()
    assert "PATH/TO/THIS/FOLDER" not in card
    assert f'load_dataset("{REPO}", "sft", revision="v1.0"' in card
    assert (first.created, again.created, first.commit) == (True, False, again.commit)
    assert "PATH/TO/THIS/FOLDER" in (folder / "README.md").read_text()


def test_publishing_again_changes_nothing(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    first = publish(server, folder)
    written = server.count("POST commit"), server.count("PUT lfs_put"), server.count("POST tag")
    second = publish(server, folder)
    assert (server.count("POST commit"), server.count("PUT lfs_put"), server.count("POST tag")) == written
    assert not second.created
    assert second.model_copy(update={"created": True}) == first


def test_the_same_content_written_elsewhere_is_the_same_version(server: HubServer, tmp_path: Path) -> None:
    first = publish(server, release(tmp_path / "one", "1.0"))
    folder = release(tmp_path / "two", "1.0")
    later = read_manifest(folder).model_copy(update={"created": "2031-01-01T00:00:00+00:00"})
    (folder / "manifest.json").write_text(later.model_dump_json())
    second = publish(server, folder)
    assert second.commit == first.commit
    assert server.count("POST commit") == 1


def test_a_published_version_is_never_changed(server: HubServer, tmp_path: Path) -> None:
    first = publish(server, release(tmp_path / "one", "1.0"))
    with pytest.raises(UserError, match="raise `version:`"):
        publish(server, release(tmp_path / "two", "1.0", answer="5"))
    assert server.resolve(REPO, "v1.0") == server.resolve(REPO, "main") == first.commit


def test_a_new_version_replaces_the_files_and_the_tag_keeps_them(server: HubServer, tmp_path: Path) -> None:
    old = release(tmp_path, "1.0", views=("sft", "raw"))
    publish(server, old)
    publish(server, release(tmp_path, "1.1", views=("sft",)))
    assert "data/raw/train-00000.parquet" not in server.files(REPO)
    assert (
        server.read(REPO, "data/raw/train-00000.parquet", "v1.0") == (old / "data/raw/train-00000.parquet").read_bytes()
    )
    assert server.commits(REPO) == ["traces 1.1", "traces 1.0", "initial commit"]


def test_files_added_by_people_are_kept(server: HubServer, tmp_path: Path) -> None:
    publish(server, release(tmp_path, "1.0"))
    server.add_commit(REPO, {**server.files(REPO), "LICENSE": server.entry(b"MIT", lfs=False)}, "add a licence")
    publish(server, release(tmp_path, "1.1"))
    assert server.read(REPO, "LICENSE", "v1.1") == b"MIT"


@pytest.mark.parametrize("fault", [503, 500, 429, "commit_then_503", "drop"])
def test_a_commit_that_fails_is_made_once(server: HubServer, tmp_path: Path, fault: int | str) -> None:
    server.faults["POST commit"] = [fault]
    publish(server, release(tmp_path, "1.0"))
    assert server.commits(REPO) == ["traces 1.0", "initial commit"]
    assert server.resolve(REPO, "v1.0") == server.resolve(REPO, "main")
    assert server.count("POST commit") == (1 if fault == "commit_then_503" else 2)


@pytest.mark.parametrize("kind", ["POST commit", "POST tag", "GET info"])
def test_a_request_without_an_answer_is_repeated(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(hub_client, "_TIMEOUT_S", 0.5)
    server.faults[kind] = ["hang"]
    publish(server, release(tmp_path, "1.0"))
    assert server.commits(REPO) == ["traces 1.0", "initial commit"]
    assert server.count(kind) > 1


def test_a_commit_of_someone_else_in_between_is_kept(server: HubServer, tmp_path: Path) -> None:
    def interfere() -> None:
        server.add_commit(REPO, {**server.files(REPO), "README.md": server.entry(b"# Hello", lfs=False)}, "theirs")

    server.hooks["interfere"] = interfere
    server.faults["POST commit"] = ["before:interfere"]
    publish(server, release(tmp_path, "1.0"))
    assert server.count("POST commit") == 2  # the first one had a stale parent: 412
    assert server.commits(REPO) == ["traces 1.0", "theirs", "initial commit"]


def test_reads_tags_and_uploads_are_repeated(server: HubServer, tmp_path: Path) -> None:
    server.faults |= {"POST tag": [503, "commit_then_503"], "GET info": [503], "GET refs": [502], "GET tree": ["drop"]}
    server.faults["PUT lfs_put"] = [503]
    receipt = publish(server, release(tmp_path, "1.0"))
    assert server.state["repos"][REPO]["tags"] == {"v1.0": receipt.commit}
    assert not any(server.faults.values())


@pytest.fixture
def fetched(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """Return a Hub with a published version that this process downloads from."""
    publish(server, release(server.folder / "releases", "1.0"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


def test_a_download_is_repeated_after_passing_failures(fetched: HubServer, tmp_path: Path) -> None:
    fetched.faults |= {"GET info": [503, "drop"], "GET tree": [502], "GET resolve": [503]}
    hub_client.fetch(REPO, "v1.0", tmp_path / "here", ["manifest.json", "data/*"])
    assert not any(fetched.faults.values())
    assert (tmp_path / "here" / "manifest.json").read_bytes() == fetched.read(REPO, "manifest.json", "v1.0")


def test_a_download_that_cannot_succeed_ends(fetched: HubServer, tmp_path: Path) -> None:
    for repo, tag in ((REPO, "v9"), ("someone/other", "v1.0")):
        with pytest.raises(UserError, match="no such repository or tag"):
            hub_client.fetch(repo, tag, tmp_path / "here", ["*"])
    fetched.log.clear()
    fetched.faults["GET info"] = [403]
    with pytest.raises(UserError, match="the token needs read access"):
        hub_client.fetch(REPO, "v1.0", tmp_path / "here", ["*"])
    assert fetched.count("GET info") == 1
    fetched.faults["GET info"] = [503] * 6
    with pytest.raises(RunError, match=r"could not download someone/traces@v1.0 in 6 attempts"):
        hub_client.fetch(REPO, "v1.0", tmp_path / "here", ["*"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written to"):
        hub_client.fetch(REPO, "v1.0", tmp_path / "file" / "below", ["*"])


def test_a_lasting_failure_is_reported_and_the_next_call_continues(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    server.faults["POST tag"] = [503] * 6
    with pytest.raises(RunError, match="run the same command again"):
        publish(server, folder)
    assert server.state["repos"][REPO]["tags"] == {}
    receipt = publish(server, folder)
    assert server.count("POST commit") == 1
    assert server.state["repos"][REPO]["tags"] == {"v1.0": receipt.commit}


def test_changes_on_the_hub_before_the_tag_are_corrected(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    server.faults["POST tag"] = [503] * 6
    with pytest.raises(RunError):
        publish(server, folder)
    server.add_commit(REPO, {**server.files(REPO), "README.md": server.entry(b"edited", lfs=False)}, "edit")
    publish(server, folder)
    assert server.read(REPO, "README.md", "v1.0") == (folder / "README.md").read_bytes()


def test_private_data_never_goes_to_a_public_repository(server: HubServer, tmp_path: Path) -> None:
    server.create_repo(REPO, private=False)
    with pytest.raises(UserError, match="is public"):
        publish(server, release(tmp_path, "1.0"), private=True)
    assert server.count("PUT lfs_put") == 0
    publish(server, tmp_path / "1.0", private=True, repo="someone/hidden")
    assert server.state["repos"]["someone/hidden"]["private"] is True


def test_a_repository_with_other_files_is_not_changed(server: HubServer, tmp_path: Path) -> None:
    server.create_repo(REPO)
    server.add_commit(REPO, {"train.csv": server.entry(b"a,b", lfs=False)}, "theirs")
    with pytest.raises(UserError, match="has other files"):
        publish(server, release(tmp_path, "1.0"))
    assert server.commits(REPO) == ["theirs", "initial commit"]


def test_mistakes_are_reported_without_a_traceback(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    with pytest.raises(UserError, match="write access"):
        push(folder, repo=REPO, version="1.0", private=False, token=SecretStr("hf_wrong"), endpoint=server.url)
    with pytest.raises(UserError, match="not a repository name"):
        publish(server, folder, repo="a/b/c")
    with pytest.raises(UserError, match=r"has version 1\.0, not 2\.0"):
        push(folder, repo=REPO, version="2.0", private=False, token=SecretStr(TOKEN), endpoint=server.url)
    server.faults["POST yaml"] = [400]
    with pytest.raises(UserError, match="metadata of the card"):
        publish(server, folder)
    (folder / "README.md").write_text("edited")
    with pytest.raises(UserError, match="changed after it was written"):
        publish(server, folder)


def test_a_push_killed_between_commit_and_tag_is_continued(server: HubServer, tmp_path: Path) -> None:
    """A real client process is killed while its tag request hangs; another finishes; `datasets` loads old and new."""
    folder = release(tmp_path, "1.0", count=7)
    pushing = (
        "from pathlib import Path; from tracefactory.publish.hub import push; "
        f"print(push(Path({str(folder)!r}), repo={REPO!r}, version='1.0', private=False, token=None).commit)"
    )
    server.faults["POST tag"] = ["hang"]
    killed = client(server, tmp_path, pushing)
    deadline = time.monotonic() + 60
    while not server.count("POST tag"):
        assert killed.poll() is None, "the client ended before it asked for the tag"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert server.state["repos"][REPO]["tags"] == {}

    resumed = client(server, tmp_path, pushing)
    commit = resumed.communicate(timeout=60)[0].strip()
    assert resumed.returncode == 0
    assert server.state["repos"][REPO]["tags"] == {"v1.0": commit}
    assert server.count("POST commit") == 1

    publish(server, release(tmp_path, "2.0", count=3, views=("sft",)))
    loading = f"""
import json
from datasets import get_dataset_config_names, load_dataset
old = load_dataset({REPO!r}, "sft", revision="v1.0", split="train")
streamed = list(load_dataset({REPO!r}, "raw", revision="v1.0", split="train", streaming=True))
new = load_dataset({REPO!r}, split="train")
print(json.dumps({{
    "configs": get_dataset_config_names({REPO!r}, revision="v1.0"),
    "old": old.num_rows, "streamed": len(streamed), "new": new.num_rows,
    "completion": old[0]["completion"], "question": streamed[0]["problem"]["question"],
}}))
"""
    loaded = client(server, tmp_path, loading)
    output = json.loads(loaded.communicate(timeout=120)[0].splitlines()[-1])
    assert output.pop("question").endswith("+ 2?")
    assert output == {
        "configs": ["sft", "raw"],
        "old": 7,
        "streamed": 7,
        "new": 3,
        "completion": [{"role": "assistant", "content": "<think>\nAdd two.\n</think>\n\n4"}],
    }


def test_the_command_pushes_a_finished_version_once(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    code = f"import sys; from tracefactory.cli import main; sys.argv = ['t', 'publish', {str(folder)!r}, '--repo', "
    printed = [client(server, tmp_path, f"{code}{REPO!r}]; main()").communicate()[0] for _ in range(2)]
    assert printed[0].startswith(f"pushed: {server.url}/datasets/{REPO}")
    assert printed[1].startswith("already published: ")
    assert f"(tag v1.0 on commit {server.resolve(REPO, 'main')})" in printed[1]
    older = client(server, tmp_path, f"{code}{REPO!r}]; main()".replace(str(folder), str(release(tmp_path, "0.9"))))
    assert older.communicate()[0].strip().endswith("; main keeps 1.0)")
    other = release(tmp_path / "other", "1.0", answer="5")
    for refused in (f"{code}'no/such/name']", f"{code}{REPO!r}]".replace(str(folder), str(other))):
        wrong = client(server, tmp_path, f"{refused}; main()")
        assert (wrong.communicate()[0], wrong.wait()) == ("", 2)
