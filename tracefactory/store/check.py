"""Reading everything that is stored, to find damage. Nothing is written, and only one row group is in memory at a time.

Journals are read line by line, segments and parts of stages row group by row group with their page checksums. The rows
of a segment are compared with the digest in its name, those of a shard with the digest in its record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pyarrow.parquet as pq

from tracefactory.core.digests import combined_digest, table_digest
from tracefactory.core.errors import RunError
from tracefactory.core.keys import KEY_VERSION, stage_key
from tracefactory.core.tables import Table
from tracefactory.store.damage import Damage, reading
from tracefactory.store.indexes import prefixes_of
from tracefactory.store.journals import PREFIX, SUFFIX, Line, check_request, read_lines
from tracefactory.store.leases import is_locked, owner_in
from tracefactory.store.records import read_record
from tracefactory.store.requests import OWED
from tracefactory.store.segments import V1_PREFIX, Segment, content_name
from tracefactory.store.spend import Ledger
from tracefactory.store.stages import PART, StageFolder, StageRecord, damage_of_part, stage_digest

_UNUSED = "it is not used"
_STAGE = re.compile("^(.+)-([0-9a-f]{16})$")


@dataclass
class Report:
    """The result of a check.

    Attributes:
        files: the number of files that were read.
        completions: the number of completions that can be read.
        lost: the number of completions that cannot be read, as far as they can be counted.
        damage: all damage.
    """

    files: int = 0
    completions: int = 0
    lost: int = 0
    damage: list[Damage] = field(default_factory=list)


def check(root: Path, progress: Callable[[Path], None] = lambda path: None) -> Report:
    """Read everything in a state folder.

    Args:
        root: the state folder.
        progress: is told each file before it is read.

    Raises:
        RunError: when the operating system refuses to read a file.
    """
    report = Report()
    for path in sorted(_files(root / "requests")):
        progress(path)
        report.files += 1
        _check_request_file(path, report)
    for folder in sorted(_folders(root / "stages")):
        progress(folder)
        _StageCheck(folder, report)()
    for path in sorted(_files(root / "stages")):
        report.damage.append(Damage(path, "the whole file", "not a file of the store", _UNUSED))
    for folder in sorted(_folders(root / "runs")):
        progress(folder)
        for name in ("outcome.json", "plan.json"):
            report.files += 1
            read_record(folder / name, "the run cannot be shown; nothing is owed", report.damage.append)
    for path in sorted(_files(root / "spend")):
        progress(path)
        report.files += 1
        if path.suffix == ".ledger":
            report.damage += _damage_of_ledger(root, path)
        elif path.suffix != ".lock":
            report.damage.append(Damage(path, "the whole file", "not a file of the store", _UNUSED))
    for path in sorted(_files(root / "batches")):
        if path.suffix == ".json":
            progress(path)
            report.files += 1
            report.damage += _damage_of_batch(path)
    for folder in sorted(_folders(root / "scores")):
        for path in sorted(_files(folder)):
            progress(path)
            report.files += 1
            for one in damage_of_part(path):
                report.damage.append(Damage(path, one.place, one.what, "its scores are measured again"))
    return report


def _check_request_file(path: Path, report: Report) -> None:
    with suppress(FileNotFoundError):  # compacted in the meantime
        if path.name.startswith(PREFIX) and path.suffix == SUFFIX:
            _check_journal(path, report)
        elif path.suffix == ".parquet":
            _check_segment(path, report)
        elif path.suffix != ".index":
            report.damage.append(Damage(path, "the whole file", "not a file of the store", _UNUSED))
        elif not path.with_suffix(".parquet").exists():
            report.damage.append(Damage(path, "the whole file", "the index of no segment", _UNUSED))


def _check_journal(path: Path, report: Report) -> None:
    try:
        for one in read_lines(path, closed=not is_locked(path)):
            if isinstance(one, Line):
                report.completions += 1
            else:
                report.lost += max(1, one.content.count(b'{"key":"'))
                report.damage.append(Damage(path, f"byte {one.start}", one.why, OWED))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise RunError(f"{path} cannot be read: {error.strerror}") from error


def _check_segment(path: Path, report: Report) -> None:
    before = len(report.damage)
    segment = Segment(path, report.damage.append, writes=False)
    unindexed = 0

    def rows() -> Iterator[tuple[str, bytes]]:
        nonlocal unindexed
        for _, key, record in segment.whole_rows():
            report.completions += 1
            unindexed += bool((segment.rows_of(prefixes_of([key])) < 0)[0])
            yield key, record

    name = content_name(rows())
    report.lost += segment.lost
    segment.close()
    if unindexed:
        what = f"it lacks {unindexed} keys of its segment"
        report.damage.append(
            Damage(path.with_suffix(".index"), "the whole file", what, "their requests are owed again")
        )
    if len(report.damage) == before and name != path.stem and not path.name.startswith(V1_PREFIX):
        what = "its content is not that which its name says"
        report.damage.append(Damage(path, "the whole file", what, "its completions may have been changed"))


def _damage_of_ledger(root: Path, path: Path) -> list[Damage]:
    found: list[Damage] = []
    ledger = Ledger(root, path.stem, met=found.append)
    ledger.close()
    spent = ledger.totals().values()
    requests, usd = sum(one.requests for one in spent), sum(one.usd for one in spent)
    counted = f"what was spent counts as at least {requests:,} requests and {usd:,.4f} US dollars"
    return [replace(one, consequence=counted) for one in found]


def _damage_of_batch(path: Path) -> list[Damage]:
    """Return the damage of an entry of the ledger of batches, see `serving.batches.ledger`."""
    place = "the whole file"
    try:
        entry = orjson.loads(path.read_bytes())
        if not isinstance(entry, dict) or entry.get("id") != path.stem or "state" not in entry:
            raise ValueError("it is not the entry of this batch")
        if entry["state"] == "stored":
            return []
        path = path.with_name(f"{path.stem}.requests.jsonl")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                place = f"line {number}"
                stored = orjson.loads(line)
                check_request(stored["key"], stored)
    except FileNotFoundError:
        return [Damage(path, "the whole file", "it is missing", _BATCH)]
    except (ValueError, KeyError, TypeError) as error:
        return [Damage(path, place, str(error), _BATCH)]
    return []


_BATCH = "no request goes to its model: restore it, or delete the entry of the batch to pay for its requests again"


class _StageCheck:
    """The check of one stage's folder."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path, self.report = path, report
        match = _STAGE.match(path.name)
        self.key = match[2] if match else ""
        self.folder = StageFolder(path.parents[1], match[1] if match else path.name, self.key.ljust(64, "0"))
        self.broken: set[Path] = set()

    def __call__(self) -> None:
        if not self.key:
            self._met(self.path, "the whole folder", "not the folder of a stage", _UNUSED)
            return
        identity, record = self.folder.identity(), self.folder.record()
        files = sorted(_files(self.path))
        current = identity is not None and identity.get("key_version") == KEY_VERSION
        for path in files:
            self.report.files += 1
            self._file(path)
        if record is not None and "identity.json" not in {path.name for path in files}:
            self._met(self.path / "identity.json", "the whole file", "it is missing", _UNFINISHED)
        if current and identity is not None:
            content = {name: value for name, value in identity.items() if name not in ("key_version", "parameters")}
            if stage_key(content)[:16] != self.key:
                self._met(self.path / "identity.json", "the whole file", "it is that of another stage", _UNFINISHED)
            self._shards(files, record)
        self.report.damage += self.folder.damage

    def _file(self, path: Path) -> None:
        if PART.match(path.name):
            for damage in damage_of_part(path):
                self.broken.add(path)
                self.report.damage.append(damage)
        elif path.name == "lease.json":
            try:
                owner_in(path.read_bytes().decode())
            except ValueError as error:
                self._met(path, "the whole file", f"not a lease ({error})", "the next run waits up to a minute")
        elif path.name not in ("identity.json", "record.json"):
            self._met(path, "the whole file", "not a file of a stage", _UNUSED)

    def _shards(self, files: list[Path], record: StageRecord | None) -> None:
        """Compare the rows of each finished shard with its record, and the shards with the record of the stage."""
        digests: dict[tuple[int, int], str] = {}
        for path in files:
            match = PART.match(path.name)
            if match is None or match[1] != Table.JUDGED or path in self.broken:
                continue
            index, count = int(match[2]), int(match[3])
            if (shard := self.folder.shard_record(index, count)) is None:
                continue
            digests[index, count] = shard.digest
            parts = [one for one in (self.folder.part(table, index, count) for table in Table) if one.exists()]
            if not self.broken & set(parts) and _digest_of(parts) != shard.digest:
                named = " and ".join(one.name for one in parts)
                self._met(parts[0], "its rows", f"the rows of {named} are not those of the shard record", _UNFINISHED)
        if record is None:
            return
        own = [digests.get((index, record.shards)) for index in range(record.shards)]
        for index, one in enumerate(own):
            part = self.folder.part(Table.JUDGED, index, record.shards)
            if one is None and part not in self.broken and part not in {known.path for known in self.folder.damage}:
                self._met(part, "the whole file", "it is missing", _UNFINISHED)
        known = [one for one in own if one is not None]
        if len(known) == len(own) and stage_digest(known, record.inputs) != record.digest:
            self._met(self.path / "record.json", "digest", "it is not that of its shards", _UNFINISHED)

    def _met(self, path: Path, place: str, what: str, consequence: str) -> None:
        self.report.damage.append(Damage(path, place, what, consequence))


_UNFINISHED = "its stage has to be made again, without paying"


def _digest_of(parts: list[Path]) -> str:
    digests: list[str] = []
    for path in parts:
        with reading(path):
            file = pq.ParquetFile(path)
            digests += [table_digest(file.read_row_group(number)) for number in range(file.num_row_groups)]
    return combined_digest(digests)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder but for hidden ones, which are temporary."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
