"""Publish a release folder on the Hugging Face Hub: one commit, which is checked, then an immutable tag.

The protocol: make exactly one commit on the head that was read (`parent_commit`), list that commit and compare every
digest, and create the tag on its id last. A version exists once it has its tag, and readers pin the tag. Creating a tag
that exists fails on the Hub, so of several publishers one wins. Before every request that writes, the state of the
repository is read again, so a killed process is continued by the same call.

The main branch only moves to newer versions. A version that is older than the one on main is committed to a branch of
its own, which is deleted once the tag keeps the commit. A commit that fails its check is undone.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr, ValidationError

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.rows import Frozen
from tracefactory.publish.hub_client import (
    CHANGED,
    FAILURES,
    MAIN,
    Attempts,
    HubRepository,
    MovedError,
    Refs,
    RemoteFile,
    limited_waiting,
)
from tracefactory.publish.release import CARD, MANIFEST, FileLine, Manifest, addressed_to, verify_release
from tracefactory.publish.versions import version_order

_DATA = "data/"  # the folder of the repository for releases
_STEPS = 30  # requests that write, of one publication; three to five are needed
# Files that a repository may have before the first release, which may replace them.
_REPLACEABLE = frozenset({".gitattributes", ".gitignore", CARD})


class Receipt(Frozen):
    """A published release: its commit and tag. `created` is false when it had been published before.

    `files` are those of the commit; the card of the same rows that were published before may be another one. `newest`
    is the version on the main branch.
    """

    repo: str
    version: str
    commit: str
    tag: str
    url: str
    files: tuple[FileLine, ...]
    created: bool
    newest: str = ""

    @property
    def main_note(self) -> str:
        """What to tell about the main branch: "; main keeps 1.1" after a version that is older than that, else ""."""
        return f"; main keeps {self.newest}" if self.newest not in ("", self.version) else ""


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
        UserError: when the version exists with other content, the folder is not an intact release of `version`, the
            repository is public although `private` is set or has other files, or access is denied.
        RunError: when the Hub cannot be reached or loses files; the same call continues later.
    """
    manifest = verify_release(folder)
    if manifest.version != version:
        raise UserError(f"{folder} has version {manifest.version}, not {version}")
    hub = HubRepository(repo, token, endpoint)
    with limited_waiting(), addressed_to(repo, folder, manifest) as release:
        hub.create(private)
        return _Publication(hub, *release).publish()


@dataclass
class _Found:
    """A commit: its files, and the release that its manifest describes."""

    files: dict[str, RemoteFile]
    manifest: Manifest | None


