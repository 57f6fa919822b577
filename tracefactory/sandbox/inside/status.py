"""What the processes of the sandbox agree on."""

from __future__ import annotations

import os
from typing import Any

STATUS = {"tests_time": 123, "cpu_time": 124, "left": 125, "refused": 126, "stopped": 127, "broken": 128}
"""Exit codes of the sandbox for what ended the program. "left": it exited, or closed its pipes, before the tests ended;
"refused": a protection is missing, and nothing was run; "stopped": it stopped itself or the tests with a signal;
"broken": the sandbox itself failed."""
MOST_DESCRIPTORS = 1 << 20
"""More descriptors than a process has."""


def tell(result_fd: int, reply: dict[str, Any]) -> None:
    """Write a reply to the process that watches the sandbox.

    Args:
        result_fd: the descriptor to write to.
        reply: plain data, with the token that says that it is from outside of the program.
    """
    os.write(result_fd, repr(reply).encode() + b"\n")
