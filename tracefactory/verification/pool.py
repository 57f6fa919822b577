"""A pool of verifiers that cannot hang: fast exact rules run in-process, others in processes with a deadline.

Each slot of the pool is a thread with one worker process, connected by pipes. The pool therefore does not depend on an
event loop, the main thread or a start method, and works in Ray actors as well as in plain processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from tracefactory.core.errors import UserError
from tracefactory.core.plugins import ProjectPlugins, active
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.sandbox.protections import require
from tracefactory.verification.base import Verifier, VerifyTask, best_of, per_gold, resolve, runs_code

START_SECONDS = 120.0
"""Time for a worker to import modules on a busy machine; it does not count toward an item's deadline."""
GRACE_SECONDS = 5.0
"""Time after the deadline until the kernel ends a worker that its parent has not killed."""
QUICK_CHARS = 20_000
"""Longer answers are checked in a process with a deadline, also by rules, because rules for texts are not free."""
_YIELD_EVERY = 32
_PATIENCE = 0.5  # seconds to wait for a worker that is busy; starting one takes a second of a CPU


class _TimeoutInWorkerError(Exception):
    """The deadline passed."""


class _WorkerDiedError(Exception):
    """The worker exited: out of memory, a crash, or killed."""


class _Worker:
    """One worker process and its pipes. Not thread-safe: one thread uses it at a time."""

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = list(allow)
        reader, self._lifeline = os.pipe()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tracefactory.verification.process", str(reader)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                pass_fds=(reader,),
                start_new_session=True,
            )
        finally:
            os.close(reader)
        self._requests, self._replies = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        self._buffer = b""
        self._ready = False
        self.used = False
        """Whether it has begun a task, and with that has imported what tasks need."""
        self._plugins = ProjectPlugins(Path(), {})

    def ask(self, task: VerifyTask, deadline: float) -> Verdict:
        """Return the worker's verdict.

        Raises:
            _TimeoutInWorkerError, _WorkerDiedError: when there is none; the worker cannot be used again.
        """
        if not self._ready:
            self._read(time.monotonic() + START_SECONDS)
            self._ready = True
        message: dict[str, Any] = {
            "task": task.model_dump(mode="json"),
            "deadline": deadline + GRACE_SECONDS,
            "allow": self._allow,
        }
        if (plugins := active()) != self._plugins:
            message["plugins"] = {"root": str(plugins.root), "sources": plugins.sources}
            self._plugins = plugins
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except OSError as error:
            raise _WorkerDiedError(self.exit_report()) from error
        self._read(time.monotonic() + START_SECONDS)  # the worker imports what the task needs
        self.used = True
        return Verdict.model_validate(self._read(time.monotonic() + deadline))

    def _read(self, end: float) -> dict[str, Any]:
        descriptor = self._replies.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise _TimeoutInWorkerError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise _WorkerDiedError(self.exit_report())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def exit_report(self) -> str:
        """Kill the process; return its exit status and the end of its stderr."""
        self.kill()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 400))
        text = self._stderr.read().decode("utf-8", "replace").strip()
        return f"worker ended with {self.process.returncode}" + (f": {text}" if text else "")

    def kill(self) -> None:
        """Kill the process and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self.kill()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(BrokenPipeError):  # buffered data for a dead worker
                pipe.close()
        self._stderr.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class _Workers:
    """The workers of a pool: `live` are all of them, `idle` those without a task."""

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = allow
        self._lock = threading.Lock()
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self.live: set[_Worker] = set()
        self._closed = False

    def acquire(self) -> _Worker:
        """Return an idle worker, or a new one.

        Importing what tasks need takes seconds of a CPU, so a few short tasks should not start all workers: as many may
        be starting as have started, and an idle one is waited for shortly.

        Raises:
            _WorkerDiedError: when the pool is closed.
        """
        while True:
            try:
                return self.idle.get(timeout=_PATIENCE) if self.live else self.idle.get_nowait()
            except queue.Empty:
                with self._lock:
                    if self._closed:
                        raise _WorkerDiedError("the pool is closed") from None
                    used = sum(worker.used for worker in self.live)
                    if len(self.live) - used < max(1, used):
                        worker = _Worker(self._allow)
                        self.live.add(worker)
                        return worker

    def discard(self, worker: _Worker) -> None:
        """Close a worker that cannot be used again."""
        worker.close()
        with self._lock:
            self.live.discard(worker)

    def kill_all(self) -> None:
        """Kill all workers and start no more."""
        with self._lock:
            self._closed = True
            for worker in self.live:
                worker.kill()


class VerifierPool:
    """Checks answers; every item gets a verdict, and a time-out or crash is `verifier_error`, never `incorrect`.

    Args:
        workers: the maximum number of processes; default one per CPU, at most 8. They are started when needed.
        deadline: seconds for one item in a worker; items that run programs get at least the limits of these programs.
        allow: the protections of the sandbox that may be missing where items run programs.
    """

    def __init__(self, workers: int | None = None, deadline: float = 10.0, allow: Sequence[str] = ()) -> None:
        if deadline <= 0:
            raise UserError("a verifier's deadline must be positive")
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.deadline = deadline
        self._allow = allow
        self._processes = _Workers(allow)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="verifier")
        self._finalizer = weakref.finalize(self, _shut_down, self._processes, self._threads)

    async def verify(self, tasks: Sequence[VerifyTask]) -> list[Verdict]:
        """Return one verdict per task, in order, for the best matching gold answer of its problem.

        What a program wrote (`Verdict.log`) is left out: it is for a person who verifies one answer.

        Raises:
            UserError: when a task runs a program and the sandbox does not hold here.
        """
        required = False
        by_gold = [one for task in tasks for one in per_gold(task)]
        verdicts: list[Verdict | None] = []
        waiting: dict[int, Future[Verdict]] = {}
        try:
            for index, one in enumerate(by_gold):
                verdicts.append(_quick(one))
                if verdicts[-1] is None:
                    if not required and runs_code(one.problem.verifier):
                        await asyncio.to_thread(require, self._allow)
                        required = True
                    waiting[index] = self._threads.submit(self._full, one)
                if index % _YIELD_EVERY == _YIELD_EVERY - 1:
                    await asyncio.sleep(0)
            for index, future in waiting.items():
                done: asyncio.Future[Verdict] = asyncio.wrap_future(future)
                verdicts[index] = await done
        finally:
            for future in waiting.values():
                future.cancel()
        found = iter([_without_log(verdict) for verdict in verdicts if verdict is not None])
        return [best_of([next(found) for _ in per_gold(task)]) for task in tasks]

    def verify_now(self, task: VerifyTask) -> Verdict:
        """Return the verdict of one task; for callers without an event loop.

        Raises:
            UserError: when the task runs a program and the sandbox does not hold here.
        """
        if runs_code(task.problem.verifier):
            require(self._allow)
        return best_of([_quick(one) or self._threads.submit(self._full, one).result() for one in per_gold(task)])

    def close(self) -> None:
        """Kill all workers; running items become `verifier_error`. Can be called more than once."""
        self._finalizer()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _full(self, task: VerifyTask) -> Verdict:
        start = time.perf_counter()
        deadline = self.deadline
        worker: _Worker | None = None
        try:
            verifier, params = resolve(task)
            deadline = max(self.deadline, verifier.seconds_needed(params))
            worker = self._processes.acquire()
            verdict = worker.ask(task, deadline)
        except _TimeoutInWorkerError:
            verdict = _failed(task, "timeout", f"no verdict after {deadline:g} s")
        except (_WorkerDiedError, OSError, ValueError) as error:
            verdict = _failed(task, "crash", str(error)[:500])
        else:
            self._processes.idle.put(worker)
            worker = None
        if worker is not None:
            self._processes.discard(worker)
        return verdict.model_copy(update={"seconds": time.perf_counter() - start})


def quick_verdict(task: VerifyTask) -> Verdict | None:
    """Return the verdict for the best matching gold answer of a problem, without a process. Never raises.

    Args:
        task: the answer to check.

    Returns:
        None when a process is needed to know it.
    """
    found = [_quick(one) for one in per_gold(task)]
    verdicts = [one for one in found if one is not None]
    # An answer that is right for one gold answer is right, whatever the others are.
    decided = len(verdicts) == len(found) or any(one.outcome is Outcome.CORRECT for one in verdicts)
    return best_of(verdicts) if decided else None


def _without_log(verdict: Verdict) -> Verdict:
    return verdict if verdict.log is None else verdict.model_copy(update={"log": None})


def _quick(task: VerifyTask) -> Verdict | None:
    start = time.perf_counter()
    verifier: Verifier | None = None
    try:
        verifier, params = resolve(task)
        verdict = None if len(task.answer_text) > QUICK_CHARS else verifier.quick(task, params)
    except (Exception, RecursionError) as error:  # noqa: BLE001  # recorded as the row's verdict
        verdict = _failed(task, "exception", f"{type(error).__name__}: {error}"[:500], verifier)
    return None if verdict is None else verdict.model_copy(update={"seconds": time.perf_counter() - start})


def _failed(task: VerifyTask, method: str, detail: str, verifier: Verifier | None = None) -> Verdict:
    if verifier is None:
        with contextlib.suppress(UserError):
            verifier, _ = resolve(task)
    return Verdict(
        outcome=Outcome.VERIFIER_ERROR,
        method=method,
        verifier=task.problem.verifier or "auto",
        version=verifier.version if verifier else "",
        detail=detail,
    )


def _shut_down(processes: _Workers, threads: ThreadPoolExecutor) -> None:
    processes.kill_all()
    threads.shutdown(wait=True, cancel_futures=True)
    for worker in processes.live:
        worker.close()
    processes.live.clear()
