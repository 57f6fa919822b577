"""Collect the content of a card from the records of the stages and the columns of the rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tracefactory.core.model import public_name
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.prices import DECLARED, UNKNOWN, bills_of
from tracefactory.core.refs import find_refs
from tracefactory.core.spans import Span
from tracefactory.core.stage import Facts, RowReader, Services, stage_of
from tracefactory.engine.lengths import LengthLine
from tracefactory.publish.card import (
    BillLine,
    CardInputs,
    MeasureLine,
    MissingLine,
    MixLine,
    ModelLine,
    PromptLine,
    PruneLine,
    SiblingLine,
    SourceLine,
    StageLine,
    VerifierLine,
)
from tracefactory.publish.command import recipe_line
from tracefactory.serving.failures import failures_in
from tracefactory.store.spend import Ledger
from tracefactory.store.stages import StageFolder, StageRecord

_COLUMNS = ("style", "completion_tokens", "prompt", "prompt_digest", "verdict", "stage", "op")
_SAVED = {
    "prune_tokens_saved": "tokens of the student",
    "prune_tokens_saved_estimated": "tokens, estimated",
    "prune_characters_saved": "characters",
}
_KEPT = "prune_kept_share"


def card_inputs(stage: StageSpec[Any], rows: RowReader, refused: frozenset[str], services: Services) -> CardInputs:
    """Return the content of a dataset card.

    Args:
        stage: the publish stage.
        rows: its input traces.
        refused: the ids of traces that are not in the dataset.
        services: for the records of the stages above.
    """
    pipeline, params = services.pipeline, stage.params
    above = pipeline.above(stage)
    folders = {one.id: StageFolder(services.state_dir, one.id, services.keys[one.id]) for one in above}
    records = {one: record for one, folder in folders.items() if (record := folder.record()) is not None}
    facts = {one.id: stage_of(one).facts(one, records[one.id].tally.numbers) for one in above}
    mixed_by = {found.shares_by for found in facts.values() if found.shares}
    pruning = {_KEPT, *_SAVED} & rows.columns.keys()
    frame = rows.frame(Span.all(), {*_COLUMNS, *mixed_by, *pruning}).filter(
        ~pl.col("id").is_in(pl.Series(sorted(refused), dtype=pl.String).implode())
    )
    return CardInputs(
        title=params.title or params.name or pipeline.name,
        summary=params.summary or pipeline.description,
        licence=params.licence,
        repo=params.hub,
        siblings=tuple(_sibling_lines(stage, pipeline)),
        sft_weight=params.sft_weight or 0.0,
        languages=params.languages,
        tags=params.tags,
        stages=tuple(_stage_line(one, records[one.id], pipeline) for one in above),
        bills=tuple(_bill_lines(records.values(), services)),
        mix=tuple(_mix_lines(facts, frame)),
        missing=tuple(_missing_lines(records)),
        notes=(
            *(note for record in records.values() for note in record.tally.notes),
            *(note for found in facts.values() for note in found.notes),
        ),
        lengths=tuple(
            LengthLine.of(str(style), group["completion_tokens"].to_list())
            for (style,), group in frame.sort("style").group_by("style", maintain_order=True)
        ),
        pruned=tuple(_prune_lines(frame)),
        models=tuple(_model_lines(above, services)),
        prompts=tuple(_prompt_lines(above, frame, pipeline)),
        sources=tuple(_source_lines(facts, records, rows, frame["problem_id"])),
        verifiers=tuple(_verifier_lines(frame)),
        measures=tuple(
            MeasureLine(name=name, about=one.description, unit=one.unit, direction=one.direction, source=one.source)
            for name, one in sorted(rows.columns.items())
            if name not in ("verdict", "derivation")
        ),
        recipe=recipe_line(pipeline),
    )


def _mix_lines(facts: Mapping[str, Facts], frame: pl.DataFrame) -> Iterator[MixLine]:
    for stage, found in facts.items():
        if found.shares:
            counts = dict(frame[found.shares_by].cast(pl.String).value_counts().iter_rows())
            for part, asked in found.shares.items():
                yield MixLine(stage=stage, part=part, unit=found.unit, asked=asked, got=counts.get(part, 0))


def _sibling_lines(stage: StageSpec[Any], pipeline: Pipeline) -> Iterator[SiblingLine]:
    """Yield the other datasets that the pipeline publishes."""
    for one in pipeline.stages:
        if one.op == stage.op and one.id != stage.id:
            yield SiblingLine(name=one.params.name or pipeline.name, stage=one.id, repo=one.params.hub)


def _missing_lines(records: Mapping[str, StageRecord]) -> Iterator[MissingLine]:
    for stage, record in records.items():
        tally = record.tally
        if tally.owed:
            reasons = failures_in(tally.reasons)
            yield MissingLine(stage=stage, rows=tally.owed, of=tally.rows_in, reasons=reasons)


def _prune_lines(frame: pl.DataFrame) -> Iterator[PruneLine]:
    """Yield what pruning did to the published rows, by stage."""
    pruned = frame.filter(pl.col("op").cast(pl.String).str.starts_with("prune:").fill_null(value=False))
    for (stage, op), rows in pruned.group_by("stage", "op", maintain_order=True):
        saved = next((name for name in _SAVED if name in rows.columns and rows[name].count()), None)
        share = rows[_KEPT].cast(pl.Float64).median() if _KEPT in rows.columns else None
        yield PruneLine(
            stage=str(stage),
            pruner=str(op),
            rows=rows.height,
            kept_share=share if isinstance(share, float) else 1.0,
            saved=round(float(rows[saved].sum())) if saved else 0,
            unit=_SAVED[saved] if saved else "",
        )


def _prompt_lines(stages: Sequence[StageSpec[Any]], frame: pl.DataFrame, pipeline: Pipeline) -> Iterator[PromptLine]:
    """Yield the prompts that the published traces were written under, and those of stages that ask about traces."""
    written = dict(frame.select("prompt", "prompt_digest").unique().iter_rows())
    for stage in stages:
        if not stage_of(stage).teachers(stage, pipeline):
            refs = find_refs(type(stage.params), stage.params)
            written |= {ref.name: pipeline.prompts[ref.name].digest for ref in refs if ref.kind == "prompt"}
    for name, digest in sorted(written.items()):
        yield PromptLine(name=name, digest=digest)


def _roles(stage: StageSpec[Any], pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Yield the models that a stage names, each with what it is for the dataset."""
    teachers = stage_of(stage).teachers(stage, pipeline)
    needs: frozenset[str] = getattr(stage.params, "needs", frozenset())
    for ref in (ref for ref in find_refs(type(stage.params), stage.params) if ref.kind == "model"):
        if ref.name in teachers:
            yield ref.name, "teacher"
        elif stage.verb == "verify" or ref.path[0] == "types":
            yield ref.name, "judge"
        elif stage.verb == "prune" and ref.path == ("model",) and "writer" in needs:
            yield ref.name, "rewriter"
        else:
            yield ref.name, "student"


