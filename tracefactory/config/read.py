"""From a pipeline file to a `Pipeline`, or to everything that is wrong with it, at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tracefactory.config.model import NAME_PATTERN
from tracefactory.config.overlay import overlaid
from tracefactory.config.project import find_project, pipeline_files
from tracefactory.config.stages import Declared, StageDraft, read_stages, to_config
from tracefactory.core import plugins
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.model import MODELS, Environment, EnvStr, ModelSpec, env_names
from tracefactory.core.pipeline import Pipeline, Project, RunOptions, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import stage_of
from tracefactory.core.yamlfile import Node, read_yaml
from tracefactory.core.yamlmodel import read_model
from tracefactory.filters import FilterSet, load_filters
from tracefactory.text.prompts import Prompt, prompt_files, read_prompts

_SECTIONS = ("models", "stages", "profiles")


class _Head(Frozen):
    """What a pipeline file says of itself."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    run: RunOptions = Field(default_factory=RunOptions)


@dataclass(frozen=True)
class _Shelf:
    """The prompts, filters and plugins of a project; `broken` is what is wrong with them."""

    prompts: Mapping[str, Prompt]
    prompt_names: frozenset[str]
    filters: FilterSet | None
    filter_names: frozenset[str]
    plugins: Mapping[str, str]
    broken: tuple[Mistake, ...]


@dataclass(frozen=True)
class _Choice:
    """What is laid over the file."""

    profile: str | None = None
    sets: Sequence[str] = ()
    limit: int | None = None


@dataclass(frozen=True)
class _Reader:
    """Parameters that may name environment variables, what they belong to, and where they are written."""

    what: str
    params: Frozen
    node: Node


@dataclass(frozen=True)
class _Reading:
    """What came of a file: a pipeline of all that could be understood, and what is wrong.

    `readers` are the models that its stages use, and the stages themselves.
    """

    pipeline: Pipeline | None
    mistakes: tuple[Mistake, ...]
    readers: tuple[_Reader, ...] = ()
    profiles: tuple[str, ...] = ()


