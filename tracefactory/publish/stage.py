"""`publish: dataset`: the release folder `out/<name>/<version>/`, and the same on the Hub when `hub:` is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.config.refs import find_refs
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_json
from tracefactory.core.op import OPS, Rows, ShardResult, WholeInput, WholeOp, WholeResult
from tracefactory.core.schema import Dropped, Frozen, Trace
from tracefactory.engine.worker import Worker
from tracefactory.publish.card import (
    CardInputs,
    LengthLine,
    MixLine,
    ModelLine,
    PromptLine,
    SourceLine,
    StageLine,
    VerifierLine,
)
from tracefactory.publish.hub import push
from tracefactory.publish.release import MANIFEST, Manifest, read_manifest, write_release
from tracefactory.publish.views import VIEWS, ViewError, tables
from tracefactory.serving.base import EnvStr
from tracefactory.stages.mix.long_short import MixLongShort, MixParams
from tracefactory.stages.sample.decoded import written_notes
from tracefactory.stages.source.problems import SourceOp
from tracefactory.store.stages import StageRecord, dropped_row

Refused = dict[str, ViewError]


class PublishParams(Frozen):
    """`views` are the configurations of the dataset, the first loads by default.

    `hub` is a dataset repository on the Hub; `token` must be given as env:NAME (default: the machine's login).
    """

    views: tuple[str, ...] = Field(default=("sft", "chat", "raw"), min_length=1)
    hub: str | None = None
    private: bool = True
    token: EnvStr | None = None
    title: str = ""
    summary: str = ""
    licence: str | None = None
    languages: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()


class PublishDataset(WholeOp):
    """Write the release and push it. A trace that a view cannot represent is dropped, with the view's reason."""

    verb, name, version = "publish", "dataset", "1"
    Params = PublishParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        mistakes: list[Mistake] = []
        for view in _params(stage).views:
            try:
                VIEWS.get(view)
            except UserError as error:
                mistakes += error.mistakes
        token = _params(stage).token
        if token is not None and token.env_name is None:
            mistakes.append(Mistake("token: a secret is given as env:NAME, never in the file"))
        return mistakes

    def refusal(self, stage: StageConfig, pipeline: Pipeline, keys: Mapping[str, str]) -> Mistake | None:
        """Refuse, before anything is paid for, to make a dataset whose version another one has."""
        manifest = _manifest(release_folder(pipeline))
        if manifest is None or _same_inputs(manifest, stage, pipeline, keys):
            return None
        where = release_folder(pipeline)
        return Mistake(
            f"version {release_version(pipeline)} of {pipeline.name} is published in {where} and made differently; "
            "a published version is never changed",
            stage.file,
            stage.line,
            "raise `version:`, or try it out with --set version=...",
        )

    def is_intact(self, stage: StageConfig, pipeline: Pipeline) -> bool:
        published = _params(stage).hub is None or receipt_file(pipeline).exists()
        return published and _manifest(release_folder(pipeline)) is not None

    def run_whole(
        self, stage: StageConfig, inputs: Mapping[str, WholeInput], shards: int | None, worker: Worker
    ) -> WholeResult:
        assert shards is not None
        pipeline, params = worker.pipeline, _params(stage)
        refused = _refused(inputs, shards, params.views)

        def published() -> Iterator[Trace]:
            return (trace for trace in _traces(inputs, shards) if trace.id not in refused)

        left_out = _left_out(published, params.views)
        views = [view for view in params.views if view not in left_out or left_out[view].published] or params.views
        configs = {view: tables(VIEWS.get(view), published(), _refuse(view)) for view in views}
        keys = {one.id: worker.setup.keys[one.id] for one in _ancestors(stage, pipeline)}
        folder, version = release_folder(pipeline), release_version(pipeline)
        card = _card(stage, worker, published)
        write_release(folder, name=pipeline.name, version=version, configs=configs, card=card, stages=keys)
        notes = [f"published: {folder.relative_to(pipeline.project.root)}", *_shorter_views(left_out)]
        if params.hub is not None:
            token = None if params.token is None else worker.secret(params.token)
            receipt = push(folder, repo=params.hub, version=version, private=params.private, token=token)
            write_json(receipt_file(pipeline), receipt.model_dump(mode="json"))
            notes.append(f"published: {receipt.url}")
        return WholeResult(shards, _results(inputs, shards, refused, stage.id, tuple(notes)))


def release_version(pipeline: Pipeline) -> str:
    """Return the version as published: a run with --limit never takes the place of the whole."""
    return pipeline.version if pipeline.limit is None else f"{pipeline.version}-limit{pipeline.limit}"


def release_folder(pipeline: Pipeline) -> Path:
    return pipeline.project.out_dir / pipeline.name / release_version(pipeline)


def receipt_file(pipeline: Pipeline) -> Path:
    return pipeline.project.state_dir / "published" / pipeline.name / f"{release_version(pipeline)}.json"


def _params(stage: StageConfig) -> PublishParams:
    assert isinstance(stage.params, PublishParams)
    return stage.params


def _manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / MANIFEST).exists() else None


