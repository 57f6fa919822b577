"""Publishing beside others, and after a crash: one release wins, and its tag, its commit and main agree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.hub_server import OTHER_TOKEN, TOKEN, HubServer
from tests.unit.test_hub import release
from tracefactory.core.errors import RunError, UserError
from tracefactory.publish.hub import Receipt, push
from tracefactory.publish.hub_client import HubRepository, Refs
from tracefactory.publish.release import Manifest, read_manifest

REPO = "someone/traces"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def publish(server: HubServer, folder: Path, token: str = TOKEN, repo: str = REPO) -> Receipt:
    return push(folder, repo=repo, version=folder.name, private=False, token=SecretStr(token), endpoint=server.url)


def manifest(server: HubServer, revision: str, repo: str = REPO) -> Manifest:
    return Manifest.model_validate_json(server.read(repo, "manifest.json", revision))


def same_rows(folder: Path, root: Path) -> Path:
    """Return a release with the rows of another one, made at another time."""
    made = release(root, folder.name)
    later = read_manifest(made).model_copy(update={"created": "2031-01-01T00:00:00+00:00"})
    (made / "manifest.json").write_text(later.model_dump_json())
    assert later.content == read_manifest(folder).content
    return made


def assert_sound(server: HubServer, folder: Path, repo: str = REPO) -> None:
    """The tag of a release has its rows and all files of its manifest, and no branch is left."""
    found = manifest(server, f"v{folder.name}", repo)
    assert found.content == read_manifest(folder).content
    files = server.files(repo, f"v{folder.name}")
    assert {path: files[path]["sha256"] for path in files if path.startswith("data/") or path == "README.md"} == {
        line.path: line.sha256 for line in found.files
    }
    assert server.state["repos"][repo]["branches"] == {}


class Turns:
    """Two publishers: A up to its request `first`, B up to its request `second`, A to its end, B to its end."""

    def __init__(self, server: HubServer, first: int, second: int) -> None:
        self._server, self._first, self._second = server, first, second
        self.sent = {TOKEN: 0, OTHER_TOKEN: 0}
        self._start_b, self._go_on_a, self._go_on_b = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, a: Callable[[], Receipt], b: Callable[[], Receipt]) -> list[Receipt | Exception]:
        ended: list[Receipt | Exception] = [RuntimeError("did not end")] * 2

        def run(number: int, call: Callable[[], Receipt], *then: threading.Event) -> None:
            try:
                ended[number] = call()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                ended[number] = error
            for event in then:
                event.set()

        self._server.before = self._before
        one = threading.Thread(target=run, args=(0, a, self._start_b, self._go_on_b))
        other = threading.Thread(target=run, args=(1, b, self._go_on_a))
        one.start()
        assert self._start_b.wait(60)
        other.start()
        one.join(60)
        other.join(60)
        self._server.before = lambda token, kind: None
        return ended

    @property
    def reached(self) -> bool:
        """Whether the publishers have sent so many requests."""
        return self.sent[TOKEN] >= self._first and (self._second == END or self.sent[OTHER_TOKEN] >= self._second)

    def _before(self, token: str, kind: str) -> None:
        if token not in self.sent:
            return  # the address of an upload is signed and carries no token
        self.sent[token] += 1
        if token == TOKEN and self.sent[token] == self._first:
            self._start_b.set()
            self._go_on_a.wait(60)
        if token == OTHER_TOKEN and self.sent[token] == self._second:
            self._go_on_a.set()
            self._go_on_b.wait(60)


class Case:
    """Two releases, and what the repository has before them."""

    def __init__(self, root: Path, name: str) -> None:
        self.before = {"first release": (), "older": ("0.9",)}.get(name.split(", ")[1], ("0.9", "1.1"))
        self.folders_before = [release(root / "before", version) for version in self.before]
        self.a = release(root / "a", "1.0")
        kind = name.split(", ")[0]
        if kind == "other rows":
            self.b = release(root / "b", "1.0", answer="5")
        elif kind == "same rows":
            self.b = same_rows(self.a, root / "b")
        else:
            self.b = release(root / "b", "1.0.1", answer="5")
        self.newest = "1.1" if "1.1" in self.before else max(self.a.name, self.b.name)


CASES = [
    f"{kind}, {before}"
    for kind in ("other rows", "same rows", "newer")
    for before in ("first release", "older", "newer")
]
END = 60  # more requests than a publication sends


def interleave(server: HubServer, case: Case, repo: str, first: int, second: int) -> bool:
    """Publish both releases in turns and check what comes of it; return whether the turns were reached."""
    for folder in case.folders_before:
        publish(server, folder, repo=repo)
    turns = Turns(server, first, second)
    ended = turns(
        lambda: publish(server, case.a, TOKEN, repo),
        lambda: publish(server, case.b, OTHER_TOKEN, repo),
    )
    receipts = [one for one in ended if isinstance(one, Receipt)]
    lost = [one for one in ended if not isinstance(one, Receipt)]
    same = read_manifest(case.a).content == read_manifest(case.b).content
    if case.a.name == case.b.name and not same:
        assert len(receipts) == 1, ended
        assert isinstance(lost[0], UserError)
        assert "with other content" in str(lost[0])
        assert "raise `version:`" in str(lost[0])
    else:
        assert len(receipts) == 2, ended
    state = server.state["repos"][repo]
    for folder, end in zip((case.a, case.b), ended, strict=True):
        if isinstance(end, Receipt):
            assert end.commit == state["tags"][f"v{folder.name}"]
            assert_sound(server, folder, repo)
    assert manifest(server, "main", repo).version == case.newest
    assert state["main"] == state["tags"][f"v{case.newest}"]
    commits = len(server.state["commits"])
    for folder, end in zip((case.a, case.b), ended, strict=True):
        if isinstance(end, Receipt):
            again = publish(server, folder, repo=repo)
            assert (again.commit, again.created, again.newest) == (end.commit, False, case.newest)
        else:
            with pytest.raises(UserError, match="with other content"):
                publish(server, folder, repo=repo)
    assert len(server.state["commits"]) == commits
    return turns.reached


@pytest.mark.parametrize("name", CASES)
def test_of_two_publishers_of_a_version_one_wins(server: HubServer, tmp_path: Path, name: str) -> None:
    """B publishes as a whole between two requests of A, at every third place, which differ between the cases."""
    case = Case(tmp_path, name)
    places = 0
    while interleave(server, case, f"someone/{places}", 1 + CASES.index(name) % 3 + 3 * places, END):
        places += 1
    assert places >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_of_two_publishers_one_wins_in_every_order(server: HubServer, tmp_path: Path, name: str) -> None:
    """B stops too, at every place, and A goes on to its end in between."""
    case = Case(tmp_path, name)
    reached = set()
    for first in range(1, END):
        for second in range(1, END):
            if not interleave(server, case, f"someone/{first}-{second}", first, second):
                break
            reached.add((first, second))
        if (first, 1) not in reached:
            break
    assert len(reached) > 100


def crash_at(server: HubServer, folder: Path, repo: str, number: int, how: int | str) -> bool:
    """Publish until request `number`, which is the last that has an answer; return whether there were so many."""
    sent = 0

    def before(token: str, kind: str) -> int | str | None:
        nonlocal sent
        sent += bool(token)
        return None if sent < number else how if sent == number else 418

    server.before = before
    with suppress(UserError, RunError):  # the client repeats next to nothing after this status
        publish(server, folder, repo=repo)
    server.before = lambda token, kind: None
    return sent >= number


@pytest.mark.parametrize("how", [418, "commit_then_418"])
@pytest.mark.parametrize("before", [(), ("0.9",), ("0.9", "1.1")])
def test_a_publication_that_ends_anywhere_is_finished_by_the_next(
    server: HubServer, tmp_path: Path, before: tuple[str, ...], how: int | str
) -> None:
    earlier = [release(tmp_path, version, answer="7") for version in before]
    folder, other = release(tmp_path, "1.0"), release(tmp_path / "other", "1.0", answer="5")
    newest = max(["1.0", *before])
    for number in range(1, END):
        repo = f"someone/{number}"
        for one in earlier:
            publish(server, one, repo=repo)
        if not crash_at(server, folder, repo, number, how):
            break
        receipt = publish(server, folder, repo=repo)
        assert_sound(server, folder, repo)
        state = server.state["repos"][repo]
        assert receipt.commit == state["tags"]["v1.0"]
        assert manifest(server, "main", repo).version == newest
        on_main = [*reversed(before)] if newest == "1.1" else ["1.0", *before]
        assert server.commits(repo) == [*(f"traces {one}" for one in on_main), "initial commit"]
        with pytest.raises(UserError, match="with other content"):
            publish(server, other, repo=repo)
        assert_sound(server, folder, repo)
    assert 10 < number < END


def test_an_older_version_gets_its_tag_and_main_keeps_the_newest(server: HubServer, tmp_path: Path) -> None:
    publish(server, release(tmp_path, "1.9"))
    server.add_commit(REPO, {**server.files(REPO), "LICENSE": server.entry(b"MIT", lfs=False)}, "add a licence")
    newest = publish(server, release(tmp_path, "1.10", answer="5"))
    card = server.read(REPO, "README.md")
    for version in ("1.2", "1.10rc1"):
        folder = release(tmp_path, version, answer="6")
        receipt = publish(server, folder)
        assert (receipt.created, receipt.newest) == (True, "1.10")
        assert server.resolve(REPO, f"v{version}") == receipt.commit
        assert server.read(REPO, "README.md", f"v{version}") == (folder / "README.md").read_bytes()
        assert server.read(REPO, "LICENSE", f"v{version}") == b"MIT"
        assert_sound(server, folder)
    assert server.resolve(REPO, "main") == server.resolve(REPO, "v1.10") == newest.commit
    assert server.read(REPO, "README.md") == card
    assert server.commits(REPO) == ["traces 1.10", "add a licence", "traces 1.9", "initial commit"]
    later = publish(server, release(tmp_path, "1.10.1"))
    assert server.resolve(REPO, "main") == later.commit


LOST = {
    "the card": lambda path: path == "README.md",
    "the manifest": lambda path: path == "manifest.json",
    "rows": lambda path: path.startswith("data/raw/"),
    "everything": lambda path: path != ".gitattributes",
}


def losing(server: HubServer, lost: Callable[[str], bool]) -> None:
    """Make the next commit lose files."""
    add = server.add_commit

    def lossy(name: str, files: dict[str, Any], *rest: str) -> str:
        server.add_commit = add  # type: ignore[method-assign]
        return add(name, {path: entry for path, entry in files.items() if not lost(path)}, *rest)

    server.add_commit = lossy  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("before", [(), ("0.9",)])
@pytest.mark.parametrize("what", sorted(LOST))
def test_a_commit_that_lost_files_is_undone(
    server: HubServer, tmp_path: Path, what: str, before: tuple[str, ...]
) -> None:
    for version in before:
        publish(server, release(tmp_path, version, answer="7", views=("sft",)))
    if not before:
        server.create_repo(REPO)
    files, tags = server.files(REPO), dict(server.state["repos"][REPO]["tags"])
    folder = release(tmp_path, "1.0")
    losing(server, LOST[what])
    with pytest.raises(RunError, match="main was put back"):
        publish(server, folder)
    assert server.files(REPO) == files
    if what != "everything" or before:  # else there is nothing to undo
        assert server.commits(REPO)[:2] == ["Revert traces 1.0", "traces 1.0"]
    assert server.state["repos"][REPO]["tags"] == tags
    publish(server, folder)
    assert_sound(server, folder)
    assert server.resolve(REPO, "main") == server.resolve(REPO, "v1.0")


@pytest.mark.parametrize("what", sorted(LOST))
def test_a_commit_that_lost_files_is_replaced_after_a_crash(server: HubServer, tmp_path: Path, what: str) -> None:
    """The process ends after the commit: it is not undone, and the next one does not take it for somebody else's."""
    publish(server, release(tmp_path, "0.9", answer="7"))
    folder = release(tmp_path, "1.0")
    losing(server, LOST[what])
    server.before = lambda token, kind: None if server.commits(REPO)[0] == "traces 0.9" else 418
    with pytest.raises(UserError, match="418"):
        publish(server, folder)
    server.before = lambda token, kind: None
    assert server.commits(REPO)[0] == "traces 1.0"
    publish(server, folder)
    assert_sound(server, folder)


