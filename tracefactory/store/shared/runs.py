"""The records of runs in a shared state: put when a run has ended, fetched by the others."""

from __future__ import annotations

import re
from pathlib import Path

from tracefactory.core.files import whole_file
from tracefactory.store.shared.objects import Objects, put_whole

FILES = ("resolved.yaml", "plan.json", "outcome.json")
"""The files of a run that are shared; the last one is written last."""
_NAME = re.compile(r"runs/(\d{8}-[\w.@ -]+)/([a-z]+\.[a-z]+)")


def push_run(folder: Path, objects: Objects) -> None:
    """Put the files of a run that has ended.

    Args:
        folder: the folder of the run.
        objects: the shared state.

    Raises:
        Unreachable: when they cannot be put.
    """
    for name in FILES:
        if (folder / name).exists():
            put_whole(objects, f"runs/{folder.name}/{name}", (folder / name).read_bytes())


def pull_runs(root: Path, objects: Objects) -> None:
    """Fetch the files of runs that are not here.

    Raises:
        Unreachable: when the shared state cannot be asked.
    """
    listed = {one.name for one in objects.list("runs")}
    for name in sorted(listed, key=lambda one: one.endswith(FILES[-1])):
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in FILES or (root / name).exists():
            continue
        content, _ = objects.get(name)
        with whole_file(root / "runs" / match[1] / match[2]) as temporary:
            temporary.write_bytes(content)
