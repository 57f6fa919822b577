"""What the processes of the sandbox agree on."""

from __future__ import annotations

STATUS = {"tests_time": 123, "cpu_time": 124, "left": 125, "refused": 126, "stopped": 127, "broken": 128}
"""Exit codes of the sandbox for what ended the program. "left": it exited, or closed its pipes, before the tests ended;
"refused": a protection is missing, and nothing was run; "stopped": it stopped itself or the tests with a signal;
"broken": the sandbox itself failed."""
MOST_DESCRIPTORS = 1 << 20
"""More descriptors than a process has."""
