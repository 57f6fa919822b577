"""Collect the content of a card from the records of the stages and the columns of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tracefactory.core.pipeline import StageSpec
from tracefactory.core.refs import find_refs
from tracefactory.core.spans import Span
from tracefactory.core.stage import RowReader, Services, stage_of
from tracefactory.engine.lengths import LengthLine
from tracefactory.publish.card import (
    CardInputs,
    MeasureLine,
    MixLine,
    ModelLine,
    PromptLine,
    SourceLine,
    StageLine,
    VerifierLine,
)
from tracefactory.store.stages import StageFolder, StageRecord

_COLUMNS = ("style", "completion_tokens", "prompt", "prompt_digest", "verdict")


def card_inputs(stage: StageSpec[Any], rows: RowReader, refused: frozenset[str], services: Services) -> CardInputs:
    """Collect the content of a dataset card.

    Args:
        stage: the publish stage.
        rows: its input traces.
        refused: the ids of traces that are not in the dataset.
        services: for the records of the stages above.
    """
    pipeline, params = services.pipeline, stage.params
    above = pipeline.above(stage)
    records = dict(_records(above, services))
    frame = rows.frame(Span.all(), _COLUMNS).filter(
        ~pl.col("id").is_in(pl.Series(sorted(refused), dtype=pl.String).implode())
    )
    styles = dict(frame["style"].value_counts().iter_rows())
    return CardInputs(
        title=params.title or pipeline.name,
        summary=params.summary or pipeline.description,
        licence=params.licence,
        repo=params.hub,
        languages=params.languages,
        tags=params.tags,
        stages=tuple(_stage_line(one, records[one.id]) for one in above),
        mix=tuple(_mix_lines(above, records, styles)),
        notes=tuple(_notes(above, records)),
        lengths=tuple(
            LengthLine.of(str(style), group["completion_tokens"].to_list())
            for (style,), group in frame.sort("style").group_by("style", maintain_order=True)
        ),
        models=tuple(
            ModelLine(
                name=name,
                role=_role(name, above),
                model=spec.model,
                revision=spec.recorded_revision(services.environment),
                licence=spec.licence,
            )
            for name, spec in sorted(pipeline.models.items())
            if any(name in one.model_names for one in above)
        ),
        prompts=tuple(
            PromptLine(name=name, digest=digest)
            for name, digest in frame.select("prompt", "prompt_digest").unique().sort("prompt").iter_rows()
        ),
        sources=tuple(_source_lines(above, records, rows, frame["problem_id"])),
        verifiers=tuple(_verifier_lines(frame)),
        measures=tuple(
            MeasureLine(name=name, about=one.description, unit=one.unit, direction=one.direction, source=one.source)
            for name, one in sorted(rows.columns.items())
            if name not in ("verdict", "derivation")
        ),
        command=f"tracefactory run pipelines/{pipeline.file.name}",
        pipeline=Path(pipeline.file).read_text(encoding="utf-8"),
    )


def _records(stages: Sequence[StageSpec[Any]], services: Services) -> Iterator[tuple[str, StageRecord]]:
    for one in stages:
        record = StageFolder(services.state_dir, one.id, services.keys[one.id]).record()
        if record is not None:
            yield one.id, record


def _role(name: str, stages: Sequence[StageSpec[Any]]) -> str:
    """Return the role of a model: student if stages name it only in `student:`, else teacher."""
    refs = [ref for stage in stages for ref in find_refs(type(stage.params), stage.params) if ref.name == name]
    return "student" if {ref.path[-1] for ref in refs if ref.kind == "model"} == {"student"} else "teacher"


def _stage_line(stage: StageSpec[Any], record: StageRecord) -> StageLine:
    tally, numbers = record.tally, record.tally.numbers
    return StageLine(
        id=stage.id,
        verb=f"{stage.verb}: {stage.name}",
        rows_in=tally.rows_in,
        kept=tally.kept,
        dropped=tally.dropped,
        errors=tally.errors,
        reasons=tally.reasons,
        requests=int(numbers.get("requests", 0)),
        tokens=int(numbers.get("prompt_tokens", 0) + numbers.get("completion_tokens", 0)),
        cost=numbers.get("cost", 0.0),
    )


def _notes(stages: Sequence[StageSpec[Any]], records: dict[str, StageRecord]) -> Iterator[str]:
    for stage in stages:
        yield from records[stage.id].tally.notes
    for stage in stages:
        yield from stage_of(stage).facts(stage, records[stage.id].tally.numbers).notes


def _mix_lines(
    stages: Sequence[StageSpec[Any]], records: dict[str, StageRecord], styles: dict[str, int]
) -> Iterator[MixLine]:
    for stage in stages:
        facts = stage_of(stage).facts(stage, records[stage.id].tally.numbers)
        for part, asked in facts.shares.items():
            yield MixLine(stage=stage.id, part=part, unit=facts.unit, asked=asked, got=styles.get(part, 0))


def _source_lines(
    stages: Sequence[StageSpec[Any]], records: dict[str, StageRecord], rows: RowReader, published: pl.Series
) -> Iterator[SourceLine]:
    problems = rows.problems(Span.all(), ("licence",)).filter(pl.col("id").is_in(published.unique().implode()))
    licences = sorted(filter(None, problems["licence"].unique().to_list()))
    for stage in stages:
        facts = stage_of(stage).facts(stage, records[stage.id].tally.numbers)
        if facts.source:
            yield SourceLine(
                name=f"{stage.id}: {facts.source}",
                revision=facts.revision,
                licence=", ".join(licences),
                rows=records[stage.id].tally.kept,
            )


def _verifier_lines(frame: pl.DataFrame) -> Iterator[VerifierLine]:
    if not isinstance(frame.schema.get("verdict"), pl.Struct):
        return
    found = frame.filter(pl.col("verdict").is_not_null()).select(pl.col("verdict").struct.unnest())
    for (name, version), group in found.sort("verifier", "version").group_by(
        "verifier", "version", maintain_order=True
    ):
        counts = {str(outcome): int(count) for outcome, count in group["outcome"].value_counts(sort=True).iter_rows()}
        yield VerifierLine(name=str(name), version=str(version), outcomes=counts)
