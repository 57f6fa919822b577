"""Leases and claims on a file system shared by hosts whose clocks differ and whose locks hold on no other host."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tracefactory.store import claims, leases
from tracefactory.store.claims import Claim, Claims
from tracefactory.store.leases import Lease

STALE_S, HEARTBEAT_S = 0.8, 0.1
SKEWS = [-300.0, 300.0]

Host = Callable[[str, float], None]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Make what follows run on a host: its name, and its clock compared with that of the file server.

    Locks hold on no other host, so that they are taken away here. Time stamps are the server's.
    """
    for module in (leases, claims):
        monkeypatch.setattr(module, "STALE_S", STALE_S)
        monkeypatch.setattr(module, "HEARTBEAT_S", HEARTBEAT_S)
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    true_time = time.time

    def host(name: str, skew_s: float) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        monkeypatch.setattr(time, "time", lambda: true_time() + skew_s)

    return host


async def had_within(lease: Lease, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await lease.__aenter__()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("skew", SKEWS)
async def test_a_live_lease_is_kept_and_a_dead_one_is_free_soon_whatever_the_clocks_say(
    tmp_path: Path, become: Host, skew: float
) -> None:
    folder, output = tmp_path / "stages" / "s-1", []
    become("one", 0.0)
    theirs = Lease(tmp_path, folder, "theirs", output.append)
    await theirs.__aenter__()
    await asyncio.sleep(2 * HEARTBEAT_S)
    become("two", skew)
    assert not await had_within(Lease(tmp_path, folder, "mine", output.append), 2 * STALE_S)
    assert "run theirs" in output[0]
    assert theirs._heartbeat is not None
    theirs._heartbeat.cancel()  # as by kill -9: nothing is given back
    mine = Lease(tmp_path, folder, "mine", output.append)
    assert await had_within(mine, 10 * STALE_S)
    await mine.__aexit__(None, None, None)
    assert theirs._file is not None
    theirs._file.close()


@contextmanager
def claims_of(folder: Path) -> Iterator[Claims]:
    one = Claims(folder)
    try:
        yield one
    finally:
        one.close()


def when_free(own: Claims, key: str, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if own.take(key) is not Claim.HELD:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("skew", SKEWS)
def test_claims_of_another_host_hold_while_it_lives_whatever_the_clocks_say(
    tmp_path: Path, become: Host, skew: float
) -> None:
    key = "ab" * 32
    become("one", 0.0)
    theirs = Claims(tmp_path)
    assert theirs.take(key) is Claim.TAKEN
    time.sleep(2 * HEARTBEAT_S)
    become("two", skew)
    with claims_of(tmp_path) as own:
        assert theirs._own.exists()  # it was not taken for a leftover
        assert not when_free(own, key, 2 * STALE_S + 1)
        theirs._closed.set()  # as by kill -9: its file stays
        assert when_free(own, key, 10 * STALE_S)
    theirs._file.close()
