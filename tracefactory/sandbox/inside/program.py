"""The process of the program: run it, then execute what the tests ask of its objects."""

from __future__ import annotations

import os
import socket
import sys
import types

from tracefactory.sandbox.inside.calls import Server
from tracefactory.sandbox.inside.status import MOST_DESCRIPTORS


def serve(end: socket.socket, code: str) -> None:
    """Run a program as the module `solution`, then serve the calls of the tests until they have ended. Never returns.

    Args:
        end: the program's end of the socket.
        code: the program.
    """
    os.closerange(3, end.fileno())
    os.closerange(end.fileno() + 1, MOST_DESCRIPTORS)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.argv = ["solution.py"]
    exec(compile(code, "solution.py", "exec"), module.__dict__)
    Server(end).serve(dict(module.__dict__))
    sys.stdout.flush()
    os._exit(0)
