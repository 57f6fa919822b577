"""What dropped all rows of a stage, for the message of a run that stops there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.tables import Table
from tracefactory.engine.failing import MESSAGES, causes
from tracefactory.store.damage import reading
from tracefactory.store.stages import StageFolder, StageRecord, Tally


def only_from(stage: StageSpec[Any], pipeline: Pipeline) -> str | None:
    """Return a last stage of the pipeline below `stage` whose rows all come through it; None where there is none.

    The last stages are those that no other stage takes rows from.
    """
    taken = {name for one in pipeline.stages for name in one.inputs}
    fed: set[str] = set()  # stages that get rows without `stage`
    for one in pipeline.stages:
        if one.id != stage.id and (not one.inputs or fed & set(one.inputs)):
            fed.add(one.id)
    last = (one for one in pipeline.stages if one.id not in taken | fed)
    return next((one.id for one in last if stage in pipeline.above(one)), None)


def nothing_left(
    stage: StageSpec[Any],
    pipeline: Pipeline,
    folder: StageFolder,
    record: StageRecord,
    inputs: Mapping[str, Tally],
    below: str,
) -> str:
    """Return what dropped the rows of a stage that keeps none: the reasons, examples, and where to look.

    Args:
        stage: the stage.
        pipeline: its pipeline.
        folder: the folder of the stage.
        record: its record.
        inputs: the counts of its input stages.
        below: the stage that gets no rows.
    """
    end = f", so nothing reaches {below}"
    where = f"{pipeline.file.name}:{stage.line}"
    if record.tally.rows_in == 0:
        above = "; ".join(f"{name}: {_reasons(tally)}" for name, tally in inputs.items())
        what = f"is given no rows ({above})" if inputs else "has read no rows"
        return f"{stage.id} {what}{end}. Look at {where}"
    told = causes(record.tally.reasons, _examples(folder, record))
    options = "".join(_options(stage, pipeline, record.tally.reasons))
    return f"{stage.id} keeps none of its {record.tally.rows_in:,} rows{end}. {told} Look at {where}{options}"


def _reasons(tally: Tally) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in tally.reasons.items()) or "no rows"


def _examples(folder: StageFolder, record: StageRecord) -> dict[str, str]:
    """Return the detail of the first row of every reason, each with the id of the row."""
    found: dict[str, tuple[str, str]] = {}
    for index in range(record.shards):
        path = folder.part(Table.JUDGED, index, record.shards)
        with reading(path):
            rows = pl.DataFrame(pq.read_table(path, columns=["id", "reason", "detail"]))
        dropped = rows.filter(pl.col("reason").is_not_null() & (pl.col("detail") != ""))
        for row_id, reason, detail in dropped.unique("reason", keep="first", maintain_order=True).iter_rows():
            found.setdefault(reason, (" ".join(detail.split()), row_id))
    return {f"{reason}: {detail}": row_id for reason, (detail, row_id) in list(found.items())[:MESSAGES]}


def _options(stage: StageSpec[Any], pipeline: Pipeline, reasons: Mapping[str, int]) -> Iterator[str]:
    """Yield the filters of a chain that gave one of the reasons, with their parameters."""
    for use in getattr(stage.params, "filters", ()):
        loaded = pipeline.filters[use.name]
        if set(loaded.reasons) & reasons.keys():
            values = loaded.params_model.model_validate(use.params).model_dump(mode="json", exclude_defaults=True)
            yield f", filter {use.name!r} {values}"