def test_a_bad_commit_that_cannot_be_undone_is_named(server: HubServer, tmp_path: Path) -> None:
    publish(server, release(tmp_path, "0.9", answer="7"))

    def interfere() -> None:
        server.add_commit(REPO, {**server.files(REPO), "LICENSE": server.entry(b"MIT", lfs=False)}, "theirs")

    server.hooks["interfere"] = interfere
    losing(server, LOST["rows"])
    server.faults["GET commits"] = ["before:interfere"]
    with pytest.raises(RunError, match="git -C fix revert") as caught:
        publish(server, release(tmp_path, "1.0"))
    assert server.commits(REPO)[:3] == ["theirs", "traces 1.0", "traces 0.9"]
    bad = server.state["commits"][server.resolve(REPO, "main")]["parent"]
    assert f"revert --no-edit {bad}" in str(caught.value)
    assert list(server.state["repos"][REPO]["tags"]) == ["v0.9"]
    server.read(REPO, "LICENSE")


def test_an_older_version_that_lost_files_leaves_nothing(server: HubServer, tmp_path: Path) -> None:
    publish(server, release(tmp_path, "1.1"))
    main = server.resolve(REPO, "main")
    folder = release(tmp_path, "1.0", answer="7")
    losing(server, LOST["rows"])
    with pytest.raises(RunError, match="main was not changed"):
        publish(server, folder)
    assert server.resolve(REPO, "main") == main
    assert server.state["repos"][REPO]["branches"] == {}
    assert list(server.state["repos"][REPO]["tags"]) == ["v1.1"]
    publish(server, folder)
    assert_sound(server, folder)


