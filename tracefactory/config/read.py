"""Read a pipeline file as a `Pipeline`, or report all of its mistakes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.config.model import NAME_PATTERN
from tracefactory.config.overlay import changed, overlaid
from tracefactory.config.project import find_project, pipeline_files
from tracefactory.config.stages import Declared, StageDraft, read_stages
from tracefactory.config.teach import teach_mistakes
from tracefactory.core import plugins
from tracefactory.core.budget import Budget
from tracefactory.core.environment import Environment, EnvStr, env_names
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.gpus import too_many_gpus
from tracefactory.core.model import MODELS, ModelSpec
from tracefactory.core.pipeline import Pipeline, Project, RunOptions, SandboxOptions, StageSpec, Written
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import stage_of
from tracefactory.core.teach import Teach
from tracefactory.core.yamlfile import Node, Position, parse_yaml, read_text
from tracefactory.core.yamlmodel import read_model
from tracefactory.filters import FilterSet, read_filters
from tracefactory.text.prompts import Prompt, prompt_files, read_prompts

_SECTIONS = ("models", "stages", "profiles")


class _Head(Frozen):
    """The keys of a pipeline file that are not names of sections."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    budget: Budget = Field(default_factory=Budget)
    run: RunOptions = Field(default_factory=RunOptions)
    sandbox: SandboxOptions = Field(default_factory=SandboxOptions)
    teach: Teach | None = None


@dataclass(frozen=True)
class _ProjectFiles:
    """The prompts, filters and plugins of a project; `broken` are their mistakes."""

    prompts: Mapping[str, Prompt]
    prompt_names: frozenset[str]
    filters: FilterSet
    filter_names: frozenset[str]
    plugins: Mapping[str, str]
    broken: tuple[Mistake, ...]


@dataclass(frozen=True)
class _Overlays:
    """The changes to the file that a command asks for."""

    profile: str | None = None
    sets: Sequence[str] = ()
    limit: int | None = None


@dataclass(frozen=True)
class _Reader:
    """A used model or a stage, whose parameters may name environment variables.

    `check` returns what a model lacks on this machine.
    """

    what: str
    params: Frozen
    node: Node
    check: Callable[[Environment], Sequence[Mistake]] = lambda environment: ()


@dataclass(frozen=True)
class _Reading:
    """The result of reading a file: a pipeline of its valid parts, and the mistakes.

    `readers` are the stages, and the models that they use. `used` are the files of the prompts and filters that the
    stages name.
    """

    pipeline: Pipeline | None
    mistakes: tuple[Mistake, ...]
    readers: tuple[_Reader, ...] = ()
    profiles: tuple[str, ...] = ()
    used: frozenset[Path] = frozenset()


