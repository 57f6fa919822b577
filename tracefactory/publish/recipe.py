"""Compare the recipe of a release with the current one, and separate changes by the user from those of an upgrade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tracefactory.core.marks import split_version
from tracefactory.core.model import public_name
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.engine.identity import identities
from tracefactory.engine.plan import changes
from tracefactory.publish.release import Manifest
from tracefactory.store.stages import StageFolder

Recipe = Mapping[str, Mapping[str, Any]]
"""The identities of the stages of a release, by stage id."""


class Changes(NamedTuple):
    """Descriptions of changes in the pipeline or its inputs, and of changes by an upgrade of this package."""

    by_user: tuple[str, ...]
    by_upgrade: tuple[str, ...]


def recipe_of(stage: StageSpec[Any], pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return the current identities of the stages above a release, as they are published: without local paths."""
    found = identities(pipeline)
    return {one.id: _published(found[one.id].stored(), pipeline) for one in pipeline.above(stage)}


def compare(manifest: Manifest, stage: StageSpec[Any], pipeline: Pipeline) -> Changes:
    """Return the changes from the recipe of a release to the current one.

    Args:
        manifest: the manifest of the release.
        stage: the publish stage.
        pipeline: the current pipeline.
    """
    before, after = previous_recipe(manifest, stage, pipeline.project.state_dir), recipe_of(stage, pipeline)
    return between({one: _published(found, pipeline) for one, found in before.items()}, after)


def _published(value: Any, pipeline: Pipeline) -> Any:
    """Return an identity, or a part of one, with the models of a pipeline as rows and cards name them."""
    if isinstance(value, Mapping):
        return {name: _published(one, pipeline) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_published(one, pipeline) for one in value]
    named = isinstance(value, str) and value in {spec.model for spec in pipeline.models.values()}
    return public_name(value) if named else value


def between(before: Recipe, after: Recipe) -> Changes:
    """Return the changes from one recipe to another.

    Args:
        before: the first recipe.
        after: the second recipe.
    """
    by_user = [f"stage {one} is new" for one in after if one not in before]
    by_user += [f"stage {one} was removed" for one in before if one not in after]
    by_upgrade: list[str] = []
    for one in (one for one in after if one in before):
        old, new = before[one], after[one]
        by_user += [f"{one}: {text}" for text in changes(_user_part(old, new), _user_part(new, old))]
        by_upgrade += [f"{one}: {text}" for text in changes(_package_part(old), _package_part(new))]
    return Changes(tuple(by_user), tuple(by_upgrade))


def previous_recipe(manifest: Manifest, stage: StageSpec[Any], state_dir: Path) -> Recipe:
    """Return the recipe of a release from its manifest or, for version 0.1, from the folders of its stages.

    Args:
        manifest: the manifest of the release.
        stage: the publish stage.
        state_dir: the folder of the project's state.
    """
    if manifest.recipe:
        return manifest.recipe
    found = {one: StageFolder(state_dir, one, key).identity() for one, key in manifest.stages.items()}
    return {one: content for one, content in found.items() if content is not None and one != stage.id}


def _user_part(identity: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that the user controls: parameters, files, prompts, models, inputs, plugins.

    A parameter that only one of the two identities has is due to the version of this package.
    """
    parameters, other_parameters = (one.get("parameters", one["with"]) for one in (identity, other))
    return {
        "op": identity["op"],
        "version": "",
        "inputs": dict.fromkeys(identity["inputs"], ""),
        "parameters": {name: value for name, value in parameters.items() if name in other_parameters},
        "uses": {
            **{name: value for name, value in identity["uses"].items() if name not in _VERSIONS},
            "code": _versions(identity).marks,
        },
    }


# Since key version 2 the versions are in "versions"; before, they were next to the values that the user controls.
_VERSIONS = {"versions", "verifiers", "pruner", "steps", "source"}


def _package_part(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that a version of this package determines."""
    versions = _versions(identity).plain
    return {
        "op": identity["op"],
        "version": versions.pop("version"),
        "inputs": {},
        "parameters": {"key_version": identity.get("key_version", 1)},
        "uses": versions,
    }


class _Versions(NamedTuple):
    """Versions without the marks of plugins, and the marks; versions without a mark are not in `marks`."""

    plain: dict[str, Any]
    marks: dict[str, Any]


def _versions(identity: Mapping[str, Any]) -> _Versions:
    """Return the versions of the code of a stage and of what it uses."""
    found = {name: value for name, value in identity["uses"].items() if name in _VERSIONS}
    named = found.pop("versions", {})
    return _split({**found, **named, "version": identity["version"]})


def _split(versions: Mapping[str, Any]) -> _Versions:
    found = _Versions({}, {})
    for name, one in versions.items():
        plain, mark = _split(one) if isinstance(one, Mapping) else split_version(str(one))
        found.plain[name] = plain
        if mark:
            found.marks[name] = mark
    return found
