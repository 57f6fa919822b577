"""`publish: dataset`: write the release folder `out/<name>/<version>/`, and push it to the Hub if `hub:` is set.

A pipeline may publish several datasets, such as raw and pruned traces, each under a name of its own.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from tracefactory.config.model import NAME_PATTERN
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_json
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.spans import Span
from tracefactory.core.stage import STAGES, Decided, ModelName, RowReader, Services, Stage, Work
from tracefactory.engine.plan import make_plan
from tracefactory.publish.claims import claimed_above, claimed_elsewhere
from tracefactory.publish.control_tokens import REASON, sentence
from tracefactory.publish.facts import card_inputs
from tracefactory.publish.loading import check_loads
from tracefactory.publish.recipe import compare, recipe_of
from tracefactory.publish.release import MANIFEST, Manifest, assemble, check_version, put_in_place, verify_release
from tracefactory.publish.release import read_manifest as read
from tracefactory.publish.students import student_check, token_check, unrendered, view_mistakes
from tracefactory.publish.views import VIEWS
from tracefactory.publish.writing import FILE_CHARACTERS, RangePart, write_range
from tracefactory.stages._measured import not_measured
from tracefactory.store.leases import has_workers
from tracefactory.text.control_tokens import ControlTokens

BATCH_PROBLEMS = 256


class PublishParams(Frozen):
    """What to publish, where, and texts for the card."""

    views: tuple[str, ...] = Field(
        default=("sft", "chat", "raw"),
        min_length=1,
        description="The configurations of the dataset; the first one loads by default.",
    )
    name: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Name of the dataset, for out/NAME/VERSION; by default the name of the pipeline.",
    )
    student: ModelName | None = Field(
        default=None,
        description="The student that will be trained on it: views and rows that its chat template cannot render are "
        "refused. Without it, such rows under the students of stages above are counted and told.",
    )
    control_tokens: ControlTokens = Field(
        default=ControlTokens.DROP,
        description="What becomes of rows whose texts spell a control token, such as <|im_end|>, of a common chat "
        "template or of `student`: drop them, escape it by a backslash after its first character, or keep it, as the "
        "text that trainers turn into the real token.",
    )
    hub: str | None = Field(default=None, description="A dataset repository on the Hub to push to: owner/name.")
    private: bool = Field(default=True, description="Make a new repository private.")
    token: EnvStr | None = Field(default=None, description="The Hub token as env:NAME; null is the machine's login.")
    title: str = Field(default="", description="Title of the card; by default the name of the dataset.")
    summary: str = Field(default="", description="First words of the card; by default the pipeline's description.")
    allow_missing: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The share of a stage's rows, as 0.5% or 0.005, that may be missing because requests failed; the "
        "card then says that the dataset is partial. Otherwise nothing is published while rows are owed.",
    )
    sft_weight: float | None = Field(
        default=None,
        gt=0,
        description="Weight of the SFT loss of the chosen completion that the recipe adds to DPO on the pairs; told on "
        "the card and in its training configurations.",
    )
    licence: str | None = Field(default=None, description="Licence of the dataset, as the Hub names licences.")
    languages: tuple[str, ...] = Field(default=("en",), description="Languages of the texts, as ISO 639-1 codes.")
    tags: tuple[str, ...] = Field(default=(), description="Further tags for the Hub.")

    @field_validator("allow_missing", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value


Spec = StageSpec[PublishParams]


class PublishDataset(Stage[PublishParams]):
    """Write a release and push it. A trace that a view cannot represent is dropped, with the view's reason."""

    verb, name, version = "publish", "dataset", "2"
    Params = PublishParams
    work_on = Work.RELEASE

    def check(self, stage: Spec, pipeline: Pipeline) -> list[Mistake]:
        """Return unknown or broken views, a token in the file, and a name or version that is claimed already."""
        mistakes: list[Mistake] = []
        for view in stage.params.views:
            try:
                wanted = VIEWS.get(view).made_from
            except UserError as error:
                mistakes += error.mistakes
            else:
                missing = [list(not_measured("", [name], stage, pipeline)) for name in wanted]
                if missing and all(missing):
                    what = f"views: {view!r} needs traces with {' or '.join(wanted)}, and no stage above makes them"
                    mistakes.append(Mistake(what, hint="`verify:` makes verdicts, `prune:` derivations"))
        token = stage.params.token
        if token is not None and token.env_name is None:
            mistakes.append(Mistake("token: write env:NAME; a secret must not be in the file"))
        if stage.params.sft_weight is not None and not {"preference", "ranking"} & set(stage.params.views):
            mistakes.append(Mistake("sft_weight: no view has pairs", hint="add `preference` or `ranking` to `views:`"))
        folder = release_folder(stage, pipeline)
        return [*mistakes, *claimed_above(stage, pipeline), *claimed_elsewhere(stage, pipeline, folder)]

    def uses(self, stage: Spec, pipeline: Pipeline) -> Mapping[str, Any]:
        """Return the versions of the views, and the tokenizer of the student that rows are checked with."""
        versions = {"versions": {"views": {name: VIEWS.get(name).version for name in stage.params.views}}}
        if stage.params.student is None:
            return versions
        environment = Environment(root=pipeline.project.root)
        return {**versions, "student": pipeline.models[stage.params.student].token_identity(environment)}

    def template_mistakes(self, stage: Spec, pipeline: Pipeline) -> list[Mistake]:
        """Return the views that the chat template of the named student does not render."""
        return list(view_mistakes(stage, pipeline, stage.params.views))

    def refusal(self, stage: Spec, pipeline: Pipeline) -> Mistake | None:
        """Return a mistake when the run would pay for a different dataset under a published version."""
        check_version(release_version(pipeline))
        folder = release_folder(stage, pipeline)
        manifest = published(folder)
        changed = () if manifest is None else compare(manifest, stage, pipeline).by_user
        if not changed or not make_plan(pipeline, pipeline.project.state_dir).may_pay:
            return None
        return Mistake(
            f"version {release_version(pipeline)} of {release_name(stage, pipeline)} is published in {folder}, and "
            f"this run would pay for a different one ({_summary(changed)}); a published version is never changed",
            stage.file,
            stage.line,
            "raise `version:`, or try it with --set version=...",
        )

    def missing_allowed(self, stage: Spec) -> float:
        """Return `allow_missing`."""
        return stage.params.allow_missing

    def is_settled(self, stage: Spec, pipeline: Pipeline) -> bool:
        """Return whether this version is published without rows that are still owed."""
        manifest = published(release_folder(stage, pipeline))
        return manifest is not None and bool(manifest.missing) and not compare(manifest, stage, pipeline).by_user

    def is_intact(self, stage: Spec, pipeline: Pipeline) -> bool:
        """Return whether the release, and the record of its push, exist."""
        pushed = stage.params.hub is None or receipt_file(stage, pipeline).exists()
        return pushed and published(release_folder(stage, pipeline)) is not None

    def ranges(self, stage: Spec, rows: RowReader) -> Sequence[Span]:
        """Return a power of two of ranges, which limits the file size and lets ranges be written in parallel."""
        sizes = ("reasoning_characters", "answer_characters")
        characters = int(rows.frame(Span.all(), sizes).select(pl.sum_horizontal(sizes).sum()).item() or 0)
        count = 1 << max(0, math.ceil(math.log2(max(characters, 1) / FILE_CHARACTERS)))
        return [Span.of(number, count) for number in range(count)]

    def write_range(self, stage: Spec, rows: RowReader, number: int, span: Span, services: Services) -> RangePart:
        """Write the files of one range to the temporary folder of the run."""
        batches = rows.batches(span, BATCH_PROBLEMS)
        folder = scratch_folder(stage, services.pipeline, services.run_id)
        try:
            check = student_check(stage, services.pipeline)
            columns, tokens = list(rows.columns.values()), token_check(stage, check)
            return write_range(folder, number, stage.params.views, batches, columns, check, tokens)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # there will be no release; other ranges may still write files
            raise

    def release(self, stage: Spec, rows: RowReader, reports: Sequence[RangePart], services: Services) -> Decided:
        """Assemble, check and place the release, push it if `hub` is set, and return the decisions on the traces."""
        pipeline, params = services.pipeline, stage.params
        folder, scratch = release_folder(stage, pipeline), scratch_folder(stage, pipeline, services.run_id)
        leftovers = f".{folder.name}.tmp-"  # temporary folders of killed runs
        for leftover in folder.parent.glob(f"{leftovers}*"):
            run = leftover.name.removeprefix(leftovers)
            if run != services.run_id and not has_workers(services.state_dir, run):
                shutil.rmtree(leftover, ignore_errors=True)
        refused = {row_id: error for part in reports for row_id, error in part.refused.items()}
        above = {one.id for one in pipeline.above(stage)}
        card = card_inputs(stage, rows, frozenset(refused), services)
        try:
            manifest = assemble(
                scratch,
                reports,
                name=release_name(stage, pipeline),
                version=release_version(pipeline),
                pipeline=pipeline.name,
                card=card.model_copy(update={"control_tokens": _control_tokens(stage, reports)}),
                recipe=recipe_of(stage, pipeline),
                keys={one: key for one, key in services.keys.items() if one in above},
            )
            check_loads(scratch, manifest.configs)
            notes = _place(scratch, folder, manifest, stage, pipeline)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        notes += _shorter_views(reports)
        views = reports[0].views if reports else ()
        notes += unrendered({name: sum((part.views[name].unrendered for part in reports), Counter()) for name in views})
        if params.hub is not None:
            token = None if params.token is None else services.secret(params.token)
            version = release_version(pipeline)
            from tracefactory.publish.hub import push  # imports the Hub's client, which most runs do not need

            receipt = push(folder, repo=params.hub, version=version, private=params.private, token=token)
            write_json(receipt_file(stage, pipeline), receipt.model_dump(mode="json"))
            notes.append(f"published: {receipt.url}{receipt.main_note}")
        found = [(row_id, reason, detail) for row_id, (reason, detail) in refused.items()]
        schema = {"id": pl.String, "reason": pl.String, "detail": pl.String}
        decisions = rows.frame(Span.all(), ()).join(
            pl.DataFrame(found, schema=schema, orient="row"), on="id", how="left", maintain_order="left"
        )
        kept = pl.col("reason").is_null().alias("kept")
        return Decided(decisions.select("problem_id", "id", kept, "reason", "detail"), notes=notes)


