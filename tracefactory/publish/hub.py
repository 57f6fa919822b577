"""Publish a release folder on the Hugging Face Hub: one commit, which is checked, then an immutable tag.

The protocol: upload the content of the files, make exactly one commit on the current head (`parent_commit`), list that
commit and compare every digest, and create the tag last. Readers pin the tag, so a version exists once it has its tag.
Every step first reads the current state, so a killed process can be continued by the same call.

`upload_folder` and `push_to_hub` are not used, because they can split a release into several commits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, RepoFile, get_session
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.sha import git_hash
from pydantic import SecretStr, ValidationError

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.fingerprint import digest_file
from tracefactory.core.rows import Frozen
from tracefactory.publish.release import CARD, MANIFEST, FileLine, Manifest, verify_release

T = TypeVar("T")
_DATA = "data/"  # the folder of the repository for releases
_ATTEMPTS = 6
_WAIT_S = 1.0  # doubles with every attempt
_TIMEOUT_S = 300.0  # without a byte sent or received
_RETRIED = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
# A failed transfer raises RuntimeError or ConnectionError, a failed download LocalEntryNotFoundError.
_FAILURES = (httpx2.HTTPError, LocalEntryNotFoundError, RuntimeError, ConnectionError, TimeoutError)
# Files that a repository may have before the first release, which may replace them.
_REPLACEABLE = frozenset({".gitattributes", ".gitignore", CARD})


class Receipt(Frozen):
    """A published release: its commit and tag. `created` is false when it had been published before."""

    repo: str
    version: str
    commit: str
    tag: str
    url: str
    files: tuple[FileLine, ...]
    created: bool


def push(
    folder: Path,
    *,
    repo: str,
    version: str,
    private: bool,
    token: SecretStr | None,
    endpoint: str | None = None,
) -> Receipt:
    """Publish the release in `folder` as tag `v<version>` of the dataset repository `repo`, which is created if needed.

    Files of the previous version are deleted from the main branch in the same commit; its tag keeps them. Files outside
    `data/` that are not part of a release are not changed.

    Args:
        folder: the release folder.
        repo: the repository, "owner/name".
        version: the version of the release.
        private: whether the repository must be private.
        token: the token of the Hub; None for the machine's login.
        endpoint: the URL of another Hub; one without Xet storage needs HF_HUB_DISABLE_XET=1 in the environment.

    Raises:
        UserError: when the tag exists with other content, the folder is not an intact release of `version`, the
            repository is public although `private` is set or has other files, or access is denied.
        RunError: when the Hub cannot be reached; the same call continues later.
    """
    manifest = verify_release(folder)
    if manifest.version != version:
        raise UserError(f"{folder} has version {manifest.version}, not {version}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"hub: {repo!r} is not a repository name: {error}") from error
    api = HfApi(endpoint=endpoint, token=None if token is None else token.get_secret_value())
    with _timeout():
        return _Publication(api, repo, folder, manifest, private).publish()


@contextmanager
def _timeout() -> Iterator[None]:
    """Set a time-out of the Hub client during publishing; by default, it waits forever for a server that hangs.

    After a time-out of a commit, as after any other failure, the head is read again to find the commit.
    """
    session = get_session()
    before = session.timeout
    session.timeout = httpx2.Timeout(_TIMEOUT_S)
    try:
        yield
    finally:
        session.timeout = before


@dataclass
class _Publication:
    """The publication of one release in one repository."""

    api: HfApi
    repo: str
    folder: Path
    manifest: Manifest
    private: bool

    @property
    def tag(self) -> str:
        return f"v{self.manifest.version}"

    def publish(self) -> Receipt:
        """Publish the release unless its tag exists already, from any intermediate state of the repository."""
        self._ensure_repo()
        commit = self._tagged_commit()
        created = commit is None
        if commit is None:
            commit = self._tag(self._commit())
        return Receipt(
            repo=self.repo,
            version=self.manifest.version,
            commit=commit,
            tag=self.tag,
            url=f"{self.api.endpoint}/datasets/{self.repo}/tree/{self.tag}",
            files=self.manifest.files,
            created=created,
        )

    def _ensure_repo(self) -> None:
        self._retry(
            lambda: self.api.create_repo(self.repo, repo_type="dataset", private=self.private, exist_ok=True),
            "create",
        )
        info = self._retry(self._info, "read")
        if self.private and info.private is False:
            raise UserError(f"hub: {self.repo} is public, but the pipeline sets `private: true`")

    def _tagged_commit(self) -> str | None:
        """Return the commit of the release's tag; None when there is no tag.

        Raises:
            UserError: when the tag has other content.
        """
        refs = self._retry(lambda: self.api.list_repo_refs(self.repo, repo_type="dataset"), "list the tags of")
        commit = next((str(ref.target_commit) for ref in refs.tags if ref.name == self.tag), None)
        if commit is None:
            return None
        published = self._manifest_at(commit)
        if published is None or published.content != self.manifest.content:
            raise UserError(
                f"{self.repo} has {self.tag} with other content, and a published version is never changed: raise "
                "`version:` in the pipeline"
            )
        return commit

    def _commit(self) -> str:
        """Return a commit of the main branch with exactly this release, and create it if there is none.

        The request is not idempotent, and the server can fail after creating the commit. Therefore the head is read
        again after every failure.
        """
        attempt = 0
        paths = [*(line.path for line in self.manifest.files), MANIFEST]
        while not self._holds_release(head := str(self._retry(self._info, "read the head of").sha)):
            operations: list[CommitOperationAdd | CommitOperationDelete] = []
            operations += [CommitOperationAdd(path, self.folder / path) for path in paths]
            operations += self._deletions(head)
            try:
                made = self._send(operations, head)
            except _FAILURES as error:
                self._wait_or_raise(error, attempt, "commit to")
                attempt += 1
                continue
            if not self._holds_release(made):
                raise RunError(f"{self.repo}: commit {made} does not have the files that were sent; no tag was created")
            return made
        return head

    def _send(self, operations: list[CommitOperationAdd | CommitOperationDelete], head: str) -> str:
        try:
            made = self.api.create_commit(
                self.repo,
                operations,
                commit_message=f"{self.manifest.name} {self.manifest.version}",
                commit_description=f"content {self.manifest.content}",
                repo_type="dataset",
                parent_commit=head,
            )
        except ValueError as error:
            if isinstance(error.__cause__, BadRequestError):  # the Hub checks the card before any upload
                raise UserError(f"hub: the Hub rejects the metadata of the card: {error}") from error
            raise
        return str(made.oid)

    def _tag(self, commit: str) -> str:
        """Create the tag on `commit` and return the commit that it points to."""
        attempt = 0
        while (present := self._tagged_commit()) is None:
            try:
                self.api.create_tag(self.repo, tag=self.tag, revision=commit, repo_type="dataset")
                return commit
            except _FAILURES as error:
                self._wait_or_raise(error, attempt, f"create the tag {self.tag} in")
                attempt += 1
        return present

    def _info(self) -> DatasetInfo:
        return self.api.dataset_info(self.repo, timeout=_TIMEOUT_S)  # its default overrides the client's time-out

    def _listing(self, commit: str) -> dict[str, RepoFile]:
        entries = self._retry(
            lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type="dataset")),
            "list the files of",
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _holds_release(self, commit: str) -> bool:
        """Return whether a commit has all files of the release with their digests, and no other data files."""
        listing = self._listing(commit)
        digests = {line.path: line.sha256 for line in self.manifest.files}
        digests[MANIFEST] = digest_file(self.folder / MANIFEST)
        if any(path.startswith(_DATA) and path not in digests for path in listing):
            return False
        for path, sha256 in digests.items():
            remote = listing.get(path)
            if remote is None:
                return False
            # The Hub has the sha256 of large files, and git's digest of the content of others.
            if remote.lfs is not None and remote.lfs.sha256 != sha256:
                return False
            if remote.lfs is None and remote.blob_id != git_hash((self.folder / path).read_bytes()):
                return False
        return True

    def _deletions(self, head: str) -> list[CommitOperationDelete]:
        """Return deletions of the data files on `head` that are from an earlier release and not in this one.

        Raises:
            UserError: when `head` has files that are not from a release of this dataset; they are never replaced.
        """
        listing = self._listing(head)
        earlier = self._manifest_at(head) if MANIFEST in listing else None
        if earlier is None and (foreign := sorted(listing.keys() - _REPLACEABLE)):
            raise UserError(f"hub: {self.repo} has other files ({', '.join(foreign[:3])}); use another repository")
        if earlier is not None and earlier.name != self.manifest.name:
            raise UserError(f"hub: {self.repo} has the dataset {earlier.name!r}; use another repository")
        new_files = {line.path for line in self.manifest.files}
        return [CommitOperationDelete(path) for path in sorted(listing.keys() - new_files) if path.startswith(_DATA)]

    def _manifest_at(self, commit: str) -> Manifest | None:
        """Return the manifest in a commit; None when there is no valid one."""
        with tempfile.TemporaryDirectory() as cache:
            download = partial(self.api.hf_hub_download, repo_type="dataset", revision=commit, cache_dir=cache)
            try:
                path = self._retry(lambda: str(download(self.repo, MANIFEST)), "read the manifest of")
                return Manifest.model_validate_json(Path(path).read_bytes())
            except (RemoteEntryNotFoundError, ValidationError):
                return None

    def _retry(self, call: Callable[[], T], action: str) -> T:
        """Send an idempotent request, with retries while the Hub is unavailable."""
        attempt = 0
        while True:
            try:
                return call()
            except RemoteEntryNotFoundError:
                raise
            except _FAILURES as error:
                self._wait_or_raise(error, attempt, action)
                attempt += 1

    def _wait_or_raise(self, error: Exception, attempt: int, action: str) -> None:
        """Wait before the next attempt; raise when a retry cannot help or no attempt is left."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise UserError(
                f"hub: not allowed to {action} {self.repo} (status {status}); the token needs write access"
            ) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise UserError(f"hub: cannot {action} {self.repo}: HF_HUB_OFFLINE is set") from error
        if status is not None and status not in _RETRIED:
            raise error
        if attempt + 1 == _ATTEMPTS:
            raise RunError(
                f"could not {action} {self.repo} in {_ATTEMPTS} attempts; the last one failed with "
                f"{type(error).__name__}{f' {status}' if status else ''}; run the same command again to continue"
            ) from error
        time.sleep(_WAIT_S * 2**attempt)
