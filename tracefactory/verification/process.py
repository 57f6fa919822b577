"""The worker process of the pool, for code that can hang: one task per input line, one verdict per output line.

Three mechanisms end it regardless of its Python code: the pool kills it at the deadline; a kernel timer with its
default action ends it shortly after; and when the parent dies, in any way, the kernel signals the hang-up of a pipe,
again with the default action.
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

from tracefactory.core.plugins import activate
from tracefactory.core.rows import Outcome
from tracefactory.sandbox.protections import allow_missing
from tracefactory.verification.base import VerifyTask, resolve

MEMORY_LIMIT = 4 << 30
"""Bytes of address space of one worker."""


def main() -> None:
    """Serve tasks until the input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not go to the replies
    _bind_to_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        message = json.loads(line)
        if "plugins" in message:
            activate(Path(message["plugins"]["root"]), message["plugins"]["sources"])
        allow_missing(message["allow"])
        task = VerifyTask.model_validate(message["task"])
        verifier, params = resolve(task)
        verifier.prepare()
        _reply(replies, {"started": True})
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, message["deadline"])
        try:
            verdict = verifier.quick(task, params) or verifier.full(task, params)
        except (Exception, RecursionError) as error:  # noqa: BLE001  # recorded as the row's verdict
            detail = f"{type(error).__name__}: {error}"[:500]
            verdict = verifier.verdict(Outcome.VERIFIER_ERROR, "exception", detail=detail)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, verdict.model_dump(mode="json"))


def _bind_to_parent(lifeline: int) -> None:
    """Let the kernel send SIGIO, which ends this process, when the other end of `lifeline` is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() == 1:
        raise SystemExit("the parent process has exited")


def _reply(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
