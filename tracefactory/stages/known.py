"""Which measures a stage's rows will have, as far as the pipeline itself tells, so that none is asked for in vain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.op import Rows


def measures_above(stage: StageConfig, pipeline: Pipeline) -> frozenset[str] | None:
    """Return the names of the measures that the stages above file; a `*` in one stands for any name.

    None when that cannot be said because a stage above is itself wrong and therefore not there.
    """
    above = stages_above(stage, pipeline)
    if any(not one.inputs and one.op.takes is not Rows.NONE for one in (stage, *above)):
        return None
    return frozenset(name for one in above for name in one.op.measures(one, pipeline))


def stages_above(stage: StageConfig, pipeline: Pipeline) -> list[StageConfig]:
    """Return every stage whose rows come to `stage`, each once, in the order of the pipeline."""
    names, ahead = set(stage.inputs), list(stage.inputs)
    while ahead:
        new = set(pipeline.stage(ahead.pop()).inputs) - names
        names |= new
        ahead += new
    return [one for one in pipeline.stages if one.id in names]


def not_measured(
    what: str, wanted: Iterable[str], stage: StageConfig, pipeline: Pipeline, line: int | None = None
) -> Iterator[Mistake]:
    """Yield a mistake for every wanted measure that no stage above files: its rows would all be without it."""
    known = measures_above(stage, pipeline)
    if known is None:
        return
    for name in wanted:
        if not any(fnmatchcase(name, one) or fnmatchcase(one, name) for one in known):
            message, hint = _why(name, known, pipeline)
            yield Mistake(f"{what}{message}", stage.file, line or stage.line, hint)


def _why(name: str, known: frozenset[str], pipeline: Pipeline) -> tuple[str, str | None]:
    owner, slash, rest = name.rpartition("/")
    there = [one for one in known if one.rpartition("/")[0] == owner]
    alike = sorted(one.rpartition("/")[0] for one in known if one.endswith(f"/{rest}"))
    if owner == "*":
        return f"no stage above measures {rest!r}", "`verify:` does"
    if not slash:
        return f"no stage above measures {name!r}", nearest(f"{alike[0]}/{name}" if alike else name, known)
    if owner not in pipeline.models and not there:
        return f"there is no model {owner!r}", nearest(owner, alike or pipeline.models)
    if alike:
        return f"no stage above measures {rest!r} of {owner!r}", f"measured are: {', '.join(alike)}"
    if there:
        return f"no stage above measures {name!r}", nearest(name, there) or _some(there)
    return f"no stage above measures {rest!r} of {owner!r}", "a `measure:` or `verify:` stage before it does"


def _some(names: Iterable[str]) -> str:
    some = sorted(names)
    return f"there are: {', '.join(some[:12])}" + (" ..." if len(some) > 12 else "")