def _model_lines(stages: Sequence[StageSpec[Any]], services: Services) -> Iterator[ModelLine]:
    """Yield the models that stages use, with all of their roles."""
    pipeline = services.pipeline
    roles: defaultdict[str, set[str]] = defaultdict(set)
    for name, role in (found for stage in stages for found in _roles(stage, pipeline)):
        roles[name].add(role)
    for name, spec in sorted(pipeline.models.items()):
        if name in roles:
            yield ModelLine(
                name=name,
                role=", ".join(sorted(roles[name], reverse=True)),
                model=public_name(spec.model),
                revision=spec.recorded_revision(services.environment),
                licence=spec.licence,
            )


def _bill_lines(records: Iterable[StageRecord], services: Services) -> Iterator[BillLine]:
    """Yield what the completions of every model cost by price, and the GPU-hours of this version's runs."""
    numbers: defaultdict[str, float] = defaultdict(float)
    for name, number in (one for record in records for one in record.tally.numbers.items()):
        numbers[name] += number
    for bill in bills_of(numbers):
        tokens = bill.prompt_tokens + bill.completion_tokens
        yield BillLine(
            model=public_name(bill.model),
            price=bill.price,
            requests=bill.requests,
            tokens=tokens,
            cost=bill.cost,
            unpriced=bill.unpriced,
        )
    ledger = Ledger(services.state_dir, services.pipeline.ledger_name, met=lambda damage: None)
    hours: defaultdict[str, float] = defaultdict(float)
    for (model, _), amount in ledger.totals().items():
        hours[model] += amount.gpu_hours
    ledger.close()
    for model, held in sorted(hours.items()):
        declared = services.pipeline.models[model].price if model in services.pipeline.models else None
        rate = None if declared is None else declared.gpu_hour
        if held > 0:
            cost, price = (None, UNKNOWN) if rate is None else (held * rate, f"{DECLARED}: gpu_hour {rate:g}")
            yield BillLine(model=f"{model} (GPUs)", price=price, gpu_hours=held, cost=cost)


def _cost(stage: StageSpec[Any], numbers: Mapping[str, float], pipeline: Pipeline) -> float | None:
    """Return the cost of a stage; version 0.2 recorded 0 where no price was declared."""
    cost, model = numbers.get("cost", 0.0), stage_of(stage).asks(stage, pipeline)
    if cost or "unpriced" in numbers or not numbers.get("requests") or model is None:
        return cost
    return None if pipeline.models[model].sends_bills else cost


def _stage_line(stage: StageSpec[Any], record: StageRecord, pipeline: Pipeline) -> StageLine:
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
        cost=_cost(stage, numbers, pipeline),
        unpriced=int(numbers.get("unpriced", 0)),
    )


def _source_lines(
    facts: Mapping[str, Facts], records: Mapping[str, StageRecord], rows: RowReader, published: pl.Series
) -> Iterator[SourceLine]:
    problems = rows.problems(Span.all(), ("licence",)).filter(pl.col("id").is_in(published.unique().implode()))
    licences = sorted(filter(None, problems["licence"].unique().to_list()))
    for stage, found in facts.items():
        if found.source:
            yield SourceLine(
                name=f"{stage}: {found.source}",
                revision=found.revision,
                licence=", ".join(licences),
                rows=records[stage].tally.kept,
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
