"""The folder of a stage in a shared state: files named by their digests, and a manifest that is replaced as a whole.

Who writes a stage as a whole holds its lease (`push`). The manifest is replaced only if it is as the writer last saw
it, so that a machine that lost its lease without noticing cannot undo what its successor did. Several that divide the
shards of a stage (`store.shared.shards`) replace it one after another: each adds the shards that it has finished to
what the others have written (`push_shards`). A shard there is replaced only by one that was begun when it was there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file
from tracefactory.store.records import checked, with_checksum
from tracefactory.store.shared.objects import AT_ONCE, Objects, Unreachable, put_whole
from tracefactory.store.shared.parts import (
    IDENTITY,
    RECORD,
    Files,
    is_digest,
    is_file,
    judged_file,
    of_shard,
    of_shards,
    record_in,
    shard_of,
)
from tracefactory.store.stages import PART, ShardRecord

_ATTEMPTS = 20
_PUT_AT_ONCE = 4
"""Files that are put at the same time, each of which is in memory."""


class SharedStage:
    """One stage's folder here and in a shared state; use it from one thread.

    Args:
        folder: the folder here, which may be missing.
        objects: the shared state.
        put_completions: puts all completions that are here; called before anything made from them is put.
    """

    def __init__(self, folder: Path, objects: Objects, put_completions: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.objects = objects
        self.put_completions = put_completions
        self._etag: str | None = None  # of the manifest that was seen last
        self._shared: Files = {}
        self._bad: set[str] = set()  # digests of files there that were not what their names say
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
            wanted = {name: one for name, one in wanted.items() if name not in here and name != RECORD}
        for name in wanted:  # what marks a shard or the stage as done goes first, and is written last
            if name == RECORD or name.startswith("judged"):
                (self.folder / name).unlink(missing_ok=True)
        data = [name for name in wanted if name not in (IDENTITY, RECORD) and not name.startswith("judged")]
        marks = sorted(set(wanted) - set(data) - {RECORD})
        fetched = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for names in (data, marks, [name for name in (RECORD,) if name in wanted]):
                # What is damaged is made again from its completions, which are not paid again.
                names = [name for name in names if name in self._shared]
                whole = list(pool.map(lambda name: self._fetch(name, wanted[name]), names))
                fetched += sum(whole)
                self._shared = self._usable(self._shared)
        return fetched

    def refresh(self) -> None:
        """Look at what is in the shared state now.

        Raises:
            Unreachable: when it cannot be asked.
        """
        try:
            if self._etag is not None and self.objects.head(self._name("manifest.json")).etag == self._etag:
                return
        except FileNotFoundError:
            self._etag, self._shared = None, {}
            return
        self._read_manifest()

    def version(self, index: int, count: int) -> str | None:
        """Return what names this content of a finished shard in the shared state, as it was last seen; None without it.

        Args:
            index: the shard.
            count: the number of shards of the stage.
        """
        return self._shared.get(judged_file(index, count))

    def fetch(self, index: int, count: int, is_usable: Callable[[ShardRecord], bool]) -> bool:
        """Have a shard here as it is in the shared state if its record says that it is usable; return whether it is.

        Args:
            index: the shard, which is finished in the shared state and not worked on here.
            count: the number of shards of the stage.
            is_usable: whether its rows can be used by this run.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        wanted = of_shard(self._shared, index, count)
        if not wanted:
            return False
        if all((self.folder / name).exists() and self._digest(self.folder / name) == wanted[name] for name in wanted):
            record = record_in(self.folder / judged_file(index, count))
            return record is not None and is_usable(record)
        contents: dict[str, bytes] = {}
        for name in sorted(wanted):  # what marks the shard as done is read first
            content = self._content(wanted[name])
            if content is None:
                self._shared = self._usable(self._shared)
                return False
            if not contents and ((record := record_in(content)) is None or not is_usable(record)):
                return False
            contents[name] = content
        (self.folder / judged_file(index, count)).unlink(missing_ok=True)
        for name in sorted(contents, reverse=True):  # and written last
            self._write(name, contents[name])
        return True

    def is_ahead(self) -> bool:
        """Return whether the stage is finished here and, as far as is known, not in the shared state."""
        return RECORD not in self._shared and (self.folder / RECORD).exists()

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
        if not self._put(new):
            return 0  # it is being written anew; the next call puts it
        for _ in range(_ATTEMPTS):
            seen = self._etag
            if self._replace(files):
                return len(new)
            self._read_manifest()
            if self._shared == files:  # it was written, and the answer was lost
                return len(new)
            if self._etag != seen:
                raise self._lost()
            # Nobody wrote it: a store may refuse a condition that holds, while another request goes on.
        raise Unreachable(f"{self._url}: could not be replaced in {_ATTEMPTS} attempts")

    def push_shards(self, count: int, finished: Mapping[int, str | None]) -> dict[int, str]:
        """Put shards that this machine has finished, and the record of the stage once all shards are there.

        What other machines have put stays, but for the record of a stage that is no longer finished. Returned are the
        versions of those that are there now as they are here: with these, a later call leaves alone what another
        machine makes of them.

        Args:
            count: the number of shards of the stage.
            finished: the shards, each with its `version` in the shared state when the work on it began.

        Raises:
            RunError: when another machine has put other rows of one of them meanwhile.
            Unreachable: when the shared state cannot be asked.
        """
        self.refresh()
        put: set[str] = set()
        for _ in range(_ATTEMPTS):
            merged = self._merged(count, finished)
            new = {name: one for name, one in merged.items() if one not in put and self._shared.get(name) != one}
            is_put = self._put(new)
            if is_put and (merged == self._shared or self._replace(merged)):
                here = self._files()
                names = {index: judged_file(index, count) for index in finished}
                return {index: here[name] for index, name in names.items() if merged.get(name, "") == here.get(name)}
            if is_put:
                put.update(new.values())
            self._read_manifest()  # another machine was first, or the answer was lost
        raise Unreachable(f"{self._url}: other runs wrote it during each of {_ATTEMPTS} attempts")

    def _merged(self, count: int, finished: Mapping[int, str | None]) -> dict[str, str]:
        """Return the manifest with shards that were finished here; see `push_shards`."""
        own = self._files()
        from_here = set()
        for index, base in finished.items():
            name = judged_file(index, count)
            if name in own and self.version(index, count) in (None, base, own[name]):
                from_here.add(shard_of(name))
            elif base is None or base != own.get(name):  # otherwise it was there, and was begun anew by another machine
                if self._took_theirs(index, count):
                    own = self._files()
                else:
                    from_here.add(shard_of(name))
        merged = {name: one for name, one in of_shards(self._shared, count).items() if shard_of(name) not in from_here}
        merged |= {name: one for name, one in of_shards(own, count).items() if shard_of(name) in from_here}
        is_whole = RECORD in own and merged == of_shards(own)
        if not finished and not is_whole:
            return dict(self._shared)
        there = self._shared.get(RECORD) if merged == of_shards(self._shared) else None
        merged |= {name: one for name, one in {**own, **self._shared}.items() if name == IDENTITY}
        if is_whole and (there in (None, own[RECORD]) or not self._has_same_record()):
            merged[RECORD] = own[RECORD]
        elif there is not None:
            merged[RECORD] = there
        return merged

    def _took_theirs(self, index: int, count: int) -> bool:
        """Have a shard as another machine has put it while this one did the same work; False if that one is damaged.

        Raises:
            RunError: when its rows differ, so that what was made from the own ones is of no use.
        """
        own = record_in(self.folder / judged_file(index, count))
        if own is not None and self.fetch(index, count, lambda record: record.token == own.token):
            return True
        if self.version(index, count) is not None:
            raise self._lost()
        return False

    def _has_same_record(self) -> bool:
        """Return whether the record of the stage here says the same as that in the shared state, which is then had."""
        there = self._content(self._shared[RECORD])
        try:
            own = {**checked((self.folder / RECORD).read_bytes()), "finished": 0}
            if there is None or {**checked(there), "finished": 0} != own:
                return False
        except ValueError:
            return False
        self._write(RECORD, there)
        return True

    def _lost(self) -> RunError:
        return RunError(
            f"{self._url} was written by another run meanwhile: its lease was lost. Run the same command again; "
            "nothing is paid again"
        )

    @property
    def _url(self) -> str:
        """Where the manifest is, for messages."""
        return f"{self.objects.url}/{self._name('manifest.json')}"

    def _put(self, files: Files) -> bool:
        """Put files, after the completions that they were made from; return False if one is being written anew."""

        def put(name: str) -> bool:
            content = (self.folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != files[name]:
                return False
            if distrusts:
                self.objects.delete(self._name(files[name]))
            put_whole(self.objects, self._name(files[name]), content)
            self._bad.discard(files[name])
            return True

        distrusts = bool(self._bad)
        if files:
            self.put_completions()
        with ThreadPoolExecutor(_PUT_AT_ONCE) as pool:
            return all(list(pool.map(put, files)))

    def _replace(self, files: Files) -> bool:
        """Replace the manifest if it is as it was last seen, and return whether it was."""
        content = json.dumps(with_checksum({"files": files}), sort_keys=True).encode()
        name = self._name("manifest.json")
        create = self._etag is None
        etag = self.objects.create(name, content) if create else self.objects.replace(name, content, str(self._etag))
        if etag is None:
            return False
        self._etag, self._shared = etag, files
        return True

    def _read_manifest(self) -> None:
        self._etag, self._shared = None, {}
        try:
            content, head = self.objects.get(self._name("manifest.json"))
        except FileNotFoundError:
            return
        self._etag = head.etag
        try:
            files = checked(content)["files"]
            if all(is_file(name) and is_digest(one) for name, one in files.items()):
                self._shared = self._usable(files)
        except (ValueError, KeyError, AttributeError, TypeError):
            return  # a torn manifest: the stage is put anew

    def _usable(self, files: Files) -> Files:
        """Return what is usable of a manifest: a shard of which a file is damaged is not, nor is its stage finished."""
        bad = {shard_of(name) for name, one in files.items() if one in self._bad}
        if not bad:
            return files
        return {name: one for name, one in files.items() if name != RECORD and shard_of(name) not in bad}

    def _is_further(self, here: Files) -> bool:
        """Return whether the shared state is further with this stage than the folder here."""
        if RECORD not in self._shared or self._shared[RECORD] == here.get(RECORD):
            return False
        if RECORD not in here:
            return True
        try:
            theirs = checked(self.objects.get(self._name(self._shared[RECORD]))[0])
            own = checked((self.folder / RECORD).read_bytes())
            return bool(_owed(theirs) < _owed(own))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _files(self) -> dict[str, str]:
        """Return the files here that are shared: of finished shards alone."""
        found = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if not is_file(path.name):
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
        """Fetch one file, and return whether it is whole."""
        if (content := self._content(sha256)) is None:
            return False
        self._write(name, content)
        return True

    def _content(self, sha256: str) -> bytes | None:
        """Return one file of the shared state; one that is damaged is deleted there, for which None is returned."""
        try:
            content, _ = self.objects.get(self._name(sha256))
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != sha256:
            self._bad.add(sha256)
            self.objects.delete(self._name(sha256))
            return None
        return content

    def _write(self, name: str, content: bytes) -> None:
        with whole_file(self.folder / name) as temporary:
            temporary.write_bytes(content)

    def _name(self, file: str) -> str:
        return f"stages/{self.folder.name}/{file}"


def _owed(record: Mapping[str, Any]) -> int:
    return int(record["tally"].get("owed", 0))
