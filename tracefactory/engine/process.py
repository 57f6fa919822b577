"""Settings of a process that runs stages and does nothing else."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

_COLLECT_EVERY = 50_000
"""New objects after which garbage is looked for; with thousands of requests in flight, looking takes long."""


class _NoPandas:
    """Finds all modules but pandas."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed", name=name)


def settle() -> None:
    """Let this process spend less on what a run does not need. Call it before other threads are started.

    pyarrow imports pandas for its first conversion, to see whether it is given a Series, which takes 0.6 s. Here it
    does not find pandas when it looks; `to_pandas` and `from_pandas` import it all the same.
    """
    gc.set_threshold(_COLLECT_EVERY, 20, 20)
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)