def load_pipeline(
    path: Path,
    *,
    profile: str | None = None,
    sets: Sequence[str] = (),
    limit: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Pipeline:
    """Read a pipeline file and the project around it.

    No server is started, and no file is downloaded.

    Args:
        path: the pipeline file.
        profile: the name of the profile to apply.
        sets: changes "path=value" to apply after the profile, such as "stages.long.with.samples=8"; stages are
            addressed by id.
        limit: the number of rows that every source is restricted to.
        environ: the environment variables.

    Raises:
        UserError: with all mistakes in the pipeline, in the prompts and filters that it names, and in the project's
            plugins. A missing environment variable is a mistake if a stage or a used model reads it.
    """
    project = find_project(path, environ)
    files = _read_project_files(project)
    reading = _read_pipeline(path, project, files, _Overlays(profile, tuple(sets), limit))
    others = {*prompt_files(project.prompts), *project.filters.glob("*.py")} - reading.used
    broken = [mistake for mistake in files.broken if mistake.file not in others]
    mistakes = [*reading.mistakes, *broken, *_unset(reading, environ)]
    environment = Environment(project.root, environ)
    for reader in reading.readers:
        for mistake in reader.check(environment):
            at_model = reader.node.position.mistake(f"{reader.what}: {mistake.message}", mistake.hint)
            mistakes.append(at_model if mistake.file is None else mistake)
    if mistakes or reading.pipeline is None:
        raise UserError(_in_order(mistakes, path))
    return reading.pipeline


def check_project(project: Project) -> list[Mistake]:
    """Return all mistakes in the pipelines (with each of their profiles), prompts, filters and plugins of a project.

    The check is offline and independent of the machine: environment variables (see `unset_variables`) and weights are
    not checked.
    """
    files = _read_project_files(project)
    found = [mistake for reading in _read_all(project, files) for mistake in reading.mistakes]
    return _in_order([*found, *files.broken], None)


def unset_variables(project: Project, environ: Mapping[str, str] = os.environ) -> list[Mistake]:
    """Return a mistake for every environment variable that a pipeline reads and that is not set.

    Args:
        project: the project of the pipelines.
        environ: the environment variables.
    """
    found = [
        mistake for reading in _read_all(project, _read_project_files(project)) for mistake in _unset(reading, environ)
    ]
    return _in_order(found, None)


def _read_all(project: Project, files: _ProjectFiles) -> Iterator[_Reading]:
    """Read every pipeline without a profile and with each of its profiles."""
    for file in pipeline_files(project):
        reading = _read_pipeline(file, project, files, _Overlays())
        yield reading
        for profile in reading.profiles:
            yield _read_pipeline(file, project, files, _Overlays(profile))


def _read_project_files(project: Project) -> _ProjectFiles:
    broken: list[Mistake] = []
    prompts = read_prompts(project.prompts, broken)
    filters = read_filters(project.filters, broken)
    sources = plugins.read(project.root, broken)
    plugins.activate(project.root, sources)
    broken += plugins.load_active()
    return _ProjectFiles(
        prompts=prompts,
        prompt_names=frozenset(file.stem for file in prompt_files(project.prompts)),
        filters=filters,
        filter_names=frozenset(file.stem for file in project.filters.glob("*.py")),
        plugins=sources,
        broken=tuple(broken),
    )


def _read_pipeline(path: Path, project: Project, files: _ProjectFiles, overlays: _Overlays) -> _Reading:
    mistakes: list[Mistake] = []
    text = read_text(path, mistakes)
    root = None if text is None else parse_yaml(text, Position(path), mistakes)
    if root is not None and not isinstance(root.value, Mapping):
        mistakes.append(root.position.mistake(f"a pipeline is a mapping with `name:`, found {root.describe()}"))
    if root is None or not isinstance(root.value, Mapping):
        return _Reading(None, tuple(mistakes))
    profiles, as_written = root.child("profiles"), root
    root = overlaid(root, overlays.profile, overlays.sets, mistakes)
    if overlays.limit is not None and overlays.limit < 1:
        mistakes.append(Mistake(f"--limit must be at least 1, found {overlays.limit}"))
    head = _read_head(root, mistakes)
    models = _read_models(root, mistakes)
    section = root.child("models")
    declared = Declared(
        models=frozenset(section.mapping() if section else ()),
        prompts=files.prompt_names,
        filter_names=files.filter_names,
        filters=files.filters,
    )
    drafts = read_stages(root, declared, mistakes)
    used = {ref.name for draft in drafts for ref in draft.refs if ref.kind == "model"}
    pipeline = Pipeline(
        name=head.name if head else path.stem,
        version=head.version if head else "0",
        description=head.description if head else "",
        models=models,
        stages=_valid_stages(drafts, models, files, path),
        run=head.run if head else RunOptions(),
        budget=head.budget if head else Budget(),
        sandbox=head.sandbox if head else SandboxOptions(),
        teach=head.teach if head else None,
        file=path,
        project=project,
        limit=overlays.limit,
        profile=overlays.profile,
        written=Written(
            file=os.path.relpath(path.resolve(), project.root),
            text=text or "",
            sets=tuple(overlays.sets),
            changes=tuple(changed(as_written, root)),
        ),
        prompts=files.prompts,
        filters=files.filters,
        plugins=files.plugins,
    )
    mistakes.extend(_check_stages(pipeline, files.broken))
    mistakes.extend(teach_mistakes(pipeline, root))
    named = sorted(used & models.keys())
    readers = [
        _Reader(f"model {name!r}", models[name], root.find(("models", name)), models[name].check) for name in named
    ]
    readers += [
        _Reader(one.what, one.params, one.node.child("with") or one.node) for one in drafts if one.params is not None
    ]
    names = tuple(profiles.mapping() if profiles else ())
    return _Reading(pipeline, tuple(mistakes), tuple(readers), names, _files_of(drafts, project))


def _files_of(drafts: Sequence[StageDraft], project: Project) -> frozenset[Path]:
    """Return the files of the prompts and filters that stages name."""
    prompts = {ref.name for draft in drafts for ref in draft.refs if ref.kind == "prompt"}
    filters = (project.filters / f"{name}.py" for draft in drafts for name in draft.filter_names)
    return frozenset([*filters, *(file for file in prompt_files(project.prompts) if file.stem in prompts)])


def _read_head(root: Node, mistakes: list[Mistake]) -> _Head | None:
    keys = (*_Head.model_fields, *_SECTIONS)
    for key, node in root.mapping().items():
        if key not in keys:
            mistakes.append(node.position.mistake(f"the pipeline: unknown key {key!r}", nearest(key, keys)))
    own = {key: node for key, node in root.mapping().items() if key in _Head.model_fields}
    return read_model(_Head, replace(root, value=own), "the pipeline", mistakes)


def _read_models(root: Node, mistakes: list[Mistake]) -> dict[str, ModelSpec]:
    section = root.child("models")
    if section is None or section.value is None:
        return {}
    if not isinstance(section.value, Mapping):
        mistakes.append(section.position.mistake(f"models: must be a mapping of names, found {section.describe()}"))
    specs: dict[str, ModelSpec] = {}
    for name, node in section.mapping().items():
        what, use = f"model {name!r}", node.child("use")
        if not re.match(NAME_PATTERN, name):
            message = f"{what}: a name consists of letters and digits, with . _ - between them"
            mistakes.append(node.position.mistake(message))
        if not isinstance(node.value, Mapping):
            mistakes.append(node.position.mistake(f"{what} must be a mapping, found {node.describe()}"))
        elif use is None:
            mistakes.append(node.position.mistake(f"{what}: use is missing", f"one of: {', '.join(MODELS)}"))
        elif not isinstance(use.value, str) or use.value not in MODELS:
            hint = nearest(str(use.value), MODELS)
            mistakes.append(use.position.mistake(f"{what}: there is no kind of model `use: {use.plain()}`", hint))
        else:
            try:
                spec = read_model(MODELS.get(use.value), _with_price(node, what, mistakes), what, mistakes)
            except UserError as error:  # the plugin of the kind is broken
                mistakes.extend(error.mistakes)
            else:
                specs |= {} if spec is None else {name: spec}
    return specs


def _with_price(node: Node, what: str, mistakes: list[Mistake]) -> Node:
    """Return a model with `price:` in place of `price_in` and `price_out` of version 0.2, where one of them was 0."""
    former = {name: node.child(name) for name in ("price_in", "price_out")}
    first = next((one for one in former.values() if one is not None), None)
    if first is None:
        return node
    free = Node(0.0, first.position)
    rates = {"input": former["price_in"] or free, "output": former["price_out"] or free}
    if node.child("price") is not None:
        written = ", ".join(f"{name}: {rate.plain()}" for name, rate in rates.items())
        message = f"{what}: price_in and price_out are now in price: write price: {{{written}}} alone"
        mistakes.append(first.position.mistake(message))
    kept = {name: one for name, one in node.mapping().items() if name not in former}
    return replace(node, value={**kept, "price": node.child("price") or Node(rates, first.position)})


def _valid_stages(
    drafts: list[StageDraft], models: Mapping[str, ModelSpec], files: _ProjectFiles, file: Path
) -> tuple[StageSpec[Any], ...]:
    """Return the stages with valid parameters and references, without their invalid inputs.

    In a file without mistakes these are all stages. In other files, the operations can check these stages, so that one
    run of the command reports all mistakes.
    """
    existing = {"model": models.keys(), "prompt": files.prompts.keys()}
    valid: dict[str, StageSpec[Any]] = {}
    for draft in drafts:
        resolves = all(ref.name in existing.get(ref.kind, valid.keys()) for ref in draft.refs)
        stage = draft.finished(file, tuple(name for name in draft.inputs if name in valid))
        if stage is not None and resolves and draft.id not in valid:
            valid[draft.id] = stage
    return tuple(valid.values())


def _check_stages(pipeline: Pipeline, broken: Sequence[Mistake]) -> Iterator[Mistake]:
    """Yield the mistakes that operations find, except those of broken plugins, which are reported at their files."""
    for stage in pipeline.stages:
        try:
            found: Sequence[Mistake] = [*stage_of(stage).check(stage, pipeline), *too_many_gpus(stage, pipeline)]
        except UserError as error:
            found = error.mistakes
        for mistake in (one for one in found if one not in broken):
            what = f"stage {stage.id!r}: "
            message = what + mistake.message.removeprefix(what)
            place = (mistake.file, mistake.line) if mistake.file is not None else (stage.file, stage.line)
            yield Mistake(message, *place, mistake.hint)


def _unset(reading: _Reading, environ: Mapping[str, str]) -> Iterator[Mistake]:
    """Yield a mistake for each environment variable that a stage or a used model reads and that is not set."""
    for reader in reading.readers:
        for variable in env_names(reader.params):
            if not environ.get(variable):
                places = [item.position for item in reader.node.mapping().values() if _names(item, variable)]
                place = places[0] if places else reader.node.position
                yield place.mistake(f"{reader.what}: the environment variable {variable} is not set")


def _names(node: Node, variable: str) -> bool:
    if isinstance(node.value, tuple):
        return any(_names(item, variable) for item in node.value)
    return isinstance(node.value, str) and EnvStr(node.value).env_name == variable


def _in_order(mistakes: Sequence[Mistake], first: Path | None) -> list[Mistake]:
    """Return each mistake once, sorted by file and line, those of the file `first` at the beginning."""
    unique = dict.fromkeys(mistakes)
    return sorted(unique, key=lambda one: (one.file != first, str(one.file or ""), one.line or 0))
