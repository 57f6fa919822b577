"""What a release was made from, compared with what would be made now: changes of the user, and of an upgrade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tracefactory.core.files import read_json
from tracefactory.core.marks import split_version
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.engine.identity import identities
from tracefactory.engine.plan import changes
from tracefactory.publish.release import Manifest

Recipe = Mapping[str, Mapping[str, Any]]
"""The identity of every stage a release was made from, by stage id."""


class Changes(NamedTuple):
    """In words: what was changed in the pipeline and what it reads, and what an upgrade of this package changed."""

    by_user: tuple[str, ...]
    by_upgrade: tuple[str, ...]


def recipe_of(stage: StageSpec[Any], pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return what the stages above a release are made from now."""
    found = identities(pipeline)
    return {one.id: found[one.id].stored() for one in pipeline.above(stage)}


def compare(manifest: Manifest, stage: StageSpec[Any], pipeline: Pipeline) -> Changes:
    """Compare what a release was made from with what would be made now."""
    before, after = previous_recipe(manifest, stage, pipeline.project.state_dir), recipe_of(stage, pipeline)
    by_user = [f"stage {one} is new" for one in after if one not in before]
    by_user += [f"stage {one} is gone" for one in before if one not in after]
    by_upgrade: list[str] = []
    for one in (one for one in after if one in before):
        old, new = before[one], after[one]
        by_user += [f"{one}: {text}" for text in changes(_user_part(old, new), _user_part(new, old))]
        by_upgrade += [f"{one}: {text}" for text in changes(_package_part(old), _package_part(new))]
    return Changes(tuple(by_user), tuple(by_upgrade))


def previous_recipe(manifest: Manifest, stage: StageSpec[Any], state_dir: Path) -> Recipe:
    """Return what a release was made from: as its manifest says or, of version 0.1, as its stages' folders do."""
    if manifest.recipe:
        return manifest.recipe
    folders = {one: state_dir / "stages" / f"{one}-{key[:16]}" for one, key in manifest.stages.items()}
    found = {one: read_json(folder / "identity.json") for one, folder in folders.items()}
    return {one: content for one, content in found.items() if content is not None and one != stage.id}


def _user_part(identity: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that the user decides: parameters, files, prompts, models, inputs, plugins.

    A parameter that only one version of this package knows is none of the user's doing.
    """
    parameters, other_parameters = _parameters(identity), _parameters(other)
    return {
        "op": identity["op"],
        "version": "",
        "inputs": dict.fromkeys(identity["inputs"], ""),
        "parameters": {name: value for name, value in parameters.items() if name in other_parameters},
        "uses": {
            **{name: value for name, value in identity["uses"].items() if name not in _VERSIONS},
            "code": _version_part(_versions(identity), 1),
        },
    }


# Under "versions" since key version 2; before, these stood beside what the user decides.
_VERSIONS = {"versions", "verifiers", "pruner", "steps", "source"}


def _package_part(identity: Mapping[str, Any]) -> dict[str, Any]:
    versions = _version_part(_versions(identity), 0)
    return {
        "op": identity["op"],
        "version": versions.pop("version"),
        "inputs": {},
        "parameters": {"key_version": identity.get("key_version", 1)},
        "uses": versions,
    }


def _versions(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of the code that a stage was made by: its own, and those of what it used."""
    found = {name: value for name, value in identity["uses"].items() if name in _VERSIONS}
    named = found.pop("versions", {})
    return {**found, **named, "version": identity["version"]}


def _version_part(versions: Mapping[str, Any], part: int) -> dict[str, Any]:
    """Return of every version what this package says of it (0), or the mark of a plugin's source (1)."""
    return {
        name: _version_part(one, part) if isinstance(one, Mapping) else split_version(str(one))[part]
        for name, one in versions.items()
    }


def _parameters(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = identity.get("parameters", identity["with"])
    return found
