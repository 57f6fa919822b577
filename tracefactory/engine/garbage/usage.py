"""What the state folder and the releases take on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tracefactory.core.pipeline import Project
from tracefactory.core.rows import Frozen
from tracefactory.engine.garbage.reach import Reach, reach_of, runs_by_pipeline
from tracefactory.store.garbage import Size, plan_of, size_of

KINDS: Mapping[str, str] = {
    "requests": "completions",
    "stages": "stages",
    "scores": "scores",
    "runs": "runs",
    "batches": "batches",
    "canaries": "canaries",
    "spend": "ledger",
    "published": "receipts",
    "servers": "servers",
    "teaching": "trained students",
    "damaged": "set aside by fsck",
}
"""What the folders of a state hold."""
OTHER, RELEASES = "other", "releases"


class KindUsage(Frozen):
    """Files and bytes of one kind of content; `folder` is where it is."""

    kind: str
    folder: str
    files: int
    bytes: int


class StageUsage(Frozen):
    """Files and bytes of one stage. `needed_by` is "" for one that nothing reaches, `pipelines` are those that had it
    in a run.
    """

    name: str
    files: int
    bytes: int
    needed_by: str
    pipelines: tuple[str, ...]


class Usage(Frozen):
    """What a project takes on disk. `stages` are all stages, the largest first; `broken` is that of `garbage.reach`."""

    state: str
    kinds: tuple[KindUsage, ...]
    stages: tuple[StageUsage, ...]
    broken: tuple[str, ...] = ()


def usage_of(project: Project) -> Usage:
    """Measure the files of a project's state and of its releases."""
    root = project.state_dir
    sizes = {name: Size() for name in (*KINDS, OTHER)}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        name = path.name if path.name in KINDS else OTHER
        sizes[name] = sizes[name].plus(size_of(path))
    sizes["out"] = size_of(project.out_dir)
    kinds = (
        KindUsage(kind=KINDS.get(name, RELEASES if name == "out" else name), folder=name, files=size[0], bytes=size[1])
        for name, size in sizes.items()
        if size.files or name != OTHER
    )
    reach, ran = reach_of(project), _pipelines_by_stage(root)
    folders = [path for path in (root / "stages").glob("[!.]*") if path.is_dir()]
    stages = [_stage(path, reach, ran.get(path.name, ())) for path in folders]
    stages.sort(key=lambda one: (-one.bytes, one.name))
    return Usage(state=str(root), kinds=tuple(kinds), stages=tuple(stages), broken=tuple(reach.broken))


def _stage(path: Path, reach: Reach, pipelines: tuple[str, ...]) -> StageUsage:
    size = size_of(path)
    needed_by = reach.stages.get(path.name, "")
    return StageUsage(
        name=path.name, files=size.files, bytes=size.bytes, needed_by=needed_by, pipelines=tuple(sorted(pipelines))
    )


def _pipelines_by_stage(root: Path) -> dict[str, tuple[str, ...]]:
    """Return the pipelines whose runs had a stage in their plan, by the folder of the stage."""
    found: dict[str, set[str]] = {}
    for pipeline, runs in runs_by_pipeline(root).items():
        for run in runs:
            try:
                plan = plan_of(root, run)
            except ValueError:
                continue  # `fsck` reports it
            for folder in plan.stages.values() if plan is not None else ():
                found.setdefault(folder, set()).add(pipeline)
    return {folder: tuple(sorted(pipelines)) for folder, pipelines in found.items()}