def _same_inputs(manifest: Manifest, stage: StageConfig, pipeline: Pipeline, keys: Mapping[str, str]) -> bool:
    inputs = {one.id: keys[one.id] for one in _ancestors(stage, pipeline) if one.id != stage.id}
    before = {name: key for name, key in manifest.stages.items() if name != stage.id}
    # A partial view that had no row is not there.
    views = [view for view in _params(stage).views if view in manifest.configs or not VIEWS.get(view).partial]
    return inputs == before and list(manifest.configs) == views


def _ancestors(stage: StageConfig, pipeline: Pipeline) -> list[StageConfig]:
    """Return the stages a stage is made from and itself, in the order of the pipeline."""
    wanted = {stage.id}
    for one in reversed(pipeline.stages):
        if one.id in wanted:
            wanted.update(one.inputs)
    return [one for one in pipeline.stages if one.id in wanted]


def _traces(inputs: Mapping[str, WholeInput], shards: int) -> Iterator[Trace]:
    for source in inputs.values():
        for rows in source.shards(shards):
            yield from (row for row in rows if isinstance(row, Trace))


def _refused(inputs: Mapping[str, WholeInput], shards: int, views: tuple[str, ...]) -> Refused:
    """Find the traces that some view cannot represent, so that all views but partial ones hold the same rows."""
    refused: Refused = {}
    whole = [found for view in views if not (found := VIEWS.get(view)).partial]
    for trace in _traces(inputs, shards):
        for view in whole:
            try:
                view.rows(trace)
            except ViewError as error:
                refused.setdefault(trace.id, error)
    return refused


@dataclass
class _LeftOut:
    """How many traces a partial view has, and why it leaves out the others."""

    published: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def _left_out(published: Callable[[], Iterator[Trace]], views: tuple[str, ...]) -> dict[str, _LeftOut]:
    """Find what the partial views leave out."""
    found = {view: _LeftOut() for view in views if VIEWS.get(view).partial}
    for trace in published() if found else ():
        for view, counts in found.items():
            try:
                VIEWS.get(view).rows(trace)
            except ViewError as error:
                counts.reasons[error.reason] += 1
            else:
                counts.published += 1
    return found


def _refuse(view: str) -> Callable[[Trace, ViewError], None]:
    """Return what takes the traces a view cannot represent: those of a partial view are counted already."""

    def refuse(trace: Trace, error: ViewError) -> None:
        if not VIEWS.get(view).partial:
            raise AssertionError(f"{trace.id} was accepted and then refused: {error}")

    return refuse


def _shorter_views(left_out: Mapping[str, _LeftOut]) -> list[str]:
    """Say of every partial view which traces it leaves out, and why."""
    return [
        f"the view {view} has {found.published} rows and leaves out {found.reasons.total()}: "
        + ", ".join(f"{reason} {count}" for reason, count in found.reasons.most_common())
        for view, found in left_out.items()
        if found.reasons
    ]


def _results(
    inputs: Mapping[str, WholeInput], shards: int, refused: Refused, stage_id: str, notes: tuple[str, ...]
) -> Iterator[ShardResult]:
    parts = zip(*(source.shards(shards) for source in inputs.values()), strict=True)
    for index, part in enumerate(parts):
        traces = [row for rows in part for row in rows if isinstance(row, Trace)]
        kept = [trace for trace in traces if trace.id not in refused]
        dropped: list[Dropped] = [
            dropped_row(trace, stage_id, refused[trace.id].reason, refused[trace.id].detail)
            for trace in traces
            if trace.id in refused
        ]
        yield ShardResult(rows_in=len(traces), kept=kept, dropped=dropped, notes=notes if index == 0 else ())


