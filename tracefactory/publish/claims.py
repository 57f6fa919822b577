"""Which name and version a publish stage claims, and who else claims it: a version holds one dataset.

The other pipeline files of the project are only searched for name and version, and read as YAML where both occur. A
file that cannot be read claims nothing here; `tracefactory check` of it says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from tracefactory.config.project import pipeline_files
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.yamlfile import Node, read_yaml
from tracefactory.publish.release import MANIFEST, read_manifest


class Claim(NamedTuple):
    """A name and version that a publish stage of a pipeline file claims; `profile` is "" for the file as it is."""

    name: str
    version: str
    stage: str
    line: int
    profile: str


def claimed_above(stage: StageSpec[Any], pipeline: Pipeline) -> Iterator[Mistake]:
    """Yield a mistake for a name or repository that a publish stage above has; upper and lower case are the same.

    Args:
        stage: the publish stage.
        pipeline: its pipeline.
    """
    publishing = (one for one in pipeline.stages if one.op == stage.op)
    for other in takewhile(lambda one: one.id != stage.id, publishing):
        where = f"stage {other.id!r} in line {other.line}"
        names = [one.params.name or pipeline.name for one in (stage, other)]
        if names[0].casefold() == names[1].casefold():
            message = f"{where} publishes {names[1]} {pipeline.version} too, and a version holds one dataset"
            yield Mistake(message, hint=f"name one of them, as in `with: {{name: {pipeline.name}-{stage.id}}}`")
        hub, taken = stage.params.hub, other.params.hub
        if hub is not None and taken is not None and hub.casefold() == taken.casefold():
            message = f"{where} pushes to hub: {taken} too, and a repository holds one dataset"
            yield Mistake(message, hint="name another repository, or leave `hub:` out")


def claimed_elsewhere(stage: StageSpec[Any], pipeline: Pipeline, folder: Path) -> Iterator[Mistake]:
    """Yield a mistake when another pipeline file claims the stage's name and version, or has published them.

    A release that does not say which pipeline made it, from before version 0.3, is left to the run, which compares it.

    Args:
        stage: the publish stage.
        pipeline: its pipeline.
        folder: the folder of its release.
    """
    name, project = stage.params.name or pipeline.name, pipeline.project
    found = False
    for file in pipeline_files(project):
        for claim in () if file.samefile(pipeline.file) else _claims_of(file, name, pipeline.version):
            found = True
            under = f" under the profile {claim.profile!r}" if claim.profile else ""
            message = (
                f"stage {claim.stage!r} of {file.relative_to(project.root)}, line {claim.line}, publishes {claim.name} "
                f"{claim.version} too{under}, and a version holds one dataset"
            )
            yield Mistake(message, hint=_remedy(pipeline, stage))
    maker = _maker(folder)
    if maker and maker != pipeline.name and not found:
        message = f"{folder.relative_to(project.root)} was published by another pipeline, {maker!r}"
        yield Mistake(message, hint=_remedy(pipeline, stage))


def _remedy(pipeline: Pipeline, stage: StageSpec[Any]) -> str:
    return f"name one of them otherwise, as in `with: {{name: {pipeline.name}-{stage.id}}}`, or raise `version:`"


def _maker(folder: Path) -> str:
    """Return the name of the pipeline that made a release; "" where there is none, or it does not say so."""
    if not (folder / MANIFEST).is_file():
        return ""
    try:
        return read_manifest(folder).pipeline
    except UserError:
        return ""  # the run says what is wrong with it


def _claims_of(file: Path, name: str, version: str) -> Iterator[Claim]:
    """Yield what a pipeline file claims of a name and version."""
    try:
        status = file.stat()
        text = file.read_text(encoding="utf-8-sig").casefold()
    except (OSError, UnicodeDecodeError):
        return
    if _says(text, "name", name) and _says(text, "version", version):  # reading YAML takes a hundred times as long
        for claim in _claims(file, status.st_mtime_ns, status.st_size):
            if claim.name.casefold() == name.casefold() and claim.version == version:
                yield claim


def _says(text: str, key: str, value: str) -> bool:
    """Tell whether a key may have this value in a text of lower case."""
    written = rf"{key}[\"']?\s*:\s*[\"']?{re.escape(value.casefold())}[\"']?\s*(?:[,}}#\n]|$)"
    return re.search(written, text) is not None


@lru_cache(maxsize=256)
def _claims(file: Path, modified: int, size: int) -> tuple[Claim, ...]:
    """Return what a pipeline file claims, as it is and under each of its profiles; nothing if it cannot be read."""
    root = read_yaml(file, [])
    if root is None or (name := _text(root, "name")) is None or (version := _text(root, "version")) is None:
        return ()
    stages, profiles = root.child("stages"), root.child("profiles")
    found = []
    for node in stages.value if stages is not None and isinstance(stages.value, tuple) else ():
        stage = _text(node, "id")
        if stage is None or node.child("publish") is None:
            continue
        told = {"": _text(node, "with", "name") or name}
        for profile, changed in profiles.mapping().items() if profiles else ():
            other = _text(changed, "stages", stage, "with", "name")
            told |= {} if other is None else {profile: other}
        found += [Claim(one, version, stage, node.position.line, under) for under, one in told.items()]
    return tuple(found)


def _text(node: Node, *path: str) -> str | None:
    """Return the text at a path; None when there is another value or none."""
    found: Node | None = node
    for key in path:
        found = None if found is None else found.child(key)
    return found.value if found is not None and isinstance(found.value, str) else None