def load_pipeline(
    path: Path,
    *,
    profile: str | None = None,
    sets: Sequence[str] = (),
    limit: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Pipeline:
    """Read a pipeline file and the project around it.

    The file is overlaid by `profile` and then by each of `sets` ("path=value", stages addressed by id, such as
    "stages.long.with.samples=8"). `limit` restricts every source to its first rows. Nothing is started or fetched.

    Raises:
        UserError: with everything that is wrong in the pipeline, its prompts, filters and plugins. An environment
            variable that is not set is a mistake for the models that the stages use.
    """
    project = find_project(path, environ)
    shelf = _read_shelf(project)
    reading = _read_pipeline(path, project, shelf, _Choice(profile, tuple(sets), limit))
    here = Environment(project.root, environ)
    mistakes = [*reading.mistakes, *shelf.broken, *_unset(reading, environ), *_check_models(reading, here)]
    if mistakes or reading.pipeline is None:
        raise UserError(_in_order(mistakes, path))
    return reading.pipeline


def check_project(project: Project) -> list[Mistake]:
    """Return everything that is wrong in any pipeline (with each of its profiles), prompt, filter or plugin. Offline.

    What depends on this machine, such as environment variables and weights, is not looked at: see `unset_variables`.
    """
    shelf = _read_shelf(project)
    found = [mistake for reading in _read_all(project, shelf) for mistake in reading.mistakes]
    return _in_order([*found, *shelf.broken], None)


def unset_variables(project: Project, environ: Mapping[str, str] = os.environ) -> list[Mistake]:
    """Return the environment variables that pipelines of the project read and that are not set, as file:line."""
    found = [mistake for reading in _read_all(project, _read_shelf(project)) for mistake in _unset(reading, environ)]
    return _in_order(found, None)


def _read_all(project: Project, shelf: _Shelf) -> Iterator[_Reading]:
    """Read every pipeline as it is and with each of its profiles."""
    for file in pipeline_files(project):
        reading = _read_pipeline(file, project, shelf, _Choice())
        yield reading
        for profile in reading.profiles:
            yield _read_pipeline(file, project, shelf, _Choice(profile))


def _read_shelf(project: Project) -> _Shelf:
    broken: list[Mistake] = []
    prompts = read_prompts(project.prompts, broken)
    filters: FilterSet | None = None
    try:
        filters = load_filters(project.filters)
    except UserError as error:
        broken.extend(error.mistakes)
    sources = plugins.read(project.root, broken)
    plugins.activate(project.root, sources)
    broken += plugins.load_active()
    return _Shelf(
        prompts=prompts,
        prompt_names=frozenset(file.stem for file in prompt_files(project.prompts)),
        filters=filters,
        filter_names=frozenset(file.stem for file in project.filters.glob("*.py")),
        plugins=sources,
        broken=tuple(broken),
    )


def _read_pipeline(path: Path, project: Project, shelf: _Shelf, choice: _Choice) -> _Reading:
    mistakes: list[Mistake] = []
    root = read_yaml(path, mistakes)
    if root is not None and not isinstance(root.value, Mapping):
        mistakes.append(root.position.mistake(f"a pipeline is a mapping with `name:`, found {root.describe()}"))
    if root is None or not isinstance(root.value, Mapping):
        return _Reading(None, tuple(mistakes))
    profiles = root.child("profiles")
    root = overlaid(root, choice.profile, choice.sets, mistakes)
    if choice.limit is not None and choice.limit < 1:
        mistakes.append(Mistake(f"--limit must be at least 1, found {choice.limit}"))
    head = _read_head(root, mistakes)
    models = _read_models(root, mistakes)
    section = root.child("models")
    declared = Declared(
        models=frozenset(section.mapping() if section else ()),
        prompts=shelf.prompt_names,
        filter_names=shelf.filter_names,
        filters=shelf.filters,
    )
    drafts = read_stages(root, declared, mistakes)
    used = {ref.name for draft in drafts for ref in draft.refs if ref.kind == "model"}
    pipeline = Pipeline(
        name=head.name if head else path.stem,
        version=head.version if head else "0",
        description=head.description if head else "",
        models=models,
        stages=_sound_stages(drafts, models, shelf, path),
        run=head.run if head else RunOptions(),
        file=path,
        project=project,
        limit=choice.limit,
        profile=choice.profile,
        prompts=shelf.prompts,
        filters=shelf.filters if shelf.filters is not None else FilterSet({}),
        plugins=shelf.plugins,
    )
    mistakes.extend(_check_stages(pipeline, shelf.broken))
    named = sorted(used & models.keys())
    readers = [_Reader(f"model {name!r}", models[name], root.find(("models", name))) for name in named]
    readers += [
        _Reader(one.what, one.params, one.node.child("with") or one.node) for one in drafts if one.params is not None
    ]
    return _Reading(pipeline, tuple(mistakes), tuple(readers), tuple(profiles.mapping() if profiles else ()))


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
        spec = _read_spec(name, node, mistakes)
        if spec is not None:
            specs[name] = spec
    return specs


def _read_spec(name: str, node: Node, mistakes: list[Mistake]) -> ModelSpec | None:
    what, use = f"model {name!r}", node.child("use")
    if not re.match(NAME_PATTERN, name):
        mistakes.append(node.position.mistake(f"{what}: a name is letters and digits, with . _ - between them"))
    if not isinstance(node.value, Mapping):
        mistakes.append(node.position.mistake(f"{what} must be a mapping, found {node.describe()}"))
    elif use is None:
        mistakes.append(node.position.mistake(f"{what}: use is missing", f"one of: {', '.join(MODELS)}"))
    elif not isinstance(use.value, str) or use.value not in MODELS:
        hint = nearest(str(use.value), MODELS)
        mistakes.append(use.position.mistake(f"{what}: there is no kind of model `use: {use.plain()}`", hint))
    else:
        try:
            return read_model(MODELS.get(use.value), node, what, mistakes)
        except UserError as error:  # the plugin of the kind is broken
            mistakes.extend(error.mistakes)
    return None


def _sound_stages(
    drafts: list[StageDraft], models: Mapping[str, ModelSpec], shelf: _Shelf, file: Path
) -> tuple[StageSpec[Any], ...]:
    """Return the stages whose parameters and names are right, less the inputs that are not.

    In a file without mistakes these are all stages as they are. In any other they are what the operations' own checks
    can look at, so that one run tells everything.
    """
    there = {"model": models.keys(), "prompt": shelf.prompts.keys()}
    sound: dict[str, StageSpec[Any]] = {}
    for draft in drafts:
        resolves = all(ref.name in there.get(ref.kind, sound.keys()) for ref in draft.refs)
        if draft.op is not None and draft.params is not None and resolves and draft.id not in sound:
            inputs = tuple(name for name in draft.inputs if name in sound)
            sound[draft.id] = to_config(draft, file, inputs)
    return tuple(sound.values())


def _check_stages(pipeline: Pipeline, broken: Sequence[Mistake]) -> Iterator[Mistake]:
    """Yield what the operations find wrong; what is wrong with a plugin they use is said once, at its file."""
    for stage in pipeline.stages:
        try:
            found: Sequence[Mistake] = stage_of(stage).check(stage, pipeline)
        except UserError as error:
            found = error.mistakes
        for mistake in (one for one in found if one not in broken):
            what = f"stage {stage.id!r}: "
            message = what + mistake.message.removeprefix(what)
            place = (mistake.file, mistake.line) if mistake.file is not None else (stage.file, stage.line)
            yield Mistake(message, *place, mistake.hint)


def _unset(reading: _Reading, environ: Mapping[str, str]) -> Iterator[Mistake]:
    """Yield each environment variable that a stage or a used model reads and that is not set, where it is named."""
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


def _check_models(reading: _Reading, environment: Environment) -> Iterator[Mistake]:
    """Yield what this machine lacks for a used model, at the model."""
    for reader in reading.readers:
        for mistake in reader.params.check(environment) if isinstance(reader.params, ModelSpec) else ():
            what = f"{reader.what}: {mistake.message}"
            yield mistake if mistake.file is not None else reader.node.position.mistake(what, mistake.hint)


def _in_order(mistakes: Sequence[Mistake], first: Path | None) -> list[Mistake]:
    """Sort by place, the file that was asked for first, each mistake once."""
    unique = dict.fromkeys(mistakes)
    return sorted(unique, key=lambda one: (one.file != first, str(one.file or ""), one.line or 0))
