"""The stages that somebody still needs: those of pipelines, of newest runs, of runs that go on and of releases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from tracefactory.config.project import pipeline_files
from tracefactory.config.read import load_pipeline
from tracefactory.core.errors import Mistake, RunError, UserError
from tracefactory.core.pipeline import Project
from tracefactory.core.yamlfile import read_yaml
from tracefactory.engine.identity import identities
from tracefactory.engine.runs import RUN
from tracefactory.store.garbage import live_runs, plan_of
from tracefactory.store.stages import StageFolder, folder_name

STAGE = re.compile(r"(.+)-([0-9a-f]{16})")
"""The name of the folder of a stage: its id and the first digits of its key."""


@dataclass
class Reach:
    """Folders of stages by name, each with who needs it; `broken` are sentences about what could not be read.

    While something is broken, any stage may be needed. `pipelines` are the names in the pipeline files.
    """

    stages: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    pipelines: set[str] = field(default_factory=set)

    def add(self, stages: Mapping[str, str], by: str) -> None:
        """Add stages (folder by id) that are needed by something."""
        for folder in stages.values():
            self.stages.setdefault(folder, by)


def reach_of(project: Project) -> Reach:
    """Return the stages that somebody needs.

    These are the stages of every pipeline file under every profile, of the newest run of each of these pipelines and of
    all pipelines (which may have been run with `--set`), of runs that go on, of releases in out/, of the newest run of
    each version that was pushed to the Hub, and the inputs of these. If the state is not inside of the project, other
    projects may use it, and the newest run of every pipeline counts.
    """
    reach = Reach()
    for file in pipeline_files(project):
        _add_pipeline(reach, file, project)
    _add_runs(reach, project)
    for release in releases(project.out_dir):
        try:
            reach.add(release_stages(release), f"the release {release.parent.name} {release.name}")
        except ValueError as error:
            reach.broken.append(str(error))
    _add_inputs(reach, project.state_dir)
    return reach


def _add_runs(reach: Reach, project: Project) -> None:
    root = project.state_dir
    runs, live, pushed = runs_by_pipeline(root), live_runs(root), pushed_versions(root)
    last = max((names[-1] for names in runs.values()), default="")
    for name, names in sorted(runs.items()):
        is_ours = name in reach.pipelines or not root.resolve().is_relative_to(project.root)
        versions: set[str] = set()  # those whose newest run was seen
        for run in reversed(names):
            try:
                plan = plan_of(root, run)
            except ValueError as error:
                reach.broken.append(str(error))
                continue
            if plan is None:
                continue
            if run == last or (run == names[-1] and is_ours):
                reach.add(plan.stages, f"the newest run of {name}")
            if run in live:
                reach.add(plan.stages, f"run {run}, which goes on")
            if plan.version in pushed - versions:
                reach.add(plan.stages, f"version {plan.version} of {name} on the Hub")
            versions.add(plan.version)


def _add_pipeline(reach: Reach, file: Path, project: Project) -> None:
    name = file.relative_to(project.root)
    mistakes: list[Mistake] = []
    try:
        root = read_yaml(file, mistakes)
        if root is None:
            raise UserError(mistakes)
        profiles = root.child("profiles")
        names: list[str | None] = [None]
        if profiles is not None:
            names += profiles.mapping()
        for profile in names:
            loaded = load_pipeline(file, profile=profile)
            reach.pipelines.add(loaded.name)
            keys = {one: folder_name(one, identity.key) for one, identity in identities(loaded).items()}
            reach.add(keys, str(name) if profile is None else f"{name}, profile {profile}")
    except (UserError, RunError, OSError) as error:
        first, *more = (str(error) or repr(error)).replace(f"{project.root}/", "").splitlines()
        where = "" if str(name) in first else f"{name}: "
        reach.broken.append(f"{where}{first}" + (f" (and {len(more)} more mistakes)" if more else ""))


def _add_inputs(reach: Reach, root: Path) -> None:
    todo = list(reach.stages)
    while todo:
        name = todo.pop()
        for folder in inputs_of(root, name):
            if folder not in reach.stages:
                reach.stages[folder] = reach.stages[name]
                todo.append(folder)


def inputs_of(root: Path, folder: str) -> list[str]:
    """Return the folders of the inputs of a stage, named as its own is; none where it is no stage or is damaged."""
    match = STAGE.fullmatch(folder)
    identity = StageFolder(root, match[1], match[2]).identity() if match is not None else None
    return [folder_name(source, key) for source, key in (identity or {}).get("inputs", {}).items()]


def runs_by_pipeline(root: Path) -> dict[str, list[str]]:
    """Return the runs in a state folder, the oldest first, by the name of their pipeline."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "runs").glob("*/plan.json")):
        if match := RUN.fullmatch(path.parent.name):
            found.setdefault(match[1], []).append(path.parent.name)
    return found


def pushed_versions(root: Path) -> set[str]:
    """Return the versions that were pushed to the Hub; their releases need not be in out/ any more."""
    return {path.stem for path in (root / "published").glob("[!.]*/[!.]*.json")}


def releases(out: Path) -> Iterator[Path]:
    """Yield the folders of the releases in `out`."""
    yield from (path.parent for path in sorted(out.glob("[!.]*/[!.]*/manifest.json")))


def release_stages(release: Path) -> dict[str, str]:
    """Return the folders of the stages that a release was made from, by stage id.

    Raises:
        ValueError: when its manifest cannot be read.
    """
    try:
        stages = orjson.loads((release / "manifest.json").read_bytes()).get("stages", {})
        return {one: folder_name(one, key) for one, key in stages.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{release / 'manifest.json'} cannot be read: {error}") from error
