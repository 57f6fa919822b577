"""The process that does what may hang: one task per line in, one verdict per line out. Started by the pool only.

Three things end it, whatever its Python code is doing: the pool kills it at the deadline; the kernel ends it a
little later by a timer with its default action; and when the parent dies, however it dies, the kernel signals the
hang-up of the pipe that holds its tasks, again with the default action.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from tracefactory.core.plugins import use
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.verification.base import Verifier, VerifyTask, resolve

MEMORY_LIMIT = 4 << 30
"""Bytes of address space of one worker."""


def main() -> None:
    """Serve tasks until the input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not a reply
    _bind_to_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        message = json.loads(line)
        if "plugins" in message:
            use(Path(message["plugins"]["root"]), message["plugins"]["sources"])
        task = VerifyTask.model_validate(message["task"])
        verifier, params = resolve(task)
        verifier.prepare()
        _reply(replies, {"started": True})
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, message["deadline"])
        verdict = _verdict(verifier, task, params)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, verdict.model_dump(mode="json"))


def _bind_to_parent(lifeline: int) -> None:
    """Let the kernel signal the end of the other end of `lifeline`; SIGIO ends a process that does not handle it."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() == 1:
        raise SystemExit("the parent is gone")


def _verdict(verifier: Verifier, task: VerifyTask, params: Frozen) -> Verdict:
    try:
        return verifier.full(task, params)
    except (Exception, RecursionError) as error:  # noqa: BLE001  # recorded as the row's verdict
        detail = f"{type(error).__name__}: {error}"[:500]
        return verifier.verdict(Outcome.VERIFIER_ERROR, "exception", detail=detail)


def _reply(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