def test_a_tag_whose_commit_lacks_files_is_not_a_publication(server: HubServer, tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0")
    receipt = publish(server, folder)
    files = {path: one for path, one in server.files(REPO).items() if not path.startswith("data/raw")}
    bad = server.add_commit(REPO, files, "remove rows")
    server.state["repos"][REPO]["tags"]["v1.0"] = bad
    with pytest.raises(UserError, match="does not have the files"):
        publish(server, folder)
    server.state["repos"][REPO]["tags"]["v1.0"] = receipt.commit
    assert publish(server, folder).commit == receipt.commit


def test_who_loses_the_tag_to_another_commit_leaves_nothing_on_main(server: HubServer, tmp_path: Path) -> None:
    publish(server, release(tmp_path, "0.9", answer="7"))
    before = server.files(REPO)

    def tagged_by_hand() -> None:
        tags = server.state["repos"][REPO]["tags"]
        tags["v1.0"] = tags["v0.9"]

    server.hooks["tagged"] = tagged_by_hand
    server.faults["POST tag"] = ["before:tagged"]
    folder = release(tmp_path, "1.0")
    for _ in range(2):
        with pytest.raises(UserError, match="with other content"):
            publish(server, folder)
        assert server.files(REPO) == before


def test_main_with_other_rows_than_the_tag_of_its_version_is_put_right(server: HubServer, tmp_path: Path) -> None:
    """Earlier versions of this package left it so when two people published one version at the same time."""
    one, other = release(tmp_path / "one", "1.0"), release(tmp_path / "other", "1.0", answer="5")
    first = publish(server, one)
    publish(server, other, repo="someone/other")
    server.add_commit(REPO, server.files("someone/other"), "traces 1.0")
    with pytest.raises(UserError, match="with other content"):
        publish(server, other)
    assert manifest(server, "main").content == read_manifest(other).content
    again = publish(server, one)
    assert (again.commit, again.created) == (first.commit, False)
    assert server.resolve(REPO, "v1.0") == first.commit
    assert {path: file["sha256"] for path, file in server.files(REPO).items()} == {
        path: file["sha256"] for path, file in server.files(REPO, "v1.0").items()
    }


@pytest.mark.parametrize("hidden", ["tags", "branches"])
def test_a_hub_that_never_shows_what_was_written_ends_with_a_message(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    publish(server, release(tmp_path, "1.1", answer="5"))
    refs = HubRepository.refs

    def stale(self: HubRepository) -> Refs:
        found = refs(self)
        return Refs({"main": found.branches["main"]}, found.tags if hidden == "branches" else {})

    monkeypatch.setattr(HubRepository, "refs", stale)
    with pytest.raises(RunError, match="run the same command again"):
        publish(server, release(tmp_path, "1.0"))
    monkeypatch.undo()
    assert list(server.state["repos"][REPO]["tags"])[:1] == ["v1.1"]


def test_a_request_that_the_hub_refuses_is_told_without_a_traceback(server: HubServer, tmp_path: Path) -> None:
    for kind in ("GET refs", "POST preupload", "POST commit", "POST tag"):
        server.faults[kind] = [422]
        with pytest.raises(UserError, match="422"):
            publish(server, release(tmp_path / kind, "1.0"))
    publish(server, tmp_path / "POST tag" / "1.0")
