"""Read the `stages:` of a pipeline file. Each stage has one verb and takes rows of stages above it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracefactory.config.model import ID_PATTERN, plain
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import StageOptions, StageSpec
from tracefactory.core.refs import FoundRef, find_refs
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.stage import STAGES, Stage, Work
from tracefactory.core.yamlfile import Node
from tracefactory.core.yamlmodel import field_names, label, read_model
from tracefactory.filters import FilterSet

_KEYS = ("id", "from", "with", "run")
_CHAIN = "filter:chain"


@dataclass(frozen=True)
class Declared:
    """The names that a stage may use. They include names of broken files, whose mistakes are reported at the files.

    `filters` are those that load; parameters of others are not checked.
    """

    models: frozenset[str]
    prompts: frozenset[str]
    filter_names: frozenset[str]
    filters: FilterSet


@dataclass
class StageDraft:
    """A stage that is being read. `op` and `params` are None until they are known to be valid.

    `filter_names` are the filters that it names, also those that do not load.
    """

    node: Node
    id: str
    verb: str = ""
    op: Stage[Any] | None = None
    inputs: tuple[str, ...] = ()
    gives: Kind | None = None
    params: Frozen | None = None
    run: StageOptions | None = None
    refs: list[FoundRef] = field(default_factory=list)
    filter_names: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """The name of the stage in messages."""
        return f"stage {self.id!r}"

    def finished(self, file: Path, inputs: tuple[str, ...]) -> StageSpec[Any] | None:
        """Return the stage; None when its operation or parameters are not valid.

        Args:
            file: the pipeline file.
            inputs: the ids of its input stages.
        """
        if self.op is None or self.params is None:
            return None
        return StageSpec[Any](
            id=self.id,
            verb=self.verb,
            name=self.op.name,
            inputs=inputs,
            params=self.params,
            run=self.run or StageOptions(),
            file=file,
            line=self.node.position.line,
        )


def read_stages(root: Node, declared: Declared, mistakes: list[Mistake]) -> list[StageDraft]:
    """Read all stages, also those with mistakes.

    Args:
        root: the pipeline file.
        declared: the names that stages may use.
        mistakes: the list that mistakes are added to.
    """
    stages = root.child("stages")
    if stages is None:
        mistakes.append(root.position.mistake("the pipeline: stages is missing"))
        return []
    if not isinstance(stages.value, tuple) or not stages.value:
        found = "an empty list" if stages.value == () else stages.describe()
        mistakes.append(stages.position.mistake(f"the pipeline: stages must be a list of stages, found {found}"))
        return []
    drafts: list[StageDraft] = []
    for number, node in enumerate(stages.value, start=1):
        if isinstance(node.value, Mapping):
            drafts.append(_read_head(node, number, mistakes))
        else:
            mistakes.append(node.position.mistake(f"stage {number} must be a mapping, found {node.describe()}"))
    first: dict[str, StageDraft] = {}
    for draft in drafts:
        other = first.setdefault(draft.id, draft)
        if other is not draft:
            message = f"two stages are called {draft.id!r} (the first in line {other.node.position.line})"
            mistakes.append(draft.node.find(("id",)).position.mistake(message))
    for index, draft in enumerate(drafts):
        draft.inputs = _read_inputs(draft, drafts[:index], mistakes)
    _check_order(drafts, mistakes)
    for index, draft in enumerate(drafts):
        _check_kinds(draft, drafts[:index], mistakes)
        _read_params(draft, declared, mistakes)
        draft.run = read_model(
            StageOptions, draft.node.child("run") or Node(None, draft.node.position), f"{draft.what}: run", mistakes
        )
    for index, draft in enumerate(drafts):
        _check_refs(draft, declared, [other.id for other in drafts[:index]], mistakes)
    return drafts


def verbs() -> list[str]:
    """Return the verbs of all operations."""
    return sorted({name.partition(":")[0] for name in STAGES.names()})


def _read_head(node: Node, number: int, mistakes: list[Mistake]) -> StageDraft:
    id_node = node.child("id")
    draft = StageDraft(node, f"#{number}")
    if id_node is None:
        mistakes.append(node.position.mistake(f"stage {number} has no `id:`"))
    elif not isinstance(id_node.value, str) or not re.match(ID_PATTERN, id_node.value):
        message = f"stage {number}: an id consists of lower-case words joined by _ or -, found {id_node.describe()}"
        mistakes.append(id_node.position.mistake(message))
    else:
        draft.id = id_node.value
    known, entries = verbs(), node.mapping()
    given = [key for key in entries if key in known]
    unknown = [key for key in entries if key not in known and key not in _KEYS]
    if len(given) > 1:
        names = " and ".join(f"`{key}:`" for key in given)
        mistakes.append(
            entries[given[1]].position.mistake(f"{draft.what} has {len(given)} verbs, {names}: it needs one")
        )
    elif not given and len(unknown) == 1:
        key = unknown.pop()
        message = f"{draft.what} has no verb, and {key!r} is not a verb"
        mistakes.append(entries[key].position.mistake(message, nearest(key, known)))
    elif not given:
        mistakes.append(node.position.mistake(f"{draft.what} has no verb", f"one of: {', '.join(known)}"))
    else:
        draft.verb = given[0]
        draft.op = _find_op(draft, entries[draft.verb], mistakes)
    for key in unknown:
        parameter = draft.op is not None and key in field_names(draft.op.Params)
        hint = "it is a parameter: put it under `with:`" if parameter else nearest(key, [*_KEYS, *known])
        mistakes.append(entries[key].position.mistake(f"{draft.what}: unknown key {key!r}", hint))
    return draft


def _find_op(draft: StageDraft, value: Node, mistakes: list[Mistake]) -> Stage[Any] | None:
    if draft.verb == "filter":
        return STAGES.get(_CHAIN)
    names = [name.partition(":")[2] for name in STAGES if name.startswith(f"{draft.verb}:")]
    if not isinstance(value.value, str):
        message = f"{draft.what}: `{draft.verb}:` takes a name, found {value.describe()}"
        mistakes.append(value.position.mistake(message, f"one of: {', '.join(names)}"))
        return None
    if value.value not in names:
        message = f"{draft.what}: there is no `{draft.verb}: {value.value}`"
        mistakes.append(value.position.mistake(message, nearest(value.value, names)))
        return None
    try:
        return STAGES.get(f"{draft.verb}:{value.value}")
    except UserError as error:  # the plugin of the operation is broken
        mistakes.extend(error.mistakes)
        return None


def _read_inputs(draft: StageDraft, above: list[StageDraft], mistakes: list[Mistake]) -> tuple[str, ...]:
    """Return the ids of `from:`, or of the stage above. `_check_order` checks later whether the stages exist."""
    node = draft.node.child("from")
    if draft.op is not None and draft.op.work_on is Work.SOURCE:
        if node is not None:
            mistakes.append(node.position.mistake(f"{draft.what}: a {draft.verb} takes no rows, so it has no `from:`"))
        return ()
    if node is None:
        if not above and draft.op is not None:
            mistakes.append(draft.node.position.mistake(f"{draft.what} needs rows, and there is no stage above it"))
        return (above[-1].id,) if above else ()
    items = node.value if isinstance(node.value, tuple) else (node,)
    if not items or not all(isinstance(item.value, str) for item in items):
        message = f"{draft.what}: `from:` takes the id of a stage or a list of ids, found {node.describe()}"
        mistakes.append(node.position.mistake(message))
        return ()
    ids = tuple(str(item.value) for item in items)
    for repeated in sorted({name for name in ids if ids.count(name) > 1}):
        mistakes.append(node.position.mistake(f"{draft.what}: `from:` names {repeated!r} twice"))
    if len(ids) > 1 and draft.op is not None and not draft.op.many_inputs:
        message = f"{draft.what}: `{draft.verb}: {draft.op.name}` takes the rows of one stage, found {len(ids)}"
        mistakes.append(node.position.mistake(message))
    return tuple(dict.fromkeys(ids))


def _check_order(drafts: list[StageDraft], mistakes: list[Mistake]) -> None:
    """Check that every input is a stage above, so that there is no cycle. A cycle gets its own message."""
    inputs = {draft.id: draft.inputs for draft in reversed(drafts)}
    for index, draft in enumerate(drafts):
        above = {other.id for other in drafts[:index]}
        for name in draft.inputs:
            if name in above:
                continue
            place = draft.node.find(("from",)).position
            cycle = _path(name, draft.id, inputs, ())
            if name not in inputs:
                mistakes.append(
                    place.mistake(f"{draft.what}: unknown stage {name!r} in `from:`", nearest(name, inputs))
                )
            elif cycle:
                mistakes.append(
                    place.mistake(f"{draft.what}: `from:` makes a cycle: {' <- '.join((draft.id, *cycle))}")
                )
            else:
                mistakes.append(place.mistake(f"{draft.what}: stage {name!r} in `from:` is below; it must be above"))


def _path(start: str, goal: str, inputs: Mapping[str, tuple[str, ...]], seen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages from `start` along the inputs to `goal`; empty when there is no path."""
    if start == goal:
        return (*seen, goal)
    if start in seen:
        return ()
    paths = (_path(name, goal, inputs, (*seen, start)) for name in inputs.get(start, ()))
    return next((path for path in paths if path), ())


