"""Proof that a release loads: each configuration is opened with `datasets`, as its readers will open it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow.parquet as pq

from tracefactory.core.errors import RunError


def check_loads(folder: Path, configs: Collection[str]) -> None:
    """Open every configuration of a release folder by its card, and compare files, columns and first rows.

    Nothing is copied: the rows are streamed from the folder.

    Raises:
        RunError: when `datasets` finds other configurations, files, columns or rows than were written.
    """
    import datasets

    progress = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.get_dataset_config_names(str(folder))
        if sorted(found) != sorted(configs):
            raise RunError(f"{folder}: `datasets` finds the configurations {found}, and {sorted(configs)} were written")
        for name in configs:
            rows = datasets.load_dataset(str(folder), name, split="train", streaming=True)
            files = sorted((folder / "data" / name).glob("*.parquet"))
            if rows.num_shards != len(files):
                raise RunError(f"{folder}: `datasets` reads {rows.num_shards} files of {name!r}, not {len(files)}")
            written = pq.ParquetFile(files[0])
            if rows.features is None or rows.features.arrow_schema != written.schema_arrow.remove_metadata():
                raise RunError(f"{folder}: `datasets` reads other columns of {name!r} than were written")
            if next(iter(rows))["id"] != next(written.iter_batches(1, columns=["id"]))["id"][0].as_py():
                raise RunError(f"{folder}: `datasets` reads another first row of {name!r} than was written")
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise RunError(f"{folder}: the release does not load with `datasets`: {error}") from error
    finally:
        if not progress:
            datasets.enable_progress_bars()
