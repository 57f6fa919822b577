"""Which columns a stage's rows will have, as far as the pipeline itself tells, so that a missing one is a mistake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tracefactory.core.columns import VERDICT, Column
from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Kind
from tracefactory.core.stage import kinds_of, stage_of
from tracefactory.core.tables import TABLE_OF, schema_of


def columns_above(stage: StageSpec[Any], pipeline: Pipeline) -> list[Column] | None:
    """Return the columns that the stages above add.

    None when that is unknown because a stage above is itself wrong and therefore not there.
    """
    above = pipeline.above(stage)
    if any(not one.inputs and Kind.NONE not in stage_of(one).takes for one in (stage, *above)):
        return None
    return [column for one in above for column in stage_of(one).columns(one, pipeline)]


def kind_taken(stage: StageSpec[Any], pipeline: Pipeline) -> Kind:
    """Return the kind of the rows that a stage is given."""
    return kinds_of(pipeline)[stage.inputs[0]] if stage.inputs else Kind.NONE


def not_measured(
    what: str, wanted: Iterable[str], stage: StageSpec[Any], pipeline: Pipeline, line: int | None = None
) -> Iterator[Mistake]:
    """Yield a mistake for every wanted column that no row will have: neither its own nor added by a stage above."""
    known = columns_above(stage, pipeline)
    if known is None:
        return
    kind = kind_taken(stage, pipeline)
    own = set(schema_of(TABLE_OF[kind]).names) if kind in TABLE_OF else set()
    for name in wanted:
        if name not in own and not any(one.covers(name) for one in known):
            message, hint = _why(name, {*own, *(one.name for one in known)}, pipeline)
            yield Mistake(f"{what}{message}", stage.file, line or stage.line, hint)


def _why(name: str, known: Iterable[str], pipeline: Pipeline) -> tuple[str, str | None]:
    owner, slash, rest = name.rpartition("/")
    there = [one for one in known if one.rpartition("/")[0] == owner]
    alike = sorted(one.rpartition("/")[0] for one in known if one.endswith(f"/{rest}"))
    if rest in ("pass_rate", VERDICT.name) and not alike:
        return f"no stage above measures {rest!r}", "`verify:` does"
    if not slash:
        return f"no stage above measures {name!r}", nearest(f"{alike[0]}/{name}" if alike else name, known)
    if owner not in pipeline.models and not there:
        return f"there is no model {owner!r}", nearest(owner, alike or pipeline.models)
    if alike:
        return f"no stage above measures {rest!r} of {owner!r}", f"measured are: {', '.join(alike)}"
    if there:
        listed = ", ".join(sorted(there)[:12]) + (" ..." if len(there) > 12 else "")
        return f"no stage above measures {name!r}", nearest(name, there) or f"there are: {listed}"
    return f"no stage above measures {rest!r} of {owner!r}", "a `measure:` or `verify:` stage before it does"
