"""How many files the stages of a pipeline have in the state folder, by their number of shards.

A shard of a stage that makes rows has a file for each table of text and one for its decisions; a stage that only judges
has the latter alone. Mixes and releases have one shard.
"""

from __future__ import annotations

from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Kind
from tracefactory.core.stage import Work, stage_of
from tracefactory.engine.sources import MAX_SHARDS

MANY_FILES = 10_000
"""From so many files on, the user is told: file systems of clusters are slow with them, or have quotas."""
_RECORDS = 3  # identity.json, record.json, lease.json


def stage_files(pipeline: Pipeline, shards: int) -> int:
    """Return the number of files of all finished stages of a pipeline.

    Args:
        pipeline: the pipeline.
        shards: the number of parts that problems are split into.
    """
    total = 0
    for stage in pipeline.stages:
        op = stage_of(stage)
        work = op.work(stage, pipeline)
        tables = 1 + (op.makes is not Kind.NONE)
        if work is Work.SOURCE and op.makes is Kind.TRACES:
            tables += 1  # the problems of its traces
        total += _RECORDS + tables * (1 if work in (Work.TABLE, Work.RELEASE) else shards)
    return total


def many_files(pipeline: Pipeline) -> str:
    """Return a sentence for the user if `run: {shards: N}` makes very many files, "" otherwise."""
    shards = pipeline.run.shards
    if shards is None or (files := stage_files(pipeline, shards)) <= MANY_FILES:
        return ""
    return (
        f"`run: {{shards: {shards}}}` makes {files:,} files in the state folder; without it there are at most "
        f"{stage_files(pipeline, MAX_SHARDS):,}, in {MAX_SHARDS} shards"
    )
