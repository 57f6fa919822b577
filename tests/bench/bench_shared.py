"""A shared state on a local server of the S3 protocol: what its objects cost in requests and time.

Shares and counts are of one run; times depend on the machine and on the distance to the store.
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.s3_server import BUCKET, S3Server, Stored, environment, running
from tracefactory.store.requests import RequestStore
from tracefactory.store.segments import write_segment
from tracefactory.store.shared import reading
from tracefactory.store.shared.cloud import connect
from tracefactory.store.shared.compaction import MERGED_BYTES, Compaction
from tracefactory.store.shared.completions import SEGMENT_BYTES, SharedCompletions
from tracefactory.store.shared.reading import put_segment

pytestmark = pytest.mark.bench

RECORDS, RECORD_BYTES = 8_000, 10_000
SEGMENTS = 2_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running(S3Server()) as one:
        for name, value in environment(one).items():
            monkeypatch.setenv(name, value)
        yield one
    reading._objects_of.cache_clear()


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def text(number: int) -> str:
    """Return hexadecimal digits, which zstd halves: text of models is compressed more."""
    return "".join(hashlib.sha256(f"{number}-{part}".encode()).hexdigest() for part in range(RECORD_BYTES // 64))


def test_putting_and_fetching(tmp_path: Path, server: S3Server) -> None:
    """Put the completions of one machine, and read all of them on another."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "requests").mkdir(parents=True)
    records = [(f"p{n // 4:06d}", key(n), orjson.dumps({"text": text(n)})) for n in range(RECORDS)]
    write_segment(one / "requests", records, {2})
    objects = connect(f"s3://{BUCKET}/state")
    sender, receiver = SharedCompletions(one, objects), SharedCompletions(two, objects)
    started = time.perf_counter()
    sender.push(flush=True)
    put = time.perf_counter() - started
    size = sum(len(stored.content) for stored in server.objects.values())
    print(
        f"\nput: {RECORDS:,} completions of {RECORD_BYTES / 1000:.0f} KB in {put:.1f} s: {RECORDS / put:,.0f} a second,"
        f" {len(server.objects)} objects, {size / 1e6:.0f} MB; requests {dict(server.asked)}"
    )
    server.asked.clear()
    started = time.perf_counter()
    receiver.pull()
    pulled = time.perf_counter() - started
    print(f"pull: {pulled:.2f} s, {100 * pulled / put:.0f}% of putting; requests {dict(server.asked)}")
    store = RequestStore(two)
    started = time.perf_counter()
    keys = [key(n) for n in range(RECORDS)]
    assert len(store.present(keys)) == RECORDS
    known = time.perf_counter() - started
    server.asked.clear()
    started = time.perf_counter()
    assert sum(len(store.get(keys[at : at + 256])) for at in range(0, RECORDS, 256)) == RECORDS
    read = time.perf_counter() - started
    print(f"known: {known:.2f} s; read: {read:.1f} s, {100 * read / put:.0f}% of putting; {dict(server.asked)}")
    for each in (store, sender, receiver):
        each.close()


def test_merging_small_segments(tmp_path: Path, server: S3Server) -> None:
    """Merge segments as they are put into one of the full size, and look at the time, memory and requests it takes."""
    (tmp_path / "requests").mkdir()
    objects = connect(f"s3://{BUCKET}/state")
    shared = SharedCompletions(tmp_path, objects)
    each = SEGMENT_BYTES // RECORD_BYTES
    for number in range(MERGED_BYTES // SEGMENT_BYTES + 1):
        records = [("", key(n), orjson.dumps({"text": text(n)})) for n in range(number * each, (number + 1) * each)]
        path = write_segment(tmp_path, records, {2})
        put_segment(objects, path)
    shared.pull()
    server.asked.clear()
    before, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(map(len_of, server.objects.values()))
    started = time.perf_counter()
    merged = Compaction(shared.folder, objects).merge(time.time())
    took = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    stored = sum(map(len_of, server.objects.values())) - size
    print(
        f"\nmerged: {merged} segments of {each} completions of {RECORD_BYTES / 1000:.0f} KB in {took:.1f} s into "
        f"{stored / 1e6:.0f} MB; the peak of memory grew by {grown / 1024:.0f} MB; requests {dict(server.asked)}"
    )
    assert merged >= MERGED_BYTES // SEGMENT_BYTES
    shared.close()


def len_of(stored: Stored) -> int:
    return len(stored.content)


def test_looking_up_in_many_segments(tmp_path: Path, server: S3Server) -> None:
    """Look 256 requests up, as a batch of a stage does, among many segments of which only the indexes are here."""
    (tmp_path / "requests").mkdir()
    shared = SharedCompletions(tmp_path, connect(f"s3://{BUCKET}/state"))
    for number in range(SEGMENTS):
        records = [("", key(1000 * number + n), b'{"number": 1}') for n in range(20)]
        path = write_segment(tmp_path, records, {2}).with_suffix(".index")
        path.rename(shared.folder / path.name)
    store = RequestStore(tmp_path)
    started = time.perf_counter()
    store.refresh()
    opened = time.perf_counter() - started
    wanted = [key(1000 * number) for number in range(128)] + [key(-number) for number in range(1, 129)]
    started = time.perf_counter()
    assert len(store.present(wanted)) == 128
    looked = time.perf_counter() - started
    print(f"\n{SEGMENTS:,} segments: opened in {opened:.2f} s, 256 requests looked up in {looked * 1000:.0f} ms")
    store.close()
    shared.close()
