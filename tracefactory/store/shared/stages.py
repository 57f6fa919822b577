"""The folder of a stage in a shared state: files named by their digests, and a manifest that is replaced as a whole.

Who writes it holds the lease of the stage. The manifest is replaced only if it is as the writer last saw it, so that a
machine that lost its lease without noticing cannot undo what its successor did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file
from tracefactory.store.records import checked, with_checksum
from tracefactory.store.shared.objects import Objects, put_whole
from tracefactory.store.shared.retired import AT_ONCE
from tracefactory.store.stages import PART

_RECORD, _IDENTITY = "record.json", "identity.json"
_DIGITS = frozenset("0123456789abcdef")

Files = Mapping[str, str]
"""Digests (SHA-256) by the names of files."""


class SharedStage:
    """One stage's folder here and in a shared state; use it from one thread.

    Args:
        folder: the folder here, which may be missing.
        objects: the shared state.
    """

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder = folder
        self.objects = objects
        self._etag: str | None = None  # of the manifest that was seen last
        self._shared: Files = {}
        self._distrusted = False  # whether files there were not what their names say
        self._digests: dict[str, tuple[int, int, str]] = {}  # by file: time stamp, size, digest

    def pull(self) -> int:
        """Fetch the files that are not here, and return their number.

        Where both sides have a file of one name, that of the side with a finished stage counts, then that of the side
        with fewer owed rows, then the one here. Finished shards of both sides add up.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._read_manifest()
        here = self._files()
        replaces = self._is_further(here)
        wanted = {name: one for name, one in self._shared.items() if here.get(name) != one}
        if not replaces:
            wanted = {name: one for name, one in wanted.items() if name not in here and name != _RECORD}
        for name in wanted:  # what marks a shard or the stage as done goes first, and is written last
            if name == _RECORD or name.startswith("judged"):
                (self.folder / name).unlink(missing_ok=True)
        data = [name for name in wanted if name not in (_IDENTITY, _RECORD) and not name.startswith("judged")]
        marks = sorted(set(wanted) - set(data) - {_RECORD})
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for names in (data, marks, [name for name in (_RECORD,) if name in wanted]):
                whole = list(pool.map(lambda name: self._fetch(name, wanted[name]), names))
                if not all(whole):
                    self._shared, self._distrusted = {}, True
                    return 0  # the stage is made again from its completions, which are not paid again
        return len(wanted)

    def is_ahead(self) -> bool:
        """Return whether the stage is finished here and, as far as is known, not in the shared state."""
        return _RECORD not in self._shared and (self.folder / _RECORD).exists()

    def is_whole_there(self) -> bool:
        """Return whether the shared state has every file that is shared of the folder here.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._read_manifest()
        return self._files().items() <= dict(self._shared).items()

    def push(self) -> int:
        """Put the finished shards and the record of the stage as they are now, and return the number of new files.

        Raises:
            RunError: when another machine has written the stage meanwhile.
            Unreachable: when the shared state cannot be asked.
        """
        files = self._files()
        if files == self._shared:
            return 0
        new = {name: one for name, one in files.items() if self._shared.get(name) != one}
        for name, one in new.items():
            content = (self.folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != one:
                return 0  # it is being written anew; the next call puts it
            if self._distrusted:
                self.objects.delete(self._name(one))
            put_whole(self.objects, self._name(one), content)
        content = json.dumps(with_checksum({"files": files}), sort_keys=True).encode()
        name = self._name("manifest.json")
        create = self._etag is None
        etag = self.objects.create(name, content) if create else self.objects.replace(name, content, str(self._etag))
        if etag is None:
            # The answer to the first of several attempts may have been lost.
            self._read_manifest()
            if self._shared != files:
                raise RunError(
                    f"{self.objects.url}/{name} was written by another run meanwhile: its lease was lost. Run the same "
                    "command again; nothing is paid again"
                )
        else:
            self._etag, self._shared, self._distrusted = etag, files, False
        return len(new)

    def _read_manifest(self) -> None:
        self._etag, self._shared = None, {}
        try:
            content, head = self.objects.get(self._name("manifest.json"))
        except FileNotFoundError:
            return
        self._etag = head.etag
        try:
            files = checked(content)["files"]
            if all(_is_file(name) and _is_digest(one) for name, one in files.items()):
                self._shared = files
        except (ValueError, KeyError, AttributeError, TypeError):
            return  # a torn manifest: the stage is put anew

    def _is_further(self, here: Files) -> bool:
        """Return whether the shared state is further with this stage than the folder here."""
        if _RECORD not in self._shared or self._shared[_RECORD] == here.get(_RECORD):
            return False
        if _RECORD not in here:
            return True
        try:
            theirs = checked(self.objects.get(self._name(self._shared[_RECORD]))[0])
            own = checked((self.folder / _RECORD).read_bytes())
            return bool(_owed(theirs) < _owed(own))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _files(self) -> dict[str, str]:
        """Return the files here that are shared: of finished shards alone."""
        found = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if not _is_file(path.name):
                continue
            try:
                found[path.name] = self._digest(path)
            except FileNotFoundError:  # removed since it was listed
                continue
        done = {name.partition("-")[2] for name in found if name.startswith("judged-")}
        return {name: one for name, one in found.items() if not PART.match(name) or name.partition("-")[2] in done}

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        modified, size, found = self._digests.get(path.name, (0, 0, ""))
        if (modified, size) != (stat.st_mtime_ns, stat.st_size):
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            self._digests[path.name] = (stat.st_mtime_ns, stat.st_size, found)
        return found

    def _fetch(self, name: str, sha256: str) -> bool:
        """Fetch one file, and return whether it is whole; one that is not is deleted there."""
        try:
            content, _ = self.objects.get(self._name(sha256))
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != sha256:
            self.objects.delete(self._name(sha256))
            return False
        with whole_file(self.folder / name) as temporary:
            temporary.write_bytes(content)
        return True

    def _name(self, file: str) -> str:
        return f"stages/{self.folder.name}/{file}"


def _is_file(name: Any) -> bool:
    """Return whether a name is that of a file that is shared; nothing else is ever written here."""
    return name in (_RECORD, _IDENTITY) or (isinstance(name, str) and PART.match(name) is not None)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and _DIGITS.issuperset(value)


def _owed(record: Mapping[str, Any]) -> int:
    return int(record["tally"].get("owed", 0))