def _check_kinds(draft: StageDraft, above: list[StageDraft], mistakes: list[Mistake]) -> None:
    """Check that the stage takes the kind of rows that its inputs give, and set the kind that it gives."""
    if draft.op is None:
        return
    by_id = {other.id: other for other in reversed(above)}
    found = {name: by_id[name].gives for name in draft.inputs if name in by_id and by_id[name].gives is not None}
    named = draft.node.child("from")
    place = (named or draft.node).position
    for name, kind in found.items():
        if kind not in draft.op.takes:
            gives = "no rows" if kind is Kind.NONE else kind
            which = f"stage {name!r}" if named else f"stage {name!r} above it"
            hint = None if named else "name its input stage with `from:`"
            takes = " or ".join(sorted(draft.op.takes))
            mistakes.append(
                place.mistake(f"{draft.what}: `{draft.verb}:` takes {takes}, but {which} gives {gives}", hint)
            )
            draft.inputs = tuple(one for one in draft.inputs if one != name)  # further checks use the valid inputs
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name!r} gives {kind}" for name, kind in found.items())
        mistakes.append(place.mistake(f"{draft.what}: its inputs give different kinds of rows: {each}"))
    # The kind that the stage gives is unknown if it depends on inputs whose kind is unknown.
    possible = (draft.op.takes & set(found.values())) or draft.op.takes
    if len(possible) == 1 or draft.op.makes is not Kind.NONE:
        draft.gives = draft.op.gives(next(iter(possible)))


