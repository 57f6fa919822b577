"""The requests that publishing sends to the Hugging Face Hub. Those that read are repeated while it is unavailable.

Those that write are sent once, because the Hub can fail after it has done the work: the caller reads again and decides.
`upload_folder` and `push_to_hub` are not used, because they can split a release into several commits.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    get_session,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import SecretStr

from tracefactory.core.errors import RunError, UserError

T = TypeVar("T")
MAIN = "main"
_ATTEMPTS = 6
_WAIT_S = 1.0  # doubles with every attempt
_TIMEOUT_S = 300.0  # without a byte sent or received
_RETRIED = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
# A failed transfer raises RuntimeError or ConnectionError, a failed download LocalEntryNotFoundError.
FAILURES = (httpx2.HTTPError, LocalEntryNotFoundError, RuntimeError, ConnectionError, TimeoutError)
# Another client has deleted the branch, the commit or the file that was read before.
CHANGED = (RevisionNotFoundError, RemoteEntryNotFoundError)


class RemoteFile(NamedTuple):
    """A file of a commit: the sha256 of its content if the Hub stores it as a large file, and its git object."""

    sha256: str | None
    git: str


class Refs(NamedTuple):
    """The branches and tags of a repository with the commits that they point to."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


class Commit(NamedTuple):
    """A commit in a history."""

    id: str
    title: str
    description: str


class MovedError(RuntimeError):
    """Another client has moved the branch, so that nothing was done."""


class Attempts:
    """Counts the failures of something that is tried several times.

    Args:
        repo: the repository.
        access: the access to it that the token needs: read or write.
    """

    def __init__(self, repo: str, access: str = "write") -> None:
        self._repo, self._access = repo, access
        self._failed = 0

    def wait(self, error: Exception, action: str) -> None:
        """Wait before the next attempt.

        Raises:
            UserError: when it is not allowed, or the Hub rejects the request itself.
            RunError: when no attempt is left.
        """
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise UserError(
                f"hub: not allowed to {action} {self._repo} (status {status}); the token needs {self._access} access"
            ) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise UserError(f"hub: cannot {action} {self._repo}: HF_HUB_OFFLINE is set") from error
        if status is not None and status not in _RETRIED and not isinstance(error, CHANGED):
            raise UserError(f"hub: the Hub refuses to {action} {self._repo}: {error}") from error
        self._failed += 1
        if self._failed == _ATTEMPTS:
            raise RunError(
                f"could not {action} {self._repo} in {_ATTEMPTS} attempts; the last one failed with "
                f"{type(error).__name__}{f' {status}' if status else ''}; run the same command again to continue"
            ) from error
        time.sleep(_WAIT_S * 2 ** (self._failed - 1))


