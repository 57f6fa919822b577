"""The plan of a garbage collection, and its execution.

Listed are stages that nobody needs (`engine.garbage.reach`), scores, trained students, old runs, doubled segments and
leftovers of killed writes. What cannot be made again for nothing (`engine.garbage.remaking`) is listed and kept unless
the user names it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import Project
from tracefactory.core.rows import Frozen
from tracefactory.engine.garbage.reach import (
    STAGE,
    Reach,
    inputs_of,
    pushed_versions,
    reach_of,
    release_stages,
    releases,
    runs_by_pipeline,
)
from tracefactory.engine.garbage.remaking import Keep, Remaking
from tracefactory.store.garbage import (
    OLD_S,
    SETTLED_S,
    delete,
    delete_stage,
    doubled_segments,
    leftovers,
    live_runs,
    plan_of,
    size_of,
    used_by_a_run,
)
from tracefactory.store.requests import RequestStore
from tracefactory.store.shared.cloud import open_objects
from tracefactory.store.shared.objects import Objects, Unreachable
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import StageFolder
from tracefactory.store.trainings import HUB, is_training, stored_copies, stored_trainings

TRAINS = "a process trains it"
TRAINS_ANY = "a process trains a student, which may need it"
KEEP_RUNS = 10
"""Runs of each pipeline whose folders are kept."""


class What(StrEnum):
    """The kinds of garbage."""

    STAGE = "stage"
    SCORES = "scores"
    RUN = "run"
    SEGMENT = "segment"
    LEFTOVER = "leftover"
    TRAINING = "training"
    COPY = "copy"


class Item(Frozen):
    """Something that nobody needs. `name` is its path in the state folder, or in the project for a leftover in out/.

    `why` says why it is listed and how it would come back; `kept` why it is not deleted, "" for what is.
    """

    what: What
    name: str
    files: int
    bytes: int
    why: str
    kept: str = ""

    @property
    def is_named(self) -> bool:
        """Whether the user can name it to have it deleted all the same."""
        return self.what in (What.STAGE, What.SCORES, What.TRAINING, What.COPY)


class GarbagePlan(Frozen):
    """What a garbage collection would delete, and what it would leave. `needed` is the number of stages in use.

    `broken` are sentences about what could not be read, for which all stages are kept; `notes` are for the user.
    """

    items: tuple[Item, ...]
    needed: int
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def to_delete(self) -> list[Item]:
        return [one for one in self.items if not one.kept]

    @property
    def left(self) -> list[Item]:
        return [one for one in self.items if one.kept]


class Collected(Frozen):
    """What a garbage collection has deleted, and what it has left, each with the reason in `kept`."""

    deleted: tuple[Item, ...]
    left: tuple[Item, ...]


def plan_garbage(project: Project, *, keep_runs: int = KEEP_RUNS, named: Collection[str] = ()) -> GarbagePlan:
    """Return what can be deleted from the state of a project; nothing is changed.

    Args:
        project: the project.
        keep_runs: how many runs of each pipeline are kept.
        named: names of what the plan keeps for what it costs, which is deleted all the same.

    Raises:
        UserError: when something is named that is not in the plan, or is needed.
    """
    reach = reach_of(project)
    items = _with_inputs(project, list(_stages(project, reach, named)), named)
    items += [*_scores(project.state_dir, named), *_trainings(project, named), *_copies(project, named)]
    _check_named(named, items, reach)
    notes = []
    if project.shared:
        notes.append("runs are kept: they are in the shared state too, and every run fetches those that are not here")
    else:
        items += _runs(project, keep_runs)
    items += [
        _item(What.SEGMENT, path, project, "all of its completions are in other segments")
        for path in doubled_segments(project.state_dir)
    ]
    left = leftovers(project.state_dir, project.out_dir, settled_s=SETTLED_S if project.shared else 0.0)
    items += [_item(What.LEFTOVER, path, project, "left by a process that was killed") for path in left]
    needed = sum((project.state_dir / "stages" / name).exists() for name in reach.stages)
    return GarbagePlan(items=tuple(items), needed=needed, broken=tuple(reach.broken), notes=tuple(notes))


async def collect(project: Project, plan: GarbagePlan) -> Collected:
    """Delete what a plan says, stages before their inputs; what somebody uses by now, or what resists, is left."""
    root = project.state_dir
    deleted: list[Item] = []
    left: list[Item] = []
    stages = [one for one in plan.to_delete if one.what is What.STAGE]
    made_from: dict[str, str] = {}  # what was left, by its inputs, without which it has no text
    for item in [*_inputs_last(root, stages), *(one for one in plan.to_delete if one.what is not What.STAGE)]:
        inputs = _inputs_of(root, item.name) if item.what is What.STAGE else []
        try:
            why = made_from.get(item.name) or await _delete(item, project)
        except OSError as error:
            why = f"{error.filename or item.name} cannot be deleted: {error.strerror or error}"
        if why:
            made_from |= dict.fromkeys(inputs, f"{item.name}, which is left, is made from it")
        (left if why else deleted).append(item.model_copy(update={"kept": why}))
    return Collected(deleted=tuple(deleted), left=tuple(left))


async def _delete(item: Item, project: Project) -> str:
    """Delete one item, and return why it was left, "" if it is gone."""
    root = project.state_dir
    path = (project.root if item.name.startswith("out/") else root) / item.name
    if item.what is What.STAGE:
        return await delete_stage(root, path)
    if item.what in (What.SCORES, What.TRAINING, What.COPY) and (live := live_runs(root)):
        return f"run {live[0]} goes on"
    if item.what is What.TRAINING and is_training(path):
        return TRAINS
    if item.what is What.COPY and _trains_any(root):
        return TRAINS_ANY
    delete(path)
    if item.what is What.SEGMENT:
        delete(path.with_suffix(".index"))
    return ""


def _item(what: What, path: Path, project: Project, why: str, kept: str = "") -> Item:
    in_state = path.is_relative_to(project.state_dir)
    name = path.relative_to(project.state_dir if in_state else project.root).as_posix()
    size = size_of(path)
    if what is What.SEGMENT:
        size = size.plus(size_of(path.with_suffix(".index")))
    return Item(what=what, name=name, files=size.files, bytes=size.bytes, why=why, kept=kept)


def _stages(project: Project, reach: Reach, named: Collection[str]) -> Iterator[Item]:
    root = project.state_dir
    objects = open_objects(project.shared) if project.shared else None
    folders = sorted((root / "stages").glob("[!.]*"))
    paths = {path.name: path for path in folders if path.is_dir() and not path.is_symlink()}
    back: dict[str, str] = {}  # how each stage would come back
    with closing(RequestStore(root)) as store:
        remaking = Remaking(project.root, store)
        for name in sorted(paths.keys() - reach.stages.keys()):
            match = STAGE.fullmatch(name)
            if match is None:
                continue  # `fsck` reports what is no stage
            folder = StageFolder(root, match[1], match[2])
            kept = ""
            try:
                back[name] = _how(remaking, folder, paths.keys())
            except Keep as keep:
                kept = str(keep)
            why = "nothing reaches it" + (f"; {back[name]}" if name in back else "")
            if f"stages/{name}" in named:
                kept = ""
            kept = _held(root, name, objects, folder, reach) or kept
            yield _item(What.STAGE, folder.path, project, why, kept)


def _with_inputs(project: Project, items: list[Item], named: Collection[str]) -> list[Item]:
    """Return stages with the inputs of those that are kept, without which these have no text, as kept too."""
    by_name = {item.name: item for item in items}
    todo = [item.name for item in items if item.kept]
    while todo:
        name = todo.pop()
        for source in _inputs_of(project.state_dir, name):
            if source in by_name and not by_name[source].kept and source not in named:
                kept = f"{name.removeprefix('stages/')}, which is kept, is made from it"
                by_name[source] = by_name[source].model_copy(update={"kept": kept})
                todo.append(source)
    return list(by_name.values())


def _inputs_of(root: Path, name: str) -> list[str]:
    """Return the inputs of a stage; they are named as it is, `stages/<folder>`."""
    return [f"stages/{folder}" for folder in inputs_of(root, name.removeprefix("stages/"))]


def _how(remaking: Remaking, folder: StageFolder, present: Collection[str]) -> str:
    """Return how a stage comes back for nothing; its inputs have to be here, where the same is asked of them."""
    how = remaking.how(folder)
    for source in inputs_of(folder.path.parents[1], folder.path.name):
        if source not in present and folder.finished_shards():
            raise Keep(f"its input {source} is gone, so that it may not be made again")
    return how


def _held(root: Path, name: str, objects: Objects | None, folder: StageFolder, reach: Reach) -> str:
    """Return why a stage must not be deleted even if it is named, "" if it may."""
    if reach.broken:
        return "what cannot be read may need it"
    if why := used_by_a_run(root, name):
        return why
    if objects is not None:
        try:
            if not SharedStage(folder.path, objects).is_whole_there():
                return "the shared state does not have it"
        except Unreachable as error:
            return f"the shared state cannot be asked whether it has it: {error}"
    return ""


def _scores(root: Path, named: Collection[str]) -> Iterator[Item]:
    for path in sorted((root / "scores").glob("[!.]*")):
        name = f"scores/{path.name}"
        size, why = size_of(path), "scores of the texts under one student"
        kept = "" if name in named else "they took the time of a student, mostly GPU time"
        yield Item(what=What.SCORES, name=name, files=size.files, bytes=size.bytes, why=why, kept=kept)


def _trainings(project: Project, named: Collection[str]) -> Iterator[Item]:
    for folder, answered, seconds in stored_trainings(project.state_dir):
        why = "weights of a trained student" if seconds is not None else "a training that is not finished"
        why += ", whose answers are stored" if answered else ", of whose answers none are stored"
        kept = "its command goes on with it" if seconds is None else f"it took {seconds / 3600:.1f} h to train"
        item = _item(What.TRAINING, folder, project, why, kept)
        if is_training(folder):
            kept = TRAINS
        elif item.name in named:
            kept = ""
        yield item.model_copy(update={"kept": kept})


def _copies(project: Project, named: Collection[str]) -> Iterator[Item]:
    """Yield what comparisons make again; what was made lately may be used by one that goes on."""
    trains = _trains_any(project.state_dir)
    for path, how in stored_copies(project.state_dir):
        item = _item(What.COPY, path, project, how)
        kept = ""
        if trains:
            kept = TRAINS_ANY
        elif item.name not in named:
            if path.name == HUB:
                kept = "the Hub may not have it any more"
            elif time.time() - path.stat().st_mtime < OLD_S:
                kept = "it was made less than a day ago, perhaps for a comparison that goes on"
        yield item.model_copy(update={"kept": kept})


def _trains_any(root: Path) -> bool:
    """Return whether a process of this host trains any student of the project."""
    return any(is_training(one.folder) for one in stored_trainings(root))


def _check_named(named: Collection[str], items: Sequence[Item], reach: Reach) -> None:
    known = {one.name: one for one in items if one.is_named}
    mistakes = []
    for name in named:
        if by := reach.stages.get(name.removeprefix("stages/")):
            mistakes.append(Mistake(f"--also {name}: it is needed by {by}"))
        elif name not in known:
            hint = nearest(name, known) or "`tracefactory gc --plan` names what can be deleted"
            mistakes.append(Mistake(f"--also {name}: the plan has nothing of this name", hint=hint))
    if mistakes:
        raise UserError(mistakes)


def _inputs_last(root: Path, items: Sequence[Item]) -> list[Item]:
    """Return stages in an order in which each is before its inputs."""
    by_name = {item.name: item for item in items}
    ordered: dict[str, Item] = {}

    def visit(name: str) -> None:
        if name in by_name and name not in ordered:
            for source in _inputs_of(root, name):
                visit(source)
            ordered[name] = by_name[name]

    for name in by_name:
        visit(name)
    return list(reversed(ordered.values()))


def _runs(project: Project, keep_runs: int) -> Iterator[Item]:
    """Yield runs that are not among the newest of their pipeline, have made no release, and do not go on."""
    root = project.state_dir
    live = set(live_runs(root))
    made = []
    for release in releases(project.out_dir):
        try:
            made.append(release_stages(release))
        except ValueError:
            return  # its run cannot be told
    for pipeline, runs in sorted(runs_by_pipeline(root).items()):
        for run in runs[: max(0, len(runs) - keep_runs)]:
            if run not in live and not _may_go_on(root, run) and not _has_published(root, run, made):
                yield _item(What.RUN, root / "runs" / run, project, f"{pipeline} has {keep_runs:,} newer runs")
    for path in sorted((root / "runs").glob("[!.]*")):
        has_plan = not path.is_dir() or (path / "plan.json").exists()
        if not has_plan and path.name not in live and not _may_go_on(root, path.name):
            yield _item(What.RUN, path, project, "it was killed before it had a plan")


def _may_go_on(root: Path, run: str) -> bool:
    """Return whether a run without an outcome has written something lately: it may be one of another host."""
    folder = root / "runs" / run
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
    return not (folder / "outcome.json").exists() and time.time() - newest < OLD_S


def _has_published(root: Path, run: str, made: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a run has the stages of a release (`made`), or the version of one that was pushed to the Hub.

    So it is for a plan that cannot be read.
    """
    try:
        plan = plan_of(root, run)
    except ValueError:
        return True
    return plan is not None and (
        plan.version in pushed_versions(root) or any(one.items() <= plan.stages.items() for one in made if one)
    )
