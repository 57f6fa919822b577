"""Check that every configuration of a release can be loaded with `datasets`."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tracefactory.core.errors import RunError
from tracefactory.core.imports import TRANSFORMERS

_ONE_AT_A_TIME = threading.Lock()
"""`datasets` and its progress bars keep settings and locks of the whole process: two stages may publish at once."""


def check_loads(folder: Path, configs: Collection[str]) -> None:
    """Open every configuration of a release folder through its card, and compare files, columns and first rows.

    Rows are streamed from the folder and not copied.

    Raises:
        RunError: when configurations, files, columns or rows in `datasets` differ from those written.
    """
    import datasets

    try:
        with _alone(datasets):
            _compare(datasets, folder, configs)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise RunError(f"{folder}: the release does not load with `datasets`: {error}") from error


@contextmanager
def _alone(datasets: Any) -> Iterator[None]:
    """Use `datasets` in one thread, without progress bars, and without torch, which takes a second to import."""
    with _ONE_AT_A_TIME, TRANSFORMERS:
        progress, torch = datasets.are_progress_bars_disabled(), datasets.config.TORCH_AVAILABLE
        datasets.disable_progress_bars()
        datasets.config.TORCH_AVAILABLE = False
        try:
            yield
        finally:
            datasets.config.TORCH_AVAILABLE = torch
            if not progress:
                datasets.enable_progress_bars()


def _compare(datasets: Any, folder: Path, configs: Collection[str]) -> None:
    found = datasets.get_dataset_config_names(str(folder))
    if sorted(found) != sorted(configs):
        raise RunError(f"{folder}: `datasets` finds the configurations {found}, but {sorted(configs)} were written")
    for name in configs:
        rows = datasets.load_dataset(str(folder), name, split="train", streaming=True)
        files = sorted((folder / "data" / name).glob("*.parquet"))
        if rows.num_shards != len(files):
            raise RunError(f"{folder}: `datasets` reads {rows.num_shards} files of {name!r}, not {len(files)}")
        written = pq.ParquetFile(files[0])
        if rows.features is None or rows.features.arrow_schema != written.schema_arrow.remove_metadata():
            raise RunError(f"{folder}: the columns of {name!r} in `datasets` differ from those written")
        if next(iter(rows))["id"] != next(written.iter_batches(1, columns=["id"]))["id"][0].as_py():
            raise RunError(f"{folder}: the first row of {name!r} in `datasets` differs from the one written")