def _card(stage: StageConfig, worker: Worker, published: object) -> CardInputs:
    """Gather what the card says from the records of the stages and from the rows themselves."""
    assert callable(published)
    pipeline, params = worker.pipeline, _params(stage)
    above = [one for one in _ancestors(stage, pipeline) if one.id != stage.id]
    records = {one.id: record for one in above if (record := worker.folder(one.id).record()) is not None}
    lengths: dict[str, list[int]] = {}
    styles: dict[str, Counter[str]] = {}
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    licences: dict[str, set[str]] = {}
    prompts: dict[str, str] = {}
    for trace in published():
        lengths.setdefault(trace.style, []).append(trace.completion_tokens)
        styles.setdefault("all", Counter())[trace.style] += 1
        prompts[trace.prompt] = trace.prompt_digest
        licences.setdefault(trace.problem.source, set()).add(trace.problem.licence)
        if trace.verdict is not None:
            who = (trace.verdict.verifier, trace.verdict.version)
            outcomes.setdefault(who, Counter())[trace.verdict.outcome.value] += 1
    return CardInputs(
        title=params.title or pipeline.name,
        summary=params.summary or pipeline.description,
        licence=params.licence,
        repo=params.hub,
        languages=params.languages,
        tags=params.tags,
        stages=tuple(_stage_line(one, records[one.id]) for one in above),
        mix=_mix_lines(above, styles.get("all", Counter())),
        notes=(*(note for record in records.values() for note in record.tally.notes), *written_notes(above, records)),
        lengths=tuple(LengthLine.of(style, found) for style, found in sorted(lengths.items())),
        models=tuple(
            ModelLine(
                name=name,
                role=_role(name, above),
                model=spec.model,
                revision=spec.recorded_revision(worker.where),
                licence=spec.licence,
            )
            for name, spec in sorted(pipeline.models.items())
            if any(name in one.model_names for one in above)
        ),
        prompts=tuple(PromptLine(name=name, digest=digest) for name, digest in sorted(prompts.items())),
        sources=tuple(_source_line(one, records[one.id], licences) for one in above if isinstance(one.op, SourceOp)),
        verifiers=tuple(
            VerifierLine(name=name, version=version, outcomes=dict(counts))
            for (name, version), counts in sorted(outcomes.items())
        ),
        command=f"tracefactory run pipelines/{pipeline.file.name}",
        pipeline=pipeline.file.read_text(encoding="utf-8"),
    )


def _role(name: str, stages: list[StageConfig]) -> str:
    """Return what a model is to the stages that name it: the student where it only stands under `student:`."""
    refs = [ref for stage in stages for ref in find_refs(type(stage.params), stage.params) if ref.name == name]
    return "student" if {ref.path[-1] for ref in refs if ref.kind == "model"} == {"student"} else "teacher"


def _stage_line(stage: StageConfig, record: StageRecord) -> StageLine:
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


def _mix_lines(stages: list[StageConfig], styles: Counter[str]) -> tuple[MixLine, ...]:
    lines = []
    for stage in stages:
        if isinstance(stage.op, MixLongShort):
            assert isinstance(stage.params, MixParams)
            for part, asked in (("long", stage.params.long), ("short", stage.params.short)):
                unit = stage.params.unit.value
                lines.append(MixLine(stage=stage.id, part=part, unit=unit, asked=asked, got=styles[part]))
    return tuple(lines)


def _source_line(stage: StageConfig, record: StageRecord, licences: Mapping[str, set[str]]) -> SourceLine:
    assert isinstance(stage.op, SourceOp)
    found = sorted({licence for known in licences.values() for licence in known if licence})
    return SourceLine(
        name=f"{stage.id}: {stage.op.source.describe(stage.params)}",
        revision=str(getattr(stage.params, "revision", "") or ""),
        licence=", ".join(found),
        rows=record.tally.kept,
    )


OPS.register("publish:dataset")(PublishDataset())
