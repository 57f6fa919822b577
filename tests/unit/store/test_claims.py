"""Claims: of several processes that want one request, one sends it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tracefactory.store import claims
from tracefactory.store.claims import Claim, Claims

KEYS = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(400)]


def test_a_request_in_flight_elsewhere_is_held_until_it_is_released(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    assert one.take(KEYS[0]) is Claim.TAKEN
    assert two.take(KEYS[0]) is Claim.HELD
    assert two.take(KEYS[1]) is Claim.TAKEN
    one.release(KEYS[0])
    assert two.take(KEYS[0]) is Claim.CHECK  # its completion may be stored by now
    one.close()
    two.close()
    assert not list(tmp_path.glob("*.alive"))


def test_claims_of_a_closed_process_are_void(tmp_path: Path) -> None:
    one = Claims(tmp_path)
    one.take(KEYS[0])
    one.close()
    two = Claims(tmp_path)
    assert two.take(KEYS[0]) is Claim.CHECK
    two.close()


def _hold(folder: Path, ready: object) -> None:
    Claims(folder).take(KEYS[0])
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


def test_claims_of_a_killed_process_are_void(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    own = Claims(tmp_path)
    assert own.take(KEYS[0]) is Claim.HELD
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(1.1)  # whether a process lives is looked up once a second
    assert own.take(KEYS[0]) is Claim.CHECK
    own.close()


def _take_all(folder: Path, start: object, taken: object) -> None:
    own = Claims(folder)
    start.wait()  # type: ignore[attr-defined]
    got = [key for key in KEYS if own.take(key) is not Claim.HELD]
    taken.put(got)  # type: ignore[attr-defined]
    taken.close()  # type: ignore[attr-defined]
    taken.join_thread()  # type: ignore[attr-defined]
    time.sleep(3)
    own.close()


def test_every_request_is_taken_by_exactly_one_of_three_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, taken = context.Event(), context.Queue()
    processes = [context.Process(target=_take_all, args=(tmp_path, start, taken)) for _ in range(3)]
    for process in processes:
        process.start()
    time.sleep(1.5)
    start.set()
    got = [key for _ in processes for key in taken.get(timeout=30)]
    for process in processes:
        process.join()
    assert sorted(got) == sorted(KEYS)


def test_a_rewritten_file_keeps_the_claims_that_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "ROTATE_BYTES", 3000)
    one, two = Claims(tmp_path), Claims(tmp_path)
    same = [key for key in KEYS if key[0] == KEYS[0][0]]
    assert two.take(same[0]) is Claim.TAKEN
    assert one.take(same[1]) is Claim.TAKEN
    for key in same[2:] * 3:
        assert one.take(key) is not Claim.HELD
        one.release(key)
    assert (tmp_path / f"{same[0][0]}.claims").stat().st_size < 6000
    assert one.take(same[0]) is Claim.HELD
    assert two.take(same[1]) is Claim.HELD
    assert two.take(same[2]) is Claim.CHECK  # what was rewritten away may have been this one
    one.close()
    two.close()


@pytest.mark.parametrize("garbage", [b"", b"x", b"garbage\n" * 50, bytes(range(256))])
def test_a_damaged_file_holds_nothing_and_stops_nothing(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / f"{KEYS[0][0]}.claims").write_bytes(garbage)
    one = Claims(tmp_path)
    assert one.take(KEYS[0]) is not Claim.HELD
    two = Claims(tmp_path)
    assert two.take(KEYS[0]) is Claim.HELD
    one.close()
    two.close()