class HubRepository:
    """A dataset repository on the Hub."""

    def __init__(self, name: str, token: SecretStr | None, endpoint: str | None) -> None:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"hub: {name!r} is not a repository name: {error}") from error
        self.name = name
        self._api = HfApi(endpoint=endpoint, token=None if token is None else token.get_secret_value())

    @property
    def url(self) -> str:
        """The address of its page."""
        return f"{self._api.endpoint}/datasets/{self.name}"

    def create(self, private: bool) -> None:
        """Create the repository unless it exists.

        Raises:
            UserError: when it exists and is public although `private` is set.
        """
        create = partial(self._api.create_repo, self.name, repo_type="dataset", private=private, exist_ok=True)
        self._retry(create, "create")
        # Its default time-out would override that of the client.
        info = self._retry(lambda: self._api.dataset_info(self.name, timeout=_TIMEOUT_S), "read")
        if private and info.private is False:
            raise UserError(f"hub: {self.name} is public, but the pipeline sets `private: true`")

    def refs(self) -> Refs:
        """Return the current branches and tags.

        Raises:
            UserError: when there is no branch main.
        """
        found = self._retry(lambda: self._api.list_repo_refs(self.name, repo_type="dataset"), "list the tags of")
        branches, tags = ({ref.name: str(ref.target_commit) for ref in refs} for refs in (found.branches, found.tags))
        if MAIN not in branches:
            raise UserError(f"hub: {self.name} has no branch {MAIN}; use another repository")
        return Refs(branches, tags)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """Return the files of a commit by path."""
        tree = partial(self._api.list_repo_tree, self.name, recursive=True, revision=commit, repo_type="dataset")
        return {
            entry.path: RemoteFile(None if entry.lfs is None else entry.lfs.sha256, entry.blob_id)
            for entry in self._retry(lambda: list(tree()), "list the files of")
            if isinstance(entry, RepoFile)
        }

    def read(self, path: str, commit: str) -> bytes:
        """Return the content of a small file of a commit.

        Raises:
            KeyError: when the commit has no such file.
        """
        with tempfile.TemporaryDirectory() as cache:
            download = partial(self._api.hf_hub_download, repo_type="dataset", revision=commit, cache_dir=cache)
            try:
                return Path(self._retry(lambda: str(download(self.name, path)), f"read {path} of")).read_bytes()
            except RemoteEntryNotFoundError as error:
                raise KeyError(path) from error

    def history(self, commit: str) -> list[Commit]:
        """Return a commit and those before it, the newest first."""
        listed = partial(self._api.list_repo_commits, self.name, repo_type="dataset", revision=commit)
        return [Commit(one.commit_id, one.title, one.message) for one in self._retry(listed, "list the commits of")]

    def commit(
        self, branch: str, parent: str, added: Mapping[str, Path], deleted: Iterable[str], title: str, description: str
    ) -> str:
        """Commit files to a branch whose head is `parent`, and return the new head. Sent once.

        When nothing is to be changed, the Hub's client makes no commit and returns the current head.

        Args:
            branch: the branch.
            parent: the commit that the branch must point to.
            added: local files by their paths in the repository.
            deleted: paths of files that `parent` has.
            title: the first line of the message.
            description: the rest of the message.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = []
        operations += [CommitOperationAdd(path, file) for path, file in added.items()]
        operations += [CommitOperationDelete(path) for path in sorted(deleted)]
        try:
            return self._send(branch, parent, operations, title, description)
        except ValueError as error:
            if isinstance(error.__cause__, BadRequestError):  # the Hub checks the card before any upload
                raise UserError(f"hub: the Hub rejects the metadata of the card: {error}") from error
            raise

    def restore(self, branch: str, bad: str, before: str, title: str) -> str:
        """Commit the files of `before` to a branch whose head is `bad`, and return the new head. Sent once."""
        old, new = self.files(before), self.files(bad)
        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = []
        operations += [CommitOperationDelete(path) for path in sorted(new.keys() - old.keys())]
        changed = sorted(path for path, file in old.items() if new.get(path) != file)
        operations += [CommitOperationCopy(path, path, src_revision=before) for path in changed]
        return self._send(branch, bad, operations, title, f"restores the files of {before}")

    def _send(
        self,
        branch: str,
        parent: str,
        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy],
        title: str,
        description: str,
    ) -> str:
        made = self._api.create_commit(
            self.name,
            operations,
            commit_message=title,
            commit_description=description,
            repo_type="dataset",
            revision=branch,
            parent_commit=parent,
        )
        return str(made.oid)

    def create_tag(self, tag: str, commit: str) -> bool:
        """Create a tag on a commit; return False when the tag exists. Sent once."""
        try:
            self._api.create_tag(self.name, tag=tag, revision=commit, repo_type="dataset")
        except HfHubHTTPError as error:
            if error.response.status_code == 409:
                return False
            raise
        return True

    def create_branch(self, branch: str, commit: str) -> None:
        """Create a branch on a commit unless it exists. Sent once."""
        self._api.create_branch(self.name, branch=branch, revision=commit, repo_type="dataset", exist_ok=True)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. Sent once."""
        self._api.delete_branch(self.name, branch=branch, repo_type="dataset")

    def _retry(self, call: Callable[[], T], action: str) -> T:
        attempts = Attempts(self.name)
        while True:
            try:
                return call()
            except CHANGED:
                raise
            except FAILURES as error:
                attempts.wait(error, action)


_lock = threading.Lock()
_before: list[httpx2.Timeout] = []  # the client's own time-out, once for every publication under way


@contextmanager
def limited_waiting() -> Iterator[None]:
    """Set a time-out of the Hub client of this process; by default, it waits forever for a server that hangs.

    After a time-out of a commit, as after any other failure, the branch is read again to find the commit.
    """
    session = get_session()
    with _lock:
        _before.append(_before[0] if _before else session.timeout)
        session.timeout = httpx2.Timeout(_TIMEOUT_S)
    try:
        yield
    finally:
        with _lock:
            own = _before.pop()
            if not _before:
                session.timeout = own


def fetch(repo: str, tag: str, folder: Path, patterns: Sequence[str]) -> None:
    """Download files of a dataset's version; those that are here already are not downloaded again.

    Args:
        repo: the repository.
        tag: its tag or commit.
        folder: where the files are put.
        patterns: which files.

    Raises:
        UserError: when there is no such repository or tag.
        RunError: when the Hub cannot be asked in several attempts, or the files cannot be written.
    """
    download = partial(
        snapshot_download,
        repo,
        repo_type="dataset",
        revision=tag,
        local_dir=folder,
        allow_patterns=list(patterns),
        endpoint=os.environ.get("HF_ENDPOINT"),
    )
    name = f"{repo}@{tag}"
    attempts = Attempts(name, "read")
    with limited_waiting():
        while True:
            try:
                download()
                return
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                raise UserError(f"{name}: the Hub has no such repository or tag") from error
            except FAILURES as error:
                # The client hides why it finds nothing on the Hub behind what it does not find here.
                hidden = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
                attempts.wait(hidden if isinstance(hidden, Exception) else error, "download")
            except OSError as error:
                raise RunError(f"{name} cannot be written to {folder}: {error}") from error