@dataclass
class _Publication:
    """The publication of one release in one repository.

    `checked` is a commit of this publication that has all files.
    """

    hub: HubRepository
    folder: Path
    manifest: Manifest
    checked: str | None = None
    created: bool = False
    _intact: dict[str, bool] = field(default_factory=dict)
    _found: dict[str, _Found] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"v{self.manifest.version}"

    @property
    def side_branch(self) -> str:
        """The branch for a version that is older than the one on main; other content has another one."""
        return f"release-{self.tag}-{self.manifest.content[:12]}"

    @property
    def title(self) -> str:
        return f"{self.manifest.name} {self.manifest.version}"

    @property
    def description(self) -> str:
        return f"content {self.manifest.content}"

    def publish(self) -> Receipt:
        """Publish the release unless its tag exists already, from any intermediate state of the repository."""
        attempts = Attempts(self.hub.name)
        for _ in range(_STEPS):
            try:
                refs = self.hub.refs()
                if self.tag in refs.tags:
                    if receipt := self._published(refs):
                        return receipt
                else:
                    self._advance(refs)
            except FAILURES as error:
                if isinstance(error, CHANGED):
                    self.checked = None
                attempts.wait(error, f"publish {self.tag} in")
        raise RunError(
            f"could not publish {self.tag} in {self.hub.name}: the Hub does not show what was written to it, or others "
            "change it all the time; run the same command again to continue"
        )

    def _advance(self, refs: Refs) -> None:
        """Send the next request that writes. The tag does not exist yet."""
        head = refs.branches[MAIN]
        found = self._at(head)
        self._refuse_other_data(found, head)
        if self.checked is not None:
            self.created = True  # also when there is no answer
            self.created = self.hub.create_tag(self.tag, self.checked)
        elif found.manifest is not None and self._is_newer(found.manifest):
            self._advance_beside(refs)
        elif found.manifest is not None and self._contradicts(found.manifest):
            raise UserError(f"{self._other_content(head)}, the head of main: its publication has not ended")
        else:
            self.checked = head if self._is_intact(head) else self._commit(MAIN, head)

    def _advance_beside(self, refs: Refs) -> None:
        """Send the next request that writes for a version that is older than the one on main."""
        head = refs.branches.get(self.side_branch)
        if head is None:
            self.hub.create_branch(self.side_branch, refs.branches[MAIN])
        else:
            self.checked = head if self._is_intact(head) else self._commit(self.side_branch, head)

    def _is_newer(self, other: Manifest) -> bool:
        return version_order(other.version) > version_order(self.manifest.version)

    def _contradicts(self, other: Manifest) -> bool:
        return other.version == self.manifest.version and other.content != self.manifest.content

    def _published(self, refs: Refs) -> Receipt | None:
        """Return the receipt of the tagged release; None after a commit to main, which had other rows as this version.

        Raises:
            UserError: when the tag has other content, or lacks files.
        """
        commit = refs.tags[self.tag]
        found = self._at(commit)
        if found.manifest is None or found.manifest.content != self.manifest.content:
            self._withdraw(refs)
            raise UserError(self._other_content(commit))
        if not self._is_intact(commit):
            raise UserError(
                f"{self.hub.name}: commit {commit} of {self.tag} does not have the files that its manifest names: "
                "raise `version:` in the pipeline, or delete the tag if nobody uses it and publish again"
            )
        if self.side_branch in refs.branches:
            self.hub.delete_branch(self.side_branch)
        head = refs.branches[MAIN]
        main = self._at(head).manifest
        if main is not None and self._contradicts(main):
            self._commit(MAIN, head)
            return None
        return Receipt(
            repo=self.hub.name,
            version=self.manifest.version,
            commit=commit,
            tag=self.tag,
            url=f"{self.hub.url}/tree/{self.tag}",
            files=found.manifest.files,
            created=self.created,
            newest="" if main is None else main.version,
        )

    def _other_content(self, commit: str) -> str:
        return (
            f"{self.hub.name} has {self.tag} with other content, and a published version is never changed: raise "
            f"`version:` in the pipeline (the other one is in commit {commit})"
        )

    def _commit(self, branch: str, head: str) -> str:
        """Return a new commit on `head` with exactly this release; undo it when it has not.

        The request is not idempotent, and the Hub can fail after creating the commit: then the branch is read again.
        """
        lines = [line.path for line in self.manifest.files]
        added = {path: self.folder / path for path in (*lines, MANIFEST)}
        deleted = [path for path in self._at(head).files if path.startswith(_DATA) and path not in added]
        made = self.hub.commit(branch, head, added, deleted, self.title, self.description)
        if not self._is_intact(made):
            if [one.id for one in self.hub.history(made)[:2]] != [made, head]:
                raise MovedError("the head of another client is there")
            self._undo(branch, made, head)
        return made

    def _undo(self, branch: str, made: str, before: str) -> None:
        """Take back a commit that does not have the files that were sent.

        Raises:
            RunError: always: what was done, and what is left to do.
        """
        fault = f"{self.hub.name}: commit {made} does not have the files that were sent; no tag was created"
        if branch != MAIN:
            self.hub.delete_branch(branch)
            raise RunError(f"{fault}, and main was not changed: run the same command again")
        if not self._restored(made, before):
            raise RunError(
                f"{fault}. It is on main and could not be undone, because there are other commits on it or the Hub "
                f"failed. Undo it with: GIT_LFS_SKIP_SMUDGE=1 git clone {self.hub.url} fix && git -C fix revert "
                f"--no-edit {made} && git -C fix push"
            )
        raise RunError(f"{fault}, and main was put back to {before}: run the same command again")

    def _restored(self, made: str, before: str) -> bool:
        """Put main back from `made` to the files of `before`, unless it has moved; return whether it has them."""
        try:
            with suppress(*FAILURES):  # it may have been done: main is read again
                self.hub.restore(MAIN, made, before, f"Revert {self.title}")
            return self._at(self.hub.refs().branches[MAIN]).files == self._at(before).files
        except (RunError, UserError):
            return False

    def _withdraw(self, refs: Refs) -> None:
        """Remove what this publication has committed, when another one has won its tag."""
        if self.side_branch in refs.branches:
            self.hub.delete_branch(self.side_branch)
        if self.checked is not None and refs.branches[MAIN] == self.checked:
            self._restored(self.checked, self.hub.history(self.checked)[1].id)

    def _at(self, commit: str) -> _Found:
        """Return the content of a commit, which never changes."""
        if commit not in self._found:
            files, manifest = self.hub.files(commit), None
            if MANIFEST in files:
                with suppress(ValidationError):
                    manifest = Manifest.model_validate_json(self.hub.read(MANIFEST, commit))
            self._found[commit] = _Found(files, manifest)
        return self._found[commit]

    def _is_intact(self, commit: str) -> bool:
        """Return whether a commit has this release: the same rows, all files of its manifest, and no other data."""
        if commit not in self._intact:
            found = self._at(commit)
            lines = {} if found.manifest is None else {line.path: line.sha256 for line in found.manifest.files}
            self._intact[commit] = (
                found.manifest is not None
                and found.manifest.content == self.manifest.content
                and not any(path.startswith(_DATA) and path not in lines for path in found.files)
                and all(path in found.files and self._sha256(path, commit) == sha256 for path, sha256 in lines.items())
            )
        return self._intact[commit]

    def _sha256(self, path: str, commit: str) -> str:
        """Return the digest of a file of a commit; the Hub has it for large files."""
        known = self._at(commit).files[path].sha256
        return known if known is not None else hashlib.sha256(self.hub.read(path, commit)).hexdigest()

    def _refuse_other_data(self, found: _Found, head: str) -> None:
        """Refuse a repository whose files are not from a release of this dataset; they are never replaced.

        Raises:
            UserError: when the main branch has other files or another dataset.
        """
        if found.manifest is not None:
            if found.manifest.name != self.manifest.name:
                raise UserError(f"hub: {self.hub.name} has the dataset {found.manifest.name!r}; use another repository")
        elif foreign := sorted(found.files.keys() - _REPLACEABLE):
            last = self.hub.history(head)[0]
            if last.title != self.title or self.description not in last.description:  # else it lost files of this
                raise UserError(
                    f"hub: {self.hub.name} has other files ({', '.join(foreign[:3])}); use another repository"
                )