def _read_params(draft: StageDraft, declared: Declared, mistakes: list[Mistake]) -> None:
    node = draft.node.child("with") or Node(None, draft.node.position)
    if draft.verb == "filter":
        draft.params = _read_chain(draft, node, declared, mistakes)
    elif draft.op is not None:
        draft.params = read_model(draft.op.Params, node, draft.what, mistakes)
        draft.refs = find_refs(
            draft.op.Params, draft.params or {key: item.plain() for key, item in node.mapping().items()}
        )


def _read_chain(draft: StageDraft, with_node: Node, declared: Declared, mistakes: list[Mistake]) -> Frozen | None:
    """Return the parameters of the chain for a `filter:`, with the defaults of every filter."""
    value = draft.node.mapping()["filter"]
    single = isinstance(value.value, str)
    if not single and with_node.value is not None:
        message = f"{draft.what}: a list of filters has no `with:`"
        mistakes.append(
            with_node.position.mistake(message, "put parameters beside the name: `- length: {max_tokens: 16000}`")
        )
    items = (Node({str(value.value): with_node}, value.position),) if single else value.value
    if not isinstance(items, tuple) or not items:
        message = f"{draft.what}: `filter:` takes a filter's name or a list of them, found {value.describe()}"
        mistakes.append(value.position.mistake(message))
        return None
    uses = [_read_filter(draft, item, declared, mistakes) for item in items]
    if draft.op is None or any(use is None for use in uses):
        return None
    chain: Frozen = draft.op.Params.model_validate({"filters": uses})
    return chain


def _read_filter(draft: StageDraft, item: Node, declared: Declared, mistakes: list[Mistake]) -> dict[str, Any] | None:
    entries = {item.value: Node(None, item.position)} if isinstance(item.value, str) else item.mapping()
    if len(entries) != 1:
        message = f"{draft.what}: a filter is its name, or its name with parameters; found {item.describe()}"
        mistakes.append(item.position.mistake(message, "write `- length: {max_tokens: 16000}`"))
        return None
    ((name, node),) = entries.items()
    if name not in declared.filter_names:
        mistakes.append(
            node.position.mistake(f"{draft.what}: unknown filter {name!r}", nearest(name, declared.filter_names))
        )
        return None
    draft.filter_names.append(name)
    if name not in declared.filters:
        return None
    params = read_model(declared.filters[name].params_model, node, f"{draft.what}: filter {name!r}", mistakes)
    line = None if node.position.file is None else node.position.line
    return None if params is None else {"name": name, "with": plain(params), "line": line}


def _check_refs(draft: StageDraft, declared: Declared, above: list[str], mistakes: list[Mistake]) -> None:
    """Check that the names in the parameters are declared; a stage may only name stages above it."""
    known = {"model": declared.models, "prompt": declared.prompts, "stage": above}
    written = draft.node.child("with") or draft.node
    for ref in draft.refs:
        if ref.name not in known[ref.kind]:
            message = f"{draft.what}: {label(ref.path)}: unknown {ref.kind} {ref.name!r}"
            hint = nearest(ref.name, known[ref.kind]) or f"no {ref.kind} is declared"
            mistakes.append(written.find(ref.path).position.mistake(message, hint))
