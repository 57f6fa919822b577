"""Leases: one writer per stage, ended by its process's end, never taken over while orphans still write."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tracefactory.store import leases
from tracefactory.store.leases import Lease, RunLock


def hold(root: Path, folder: Path, run: str, held: Event) -> None:
    """Hold a lease in another process until it is killed."""

    async def wait() -> None:
        lock = RunLock(root, run)
        async with Lease(root, folder, run, lambda text: None):
            held.set()
            await asyncio.sleep(60)
        lock.close()

    asyncio.run(wait())


def stay_alive(root: Path, run: str, held: Event) -> None:
    """Be a worker of a run."""
    lock = RunLock(root, run)
    held.set()
    time.sleep(60)
    lock.close()


def started(target: object, *arguments: object) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=target, args=(*arguments, held))  # type: ignore[arg-type]
    process.start()
    assert held.wait(60)
    return process


async def taken(root: Path, folder: Path, output: list[str], seconds: float) -> bool:
    """Tell whether a lease can be had within some seconds."""
    try:
        async with asyncio.timeout(seconds):
            async with Lease(root, folder, "mine", output.append):
                return True
    except TimeoutError:
        return False


async def test_a_lease_is_waited_for_and_freed_by_kill_9(tmp_path: Path) -> None:
    folder, output = tmp_path / "stages" / "s-1", []
    holder = started(hold, tmp_path, folder, "theirs")
    assert not await taken(tmp_path, folder, output, 1.0)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert await taken(tmp_path, folder, output, 10.0)
    assert output == [
        f"s-1: waiting for run theirs (process {holder.pid} on {os.uname().nodename}), which is writing it"
    ]


async def test_orphan_workers_of_a_dead_run_are_waited_for(tmp_path: Path) -> None:
    folder, output = tmp_path / "stages" / "s-1", []
    orphan = started(stay_alive, tmp_path, "theirs")
    holder = started(hold, tmp_path, folder, "theirs")
    holder.kill()
    holder.join()
    assert not await taken(tmp_path, folder, output, 1.0)
    assert "whose workers are still finishing" in output[0]
    orphan.kill()
    orphan.join()
    assert await taken(tmp_path, folder, output, 10.0)


async def test_a_lease_of_another_host_is_waited_for_until_its_heart_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_S", 0.5)
    folder, output = tmp_path / "stages" / "s-1", []
    folder.mkdir(parents=True)
    lease = folder / "lease.json"
    lease.write_text(json.dumps({"run": "theirs", "host": "elsewhere", "pid": 1}))
    os.utime(lease, (0, 0))  # how old it looks does not matter: clocks differ
    assert not await taken(tmp_path, folder, output, 0.3)
    until = "until it ends or shows no sign of life for 0.5 s"
    assert output == [f"s-1: waiting for run theirs (process 1 on elsewhere), {until}"]
    assert await taken(tmp_path, folder, output, 10.0)


async def test_a_lease_given_back_is_free_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "s-1"
    async with Lease(tmp_path, folder, "mine", pytest.fail):
        assert json.loads((folder / "lease.json").read_text())["run"] == "mine"
    async with Lease(tmp_path, folder, "another", pytest.fail):
        pass
