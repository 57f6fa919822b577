"""Compare two releases: added, removed and changed rows, and the differences in how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Frozen
from tracefactory.publish.recipe import between
from tracefactory.publish.release import Manifest, verify_release
from tracefactory.store.stages import IDENTITY

_OTHER = "_other"


class ViewDifference(Frozen):
    """The differences of one view, by row id. `changed_columns` has the number of rows that differ in each column.

    `styles` are the numbers of rows of each style in the first and in the second release. `columns` are those that only
    one of the releases has.
    """

    view: str
    same: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[str, ...]
    changed_columns: Mapping[str, int]
    columns: tuple[str, ...]
    styles: Mapping[str, tuple[int, int]]


class Difference(Frozen):
    """The differences of two releases.

    `made_by` has the differences of their manifests, with both values. `changes` are sentences on what was changed in
    the pipeline or by another version of this package; a release of version 0.1 only has the keys of its stages.
    """

    first: str
    second: str
    views: tuple[ViewDifference, ...]
    made_by: Mapping[str, tuple[str | None, str | None]]
    changes: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether all rows of all views are equal."""
        return not any(one.only_first or one.only_second or one.changed or one.columns for one in self.views)


def compare(first: Path, second: Path) -> Difference:
    """Compare two release folders, after checking the digests of their files.

    Args:
        first: a release folder.
        second: the release folder to compare it with.

    Raises:
        UserError: when a folder is not an intact release, or the releases have no view in common.
    """
    manifests = (verify_release(first), verify_release(second))
    shared = [view for view in manifests[0].configs if view in manifests[1].configs]
    if not shared:
        views = "; ".join(f"{one.version} has {', '.join(one.configs)}" for one in manifests)
        raise UserError(f"{first} and {second} have no view in common: {views}")
    return Difference(
        first=f"{manifests[0].name} {manifests[0].version}",
        second=f"{manifests[1].name} {manifests[1].version}",
        views=tuple(
            _compare_view(view, *(pl.read_parquet(folder / "data" / view / "*.parquet") for folder in (first, second)))
            for view in shared
        ),
        made_by=_made_by(*manifests),
        changes=_changes(*manifests),
    )


def _compare_view(view: str, first: pl.DataFrame, second: pl.DataFrame) -> ViewDifference:
    columns = [name for name in first.columns if name in second.columns and name != "id"]
    as_text = [pl.struct(name).struct.json_encode().alias(name) for name in columns]  # to compare nested values
    left, right = (rows.select("id", *as_text) for rows in (first, second))
    both = left.join(right, on="id", suffix=_OTHER, how="inner")
    differs = both.select("id", *(pl.col(name).ne_missing(pl.col(name + _OTHER)) for name in columns))
    changed = differs.filter(pl.any_horizontal(columns))
    counted = {name: int(changed[name].sum()) for name in columns}
    styles = [dict(rows["style"].value_counts().rows()) if "style" in rows else {} for rows in (first, second)]
    return ViewDifference(
        view=view,
        same=len(both) - len(changed),
        only_first=_ids(first.join(second, on="id", how="anti")),
        only_second=_ids(second.join(first, on="id", how="anti")),
        changed=_ids(changed),
        changed_columns={name: count for name, count in counted.items() if count},
        columns=tuple(sorted(set(first.columns) ^ set(second.columns))),
        styles={str(one): (styles[0].get(one, 0), styles[1].get(one, 0)) for one in sorted({*styles[0], *styles[1]})},
    )


def _ids(rows: pl.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(rows["id"].to_list()))


def _changes(first: Manifest, second: Manifest) -> tuple[str, ...]:
    """Return what was changed between two releases that have a recipe."""
    if not _have_recipes(first, second):
        return ()
    found = between(first.recipe, second.recipe)
    return (*found.by_user, *found.by_upgrade)


def _have_recipes(*manifests: Manifest) -> bool:
    return all(one.recipe and all(stage.keys() >= IDENTITY for stage in one.recipe.values()) for one in manifests)


def _made_by(first: Manifest, second: Manifest) -> dict[str, tuple[str | None, str | None]]:
    """Return the differences of the manifests in how the rows were made, with both values as text."""
    found: dict[str, tuple[str | None, str | None]] = {}
    pairs = {"licence": (first.licence, second.licence), "tracefactory": (first.tracefactory, second.tracefactory)}
    for stage in () if _have_recipes(first, second) else dict.fromkeys([*first.stages, *second.stages]):
        keys = (first.stages.get(stage), second.stages.get(stage))
        pairs[f"stage {stage}"] = (keys[0] and keys[0][:12], keys[1] and keys[1][:12])
    models = [
        {one.name: one.model_dump_json(exclude={"name"}) for one in manifest.models} for manifest in (first, second)
    ]
    for name in dict.fromkeys([*models[0], *models[1]]):
        pairs[f"model {name}"] = (models[0].get(name), models[1].get(name))
    for name, (one, other) in pairs.items():
        if one != other:
            found[name] = (one, other)
    return found
