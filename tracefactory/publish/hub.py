"""Publishing a release folder on the Hugging Face Hub: one commit, checked, then a tag that never moves.

The protocol: upload the files' content, make exactly one commit on top of the head that was read (`parent_commit`),
list that commit and compare every digest, and create the tag last. Readers pin the tag, so a version is there with the
tag and not before. Every step looks first at what is there: a process killed anywhere continues with the same call.

`upload_folder` and `push_to_hub` are not used: they may split one release over several commits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
_DATA = "data/"  # this folder of the repository belongs to the releases
_ATTEMPTS = 6
_WAIT_S = 1.0  # doubles with every attempt
_TIMEOUT_S = 300.0  # without a byte sent or received
_RETRIED = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
# A failed transfer arrives as RuntimeError or ConnectionError, a failed download as LocalEntryNotFoundError.
_FAILURES = (httpx2.HTTPError, LocalEntryNotFoundError, RuntimeError, ConnectionError, TimeoutError)
# What a new repository may hold before the first release: nothing that a release would destroy.
_REPLACEABLE = frozenset({".gitattributes", ".gitignore", CARD})


class Receipt(Frozen):
    """What was published: the commit and the tag that points to it. `created` is false when it was there already."""

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
    """Publish the release in `folder` as tag `v<version>` of the dataset repository `repo`, making it if need be.

    Files of the version before are deleted from the main branch in the same commit; its tag keeps them. Files outside
    of `data/` that no release put there are left alone. With `token` None the token of the machine's login is used.
    `endpoint` is the address of another Hub; one without Xet storage needs HF_HUB_DISABLE_XET=1 in the environment.

    Raises:
        UserError: when the tag exists with other content, the folder is not an intact release of `version`, the
            repository is public though `private` was asked for or holds something else, or access is denied.
        RunError: when the Hub stays unreachable; the same call continues later.
    """
    manifest = verify_release(folder)
    if manifest.version != version:
        raise UserError(f"{folder} holds version {manifest.version}, not {version}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"hub: {repo!r} is not a repository name: {error}") from error
    api = HfApi(endpoint=endpoint, token=None if token is None else token.get_secret_value())
    with _timeout():
        return _Publication(api, repo, folder, manifest, private).publish()


@contextmanager
def _timeout() -> Iterator[None]:
    """Give the Hub client a time limit while publishing: by default it waits for ever for a server that fell silent.

    A commit that was cut off by the limit is found by reading the head again, like one that failed in any other way.
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
    """One release on its way to one repository."""

    api: HfApi
    repo: str
    folder: Path
    manifest: Manifest
    private: bool

    @property
    def tag(self) -> str:
        return f"v{self.manifest.version}"

    def publish(self) -> Receipt:
        """Bring the repository to the state where the tag holds the release, from whatever state it is in."""
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
            raise UserError(f"hub: {self.repo} is public, and the pipeline asks for a private dataset")

    def _tagged_commit(self) -> str | None:
        """Return the commit of our tag if it holds this content, None if there is no such tag; refuse another one."""
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
        """Return a commit of the main branch that holds exactly this release, making it when there is none.

        The commit request is not idempotent and a server can fail after having done it, so after every failure the
        head is read again before anything is sent again.
        """
        attempt = 0
        while not self._holds_release(head := self._head()):
            operations: list[CommitOperationAdd | CommitOperationDelete] = self._additions()
            operations += self._deletions(head)
            try:
                made = self._send(operations, head)
            except _FAILURES as error:
                self._wait_or_raise(error, attempt, "commit to")
                attempt += 1
                continue
            if not self._holds_release(made):
                raise RunError(f"{self.repo}: commit {made} does not hold the files that were sent; no tag was made")
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
            if isinstance(error.__cause__, BadRequestError):  # the Hub's own check of the card, before any upload
                raise UserError(f"hub: the Hub refuses the metadata of the card: {error}") from error
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

    def _head(self) -> str:
        return str(self._retry(self._info, "read the head of").sha)

    def _info(self) -> DatasetInfo:
        return self.api.dataset_info(self.repo, timeout=_TIMEOUT_S)  # its default overrides the client's limit

    def _additions(self) -> list[CommitOperationAdd | CommitOperationDelete]:
        paths = [*(line.path for line in self.manifest.files), MANIFEST]
        return [CommitOperationAdd(path, self.folder / path) for path in paths]

    def _listing(self, commit: str) -> dict[str, RepoFile]:
        def list_all() -> dict[str, RepoFile]:
            entries = self.api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type="dataset")
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self._retry(list_all, "list the files of")

    def _holds_release(self, commit: str) -> bool:
        """Return whether a commit has every file of the release, byte for byte, and none of an earlier one."""
        listing = self._listing(commit)
        digests = {line.path: line.sha256 for line in self.manifest.files}
        digests[MANIFEST] = digest_file(self.folder / MANIFEST)
        data = {path for path in listing if path.startswith(_DATA)}
        return data <= digests.keys() and all(
            path in listing and self._matches(listing[path], path, sha256) for path, sha256 in digests.items()
        )

    def _matches(self, remote: RepoFile, path: str, sha256: str) -> bool:
        """Compare by sha256 where the Hub stores one (large files), else by git's own digest of the content."""
        if remote.lfs is not None:
            return bool(remote.lfs.sha256 == sha256)
        return bool(remote.blob_id == git_hash((self.folder / path).read_bytes()))

    def _deletions(self, head: str) -> list[CommitOperationDelete]:
        """Return deletions of the data files that an earlier release put on `head` and this one does not have.

        Raises:
            UserError: when `head` holds files and no release of this dataset: nothing of others is ever replaced.
        """
        listing = self._listing(head)
        earlier = self._manifest_at(head) if MANIFEST in listing else None
        if earlier is None and (foreign := sorted(listing.keys() - _REPLACEABLE)):
            raise UserError(f"hub: {self.repo} holds other files ({', '.join(foreign[:3])}); use another repository")
        if earlier is not None and earlier.name != self.manifest.name:
            raise UserError(f"hub: {self.repo} holds the dataset {earlier.name!r}; use another repository")
        new_files = {line.path for line in self.manifest.files}
        return [CommitOperationDelete(path) for path in sorted(listing.keys() - new_files) if path.startswith(_DATA)]

    def _manifest_at(self, commit: str) -> Manifest | None:
        """Return the manifest that a commit holds, None when it has none that can be read as one."""
        with tempfile.TemporaryDirectory() as cache:

            def download() -> str:
                return str(
                    self.api.hf_hub_download(self.repo, MANIFEST, repo_type="dataset", revision=commit, cache_dir=cache)
                )

            try:
                path = self._retry(download, "read the manifest of")
                return Manifest.model_validate_json(Path(path).read_bytes())
            except (RemoteEntryNotFoundError, ValidationError):
                return None

    def _retry(self, call: Callable[[], T], action: str) -> T:
        """Run a request that can be repeated safely, repeating it while the Hub is unavailable."""
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
        """Wait before another attempt; raise when another attempt cannot help, or there were enough."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise UserError(
                f"hub: not allowed to {action} {self.repo} (status {status}): the token needs write access to it"
            ) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise UserError(f"hub: cannot {action} {self.repo}: HF_HUB_OFFLINE is set") from error
        if status is not None and status not in _RETRIED:
            raise error
        if attempt + 1 == _ATTEMPTS:
            raise RunError(
                f"could not {action} {self.repo} in {_ATTEMPTS} attempts, the last one ended with "
                f"{type(error).__name__}{f' {status}' if status else ''}; run the same command again to continue"
            ) from error
        time.sleep(_WAIT_S * 2**attempt)
