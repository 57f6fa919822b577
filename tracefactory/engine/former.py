"""Former folders of a stage: what it was stored from before its key changed, and what an upgrade changes about that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.stage import stage_of
from tracefactory.core.upgrade import Upgrade
from tracefactory.store.damage import Damage
from tracefactory.store.records import read_record
from tracefactory.store.rows import stored_rows
from tracefactory.store.stages import StageFolder

UNREAD = "its stored verdicts cannot be read, so they were not compared"


@dataclass(frozen=True)
class Former:
    """A stored stage with the id of a stage of the pipeline and another key, of which `key` has the first digits."""

    key: str
    time: float
    identity: Mapping[str, Any]

    @property
    def is_older_layout(self) -> bool:
        """Whether a version of this package with other keys has stored it."""
        return "key_version" not in self.identity

    def differs_in_code(self, now: Mapping[str, Any]) -> bool:
        """Return whether some code that both identities name has another version in `now`."""
        if self.is_older_layout or self.identity.get("op") != now["op"]:
            return False
        before, after = _versions(self.identity), _versions(now)
        return any(name in before and before[name] != version for name, version in after.items())


def formers(root: Path, stage_id: str, now: Mapping[str, Any], own: str, met: Callable[[Damage], None]) -> list[Former]:
    """Return the former folders of a stage.

    Args:
        root: the folder of the project's state.
        stage_id: the id of the stage.
        now: the identity of the stage.
        own: the name of its folder, which is no former one.
        met: is told about damaged identities.

    Returns:
        The one that differs in nothing but versions of code first, then the newest. Ids of stages are not unique among
        the pipelines of a project, so the newest may belong to another pipeline.
    """
    found = []
    for path in (root / "stages").glob(f"{stage_id}-{'[0-9a-f]' * 16}/identity.json"):
        identity = read_record(path, "it is left out", met) if path.parent.name != own else None
        if identity is not None:
            found.append(Former(path.parent.name[-16:], path.stat().st_mtime, identity))
    return sorted(found, key=lambda one: (_without_code(one.identity) == _without_code(now), one.time), reverse=True)


def upgrade_of(
    stage: StageSpec[Any],
    pipeline: Pipeline,
    root: Path,
    now: Mapping[str, Any],
    found: Sequence[Former],
    *,
    compare: bool,
) -> Upgrade | None:
    """Return what versions of code that have changed since the rows were stored change about them.

    Args:
        stage: the stage, which is to run.
        pipeline: its pipeline.
        root: the folder of the project's state.
        now: the identity of the stage.
        found: its former folders; the first finished one is compared.
        compare: whether to read the stored rows.

    Returns:
        None when no code has changed, or when the operation has nothing to say.
    """
    finished = next((one for one in found if StageFolder(root, stage.id, one.key).record() is not None), None)
    before = finished or next(iter(found), None)
    if before is None or not before.differs_in_code(now):
        return None
    op = stage_of(stage)
    words = op.upgrade(stage, pipeline, before.identity, None)
    if words is None or finished is None or not compare:
        return words
    try:
        return op.upgrade(stage, pipeline, before.identity, stored_rows(root, stage.id, before.key))
    except Exception:  # noqa: BLE001  # the run does not need the former rows, so a plan does not fail because of them
        return words.model_copy(update={"words": (*words.words, UNREAD)})


def _versions(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions of code in an identity: that of the operation, and those of what it uses."""
    return {**identity["uses"].get("versions", {}), "": identity.get("version")}


def _without_code(identity: Mapping[str, Any]) -> dict[str, Any]:
    uses = {name: value for name, value in identity.get("uses", {}).items() if name != "versions"}
    return {**{name: identity.get(name) for name in ("op", "with", "inputs")}, "uses": uses}