def release_version(pipeline: Pipeline) -> str:
    """Return the version to publish; a run with --limit gets its own version."""
    return pipeline.version if pipeline.limit is None else f"{pipeline.version}-limit{pipeline.limit}"


def release_name(stage: Spec, pipeline: Pipeline) -> str:
    """Return the name of the dataset that a stage publishes."""
    return stage.params.name or pipeline.name


def release_folder(stage: Spec, pipeline: Pipeline) -> Path:
    """Return the folder of the release of a stage."""
    return pipeline.project.out_dir / release_name(stage, pipeline) / release_version(pipeline)


def scratch_folder(stage: Spec, pipeline: Pipeline, run_id: str) -> Path:
    """Return the folder in which a run writes a release before it is moved to the release folder."""
    folder = release_folder(stage, pipeline)
    return folder.parent / f".{folder.name}.tmp-{run_id}"


def receipt_file(stage: Spec, pipeline: Pipeline) -> Path:
    """Return the file that records the push of a release to the Hub."""
    name = release_name(stage, pipeline)
    return pipeline.project.state_dir / "published" / name / f"{release_version(pipeline)}.json"


def published(folder: Path) -> Manifest | None:
    """Return the manifest of a release folder; None when the folder has none."""
    return read(folder) if (folder / MANIFEST).exists() else None


