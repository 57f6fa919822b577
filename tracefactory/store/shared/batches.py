"""Batches that were submitted to a provider, in a shared state: of a machine that is lost, another one fetches them.

    batches/<id>.json      the entry of the ledger (`serving.batches.ledger`), and the state folder that works on it
    batches/<id>.requests  its requests
    leases/batches/<folder>/<run>.json   held by a run; while one of a folder is, its entries are not taken over

Entries are put when they change, and deleted when the completions are in the shared state. Here, `batches/<id>.shared`
beside an entry says that it was put: an entry that is gone here was given up, one that is gone there was finished by
another machine.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from tracefactory.core.files import TEMPORARY, whole_file, write_text
from tracefactory.store.shared import leases
from tracefactory.store.shared.objects import Objects, put_whole
from tracefactory.store.shared.reading import cache_folder

_ID = re.compile("[0-9a-f]{32}")
_OWNER = "batches-owner"


class _Put(NamedTuple):
    """An entry in the shared state: the folder that works on it, and the entry as it was put."""

    holder: str
    entry: Mapping[str, Any]

    def encoded(self) -> bytes:
        return json.dumps({"holder": self.holder, "entry": self.entry}).encode()


class SharedBatches:
    """The batches of a state folder and of a shared state; use it from one thread.

    Args:
        root: the state folder.
        objects: the shared state.
        put_completions: puts all completions of the state folder.
    """

    def __init__(self, root: Path, objects: Objects, put_completions: Callable[[], None]) -> None:
        self.objects, self.folder = objects, root / "batches"
        self._put_completions = put_completions
        owner = cache_folder(root / "requests", objects.url) / _OWNER
        if not owner.exists():
            write_text(owner, uuid4().hex)
        self.holder = owner.read_text(encoding="utf-8")
        """Names this state folder."""
        self._seen: dict[str, tuple[int, int]] = {}  # the version of an entry here that was put

    def lease(self, run: str) -> str:
        """Return the name of the lease that a run holds while it works on batches."""
        return f"batches/{self.holder}/{run}"

    def pull(self, clock: Callable[[], float]) -> int:
        """Take over the batches of folders that no run works with, and return how many.

        What another machine has taken over or finished is removed here.

        Args:
            clock: returns the time of the store, in Unix seconds.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        there = [one.name.removeprefix("batches/") for one in self.objects.list("batches")]
        ids = {name.removesuffix(".json") for name in there if name.endswith(".json")}
        with self._locked():
            for entry_id in {path.stem for path in self.folder.glob("*.shared")} - ids:
                self._remove(entry_id)  # another machine has finished it
        lives: dict[str, bool] = {}
        taken = 0
        for entry_id in sorted(ids):
            if (found := self._there(entry_id)) is None:
                continue
            put, etag = found
            if put.holder not in lives:
                lives[put.holder] = put.holder != self.holder and self._lives(put.holder, clock)
            if lives[put.holder]:
                with self._locked():
                    self._remove(entry_id)
            elif put.holder != self.holder or not self._path(entry_id).exists():
                taken += self._take(entry_id, put, etag)
        return taken

    def push(self) -> None:
        """Put the batches that have changed here; those that are finished are deleted after their completions were put.

        Raises:
            Unreachable: when they could not be put.
        """
        for path in sorted(self.folder.glob(f"[!{TEMPORARY[0]}]*.json")):
            try:
                stat = path.stat()
                version = (stat.st_mtime_ns, stat.st_ino)
                if self._seen.get(path.stem) == version:
                    continue
                entry = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):  # given up meanwhile, or damaged, which the ledger reports
                continue
            if isinstance(entry, dict) and _ID.fullmatch(path.stem):
                if entry.get("state") != "stored":
                    self._put(path.stem, entry)
                elif path.with_suffix(".shared").exists():
                    self._put_completions()
                    self._delete(path.stem)
            self._seen[path.stem] = version
        for marker in self.folder.glob("*.shared"):
            if not marker.with_suffix(".json").exists():  # given up here
                self._delete(marker.stem)

    def _put(self, entry_id: str, entry: Mapping[str, Any]) -> None:
        """Put an entry, after its requests; one that another machine has taken over or finished is left alone."""
        content = _Put(self.holder, entry).encoded()
        found = self._there(entry_id)
        if found is None and not self._path(entry_id).with_suffix(".shared").exists():
            try:
                requests = self._path(entry_id).with_suffix(".requests.jsonl").read_bytes()
            except FileNotFoundError:  # given up meanwhile
                return
            put_whole(self.objects, _name(entry_id, "requests"), requests)
            self.objects.create(_name(entry_id), content)
        elif found is not None and found[0].holder == self.holder:
            self.objects.replace(_name(entry_id), content, found[1])
        self._path(entry_id).with_suffix(".shared").touch()

    def _take(self, entry_id: str, put: _Put, etag: str) -> int:
        """Take over an entry unless another machine does; return how many were taken."""
        if put.holder == self.holder and self._path(entry_id).with_suffix(".shared").exists():
            return 0  # given up here, or deleted by the user
        try:
            requests, _ = self.objects.get(_name(entry_id, "requests"))
        except FileNotFoundError:
            return 0  # it is being deleted
        if self.objects.replace(_name(entry_id), put._replace(holder=self.holder).encoded(), etag) is None:
            return 0
        with self._locked():
            for suffix, content in ((".requests.jsonl", requests), (".json", json.dumps(put.entry).encode())):
                with whole_file(self._path(entry_id).with_suffix(suffix)) as temporary:
                    temporary.write_bytes(content)
            self._path(entry_id).with_suffix(".shared").touch()
        return 1

    def _there(self, entry_id: str) -> tuple[_Put, str] | None:
        """Return an entry of the shared state and its etag; None when it is missing or damaged."""
        try:
            content, head = self.objects.get(_name(entry_id))
            found = json.loads(content)
            put = _Put(found["holder"], found["entry"])
            if put.entry["id"] != entry_id or not _ID.fullmatch(entry_id) or not _ID.fullmatch(put.holder):
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return put, head.etag

    def _lives(self, holder: str, clock: Callable[[], float]) -> bool:
        """Return whether a run works with the batches of a folder.

        A run renews its leases one after another, and gives up what it could not renew before it expires: so this one
        is free no later than the lease of a stage of the same run.
        """
        for one in self.objects.list(f"leases/batches/{holder}"):
            try:
                content, head = self.objects.get(one.name)
            except FileNotFoundError:
                continue
            age_s = clock() - head.modified
            if content == leases.FREE or age_s >= leases.EXPIRES_S:
                self.objects.delete(one.name)  # of a run that has ended, which never comes back
            elif age_s < leases.EXPIRES_S - leases.RENEW_S:
                return True
        return False

    def _delete(self, entry_id: str) -> None:
        found = self._there(entry_id)
        if found is not None and found[0].holder == self.holder:
            self.objects.delete(_name(entry_id))
            self.objects.delete(_name(entry_id, "requests"))
        self._path(entry_id).with_suffix(".shared").unlink(missing_ok=True)

    def _remove(self, entry_id: str) -> None:
        """Remove what is here of an entry of another machine; a receipt is kept."""
        path = self._path(entry_id)
        try:
            is_receipt = json.loads(path.read_bytes()).get("state") == "stored"
        except (FileNotFoundError, ValueError, AttributeError):
            is_receipt = False
        if path.with_suffix(".shared").exists() and not is_receipt:
            for suffix in (".json", ".requests.jsonl", ".input.jsonl"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        path.with_suffix(".shared").unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the ledger, under which requests without an entry are swept away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "ledger.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, entry_id: str) -> Path:
        return self.folder / f"{entry_id}.json"


def _name(entry_id: str, suffix: str = "json") -> str:
    return f"batches/{entry_id}.{suffix}"