def _place(scratch: Path, folder: Path, manifest: Manifest, stage: Spec, pipeline: Pipeline) -> list[str]:
    """Move a release to its place unless it exists already; return notes for the user.

    Raises:
        UserError: when this version exists with different content that is not only due to an upgrade.
    """
    relative = folder.relative_to(pipeline.project.root)
    if not folder.exists() or not any(folder.iterdir()):
        put_in_place(scratch, folder)
        return [f"published: {relative}"]
    present = verify_release(folder)
    if present.content == manifest.content:
        return [f"published: {relative}"]
    changed = compare(present, stage, pipeline)
    if not changed.by_user and present.name == manifest.name and present.licence == manifest.licence:
        return [
            f"published: {relative}, made by tracefactory {present.tracefactory}; this version would make different "
            f"rows ({_summary(changed.by_upgrade) or 'the rows differ'}): raise `version:` to publish them"
        ]
    reason = _summary(changed.by_user) or "the rows differ"
    raise UserError(
        f"{manifest.name} {manifest.version} exists in {folder} with other content ({reason}), and a published version "
        "is never changed: raise `version:` in the pipeline"
    )


def _summary(changes: Sequence[str]) -> str:
    return "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")


def _control_tokens(stage: Spec, reports: Sequence[RangePart]) -> str:
    """Return what the card says of control tokens in texts."""
    dropped = sum(reason == REASON for part in reports for reason, _ in part.refused.values())
    views = reports[0].views if reports else ()
    spelled = {name: sum((part.views[name].spelled for part in reports), Counter[str]()) for name in views}
    return sentence(stage.params.control_tokens, dropped, spelled)


def _shorter_views(reports: Sequence[RangePart]) -> list[str]:
    """Return a note for every partial view with the number of traces that it omits, by reason."""
    notes = []
    for name in reports[0].views if reports else ():
        reasons: Counter[str] = sum((part.views[name].left_out for part in reports), Counter())
        rows = sum(part.views[name].rows for part in reports)
        if reasons:
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            notes.append(f"the view {name} has {rows} rows and omits {reasons.total()}: {listed}")
    return notes


STAGES.register("publish:dataset")(PublishDataset())
