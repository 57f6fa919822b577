"""Overlays of a pipeline file: a profile (the same recipe on other hardware) and `--set path=value`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tracefactory.core.addresses import address_fault
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import Change
from tracefactory.core.yamlfile import Node, Position, parse_yaml

_PROFILE_KEYS = ("models", "stages", "budget", "run", "sandbox", "teach")
_PROFILE_STAGE_KEYS = ("source", "with", "run")
_MERGED = ("budget", "run", "sandbox", "teach")
_TEXTS = ("name", "version", "description")
_SET_KEYS = ("name", "version", "description", "budget", "models", "stages", "run", "sandbox", "teach")
_EMPTY: Mapping[str, Node] = {}
_ABSENT = object()


def overlaid(root: Node, profile: str | None, sets: Sequence[str], mistakes: list[Mistake]) -> Node:
    """Return the pipeline file with a profile and then every `--set` applied. Each value keeps its place.

    All profiles are checked, as far as this is possible without applying them.

    Args:
        root: the pipeline file.
        profile: the name of the profile to apply, or None.
        sets: the values of `--set`.
        mistakes: the list that mistakes are added to.
    """
    profiles, written = root.child("profiles"), root
    known = _section(profiles, "profiles", mistakes)
    for name, node in known.items():
        _check_profile(name, node, root, mistakes)
    if profile is not None:
        if profile not in known:
            place = profiles.position if profiles is not None else root.position
            mistakes.append(place.mistake(f"unknown profile {profile!r}", nearest(profile, known) or "there is none"))
        else:
            root = _with_profile(root, known[profile])
    secrets = {node.position for part in (written, *known.values()) for node in _secrets(part)}
    for text in sets:
        root = _with_set(root, text, mistakes)
        secrets |= {node.position for node in _secrets(root)}
    # Those that are left are mistakes of their models and stages.
    for place in secrets - {node.position for node in _secrets(root)}:
        mistakes.append(place.mistake("a secret is shown with the file and the command", "write env:NAME"))
    return root


def _secrets(part: Node) -> Iterator[Node]:
    """Yield the values in a pipeline or a profile that are secrets themselves, not env:NAME.

    Values that no option replaces are refused by their models and stages; the others are shown with the file or the
    command nevertheless.
    """
    for model in _models(part).values():
        yield from _literals(model.child("api_key"))
        yield from (one for one in _literals(model.child("base_url")) if "would be shown" in address_fault(one.value))
    stages = part.child("stages") or Node(None, part.position)
    for stage in stages.value if isinstance(stages.value, tuple) else stages.mapping().values():
        parameters = stage.child("with") or stage
        yield from (one for one in _literals(parameters.child("token")) if one.value.startswith("hf_"))


def _literals(node: Node | None) -> Iterator[Any]:
    """Yield the texts of a value, or of its items, that do not name an environment variable."""
    for one in () if node is None else node.value if isinstance(node.value, tuple) else (node,):
        if isinstance(one.value, str) and one.value and not one.value.startswith("env:"):
            yield one


def changed(before: Node, after: Node) -> Iterator[Change]:
    """Yield what overlays changed in a pipeline file; stages are named by their ids, as in `--set`.

    Args:
        before: the pipeline file.
        after: the file with the overlays.
    """
    yield from _differences(_by_stage(before.plain()), _by_stage(after.plain()), ())


def _by_stage(data: dict[str, Any]) -> dict[str, Any]:
    stages = data.get("stages")
    named = isinstance(stages, list) and all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in stages)
    return {**data, "stages": {one["id"]: one for one in stages}} if stages and named else data


def _differences(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _differences(before.get(key, _ABSENT), after.get(key, _ABSENT), (*path, key))
        return
    old, new = ("" if one is _ABSENT else json.dumps(one, ensure_ascii=False) for one in (before, after))
    if old != new:
        yield Change(path=".".join(path), before=old, after=new)


def stage_index(root: Node) -> dict[str, int]:
    """Return the index of every stage by its id. For equal ids it is the index of the first stage."""
    stages = root.child("stages")
    found: dict[str, int] = {}
    for index, stage in enumerate(stages.value if stages is not None and isinstance(stages.value, tuple) else ()):
        stage_id = stage.child("id")
        if stage_id is not None and isinstance(stage_id.value, str):
            found.setdefault(stage_id.value, index)
    return found


def _models(root: Node) -> Mapping[str, Node]:
    models = root.child("models")
    return models.mapping() if models is not None else _EMPTY


def _section(node: Node | None, what: str, mistakes: list[Mistake]) -> Mapping[str, Node]:
    if node is None or node.value is None:
        return _EMPTY
    if not isinstance(node.value, Mapping):
        mistakes.append(node.position.mistake(f"{what} must be a mapping, found {node.describe()}"))
    return node.mapping()


def _check_profile(name: str, profile: Node, root: Node, mistakes: list[Mistake]) -> None:
    what = f"profile {name!r}"
    parts = _section(profile, what, mistakes)
    _check_keys(parts, _PROFILE_KEYS, what, mistakes)
    models, ids = _models(root), stage_index(root)
    for model, node in _section(parts.get("models"), f"{what}: models", mistakes).items():
        fields = _section(node, f"{what}: model {model!r}", mistakes)
        if model not in models and "use" not in fields:
            message = f"{what}: unknown model {model!r}; a new model needs `use:`"
            mistakes.append(node.position.mistake(message, nearest(model, models)))
    for stage, node in _section(parts.get("stages"), f"{what}: stages", mistakes).items():
        if stage not in ids:
            mistakes.append(node.position.mistake(f"{what}: unknown stage {stage!r}", nearest(stage, ids)))
        inside = f"{what}: stage {stage!r}"
        parts_of_stage = _section(node, inside, mistakes)
        _check_keys(parts_of_stage, _PROFILE_STAGE_KEYS, inside, mistakes)
        base = root.find(("stages", ids[stage])) if stage in ids else None
        if "source" in parts_of_stage and base is not None and "source" not in base.mapping():
            mistakes.append(
                parts_of_stage["source"].position.mistake(f"{inside}: only a source can be replaced by another source")
            )
    for section in _MERGED:
        _section(parts.get(section), f"{what}: {section}", mistakes)


def _check_keys(mapping: Mapping[str, Node], valid: Sequence[str], what: str, mistakes: list[Mistake]) -> None:
    for key, node in mapping.items():
        if key not in valid:
            mistakes.append(node.position.mistake(f"{what}: unknown key {key!r}", nearest(key, valid)))


def _with_profile(root: Node, profile: Node) -> Node:
    parts = profile.mapping()
    if "models" in parts:
        models = root.child("models") or Node({}, parts["models"].position)
        for name, over in parts["models"].mapping().items():
            base = models.child(name)
            # Another kind of model has other keys, so it replaces the model completely.
            if "use" in over.mapping():
                models = models.with_key(name, over)
            elif base is not None:
                models = models.with_key(name, _merged(base, over))
        root = root.with_key("models", models)
    for section in _MERGED:
        if section in parts:
            base = root.child(section) or Node(None, root.position)
            root = root.with_key(section, _merged(base, parts[section]))
    stages, ids = root.child("stages"), stage_index(root)
    if "stages" in parts and stages is not None and isinstance(stages.value, tuple):
        items: list[Node | None] = list(stages.value)
        for stage_id, over in parts["stages"].mapping().items():
            if stage_id not in ids:
                continue
            base, allowed = stages.value[ids[stage_id]], over.mapping()
            if "source" in allowed:  # another source has other parameters
                base = replace(base, value={key: node for key, node in base.mapping().items() if key != "with"})
            changes = {key: node for key, node in allowed.items() if key in _PROFILE_STAGE_KEYS}
            removed = over.value is None
            items[ids[stage_id]] = None if removed else _merged(base, replace(over, value=changes))
        root = root.with_key("stages", replace(stages, value=tuple(item for item in items if item is not None)))
    return root


def _merged(base: Node, over: Node) -> Node:
    """Merge two values: mappings key by key; any other value replaces the base."""
    if not isinstance(over.value, Mapping) or not (base.value is None or isinstance(base.value, Mapping)):
        return over
    entries = dict(base.mapping())
    for key, node in over.mapping().items():
        entries[key] = _merged(entries[key], node) if key in entries else node
    return replace(base, value=entries)


def _with_set(root: Node, text: str, mistakes: list[Mistake]) -> Node:
    path, equals, written = text.partition("=")
    keys = path.strip().split(".")
    # The value may be a secret by mistake, so messages contain only the path.
    place = Position(None, given=f"--set {path.strip()}")
    if not equals or not all(keys):
        mistakes.append(place.mistake("write it as path=value, such as stages.long.with.samples=8"))
        return root
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python gives the bytes of an argument that is no text
        mistakes.append(Mistake("--set: the value is not UTF-8 text"))
        return root
    # A version such as 2 or 2026.11 is text, but the shell removes quotes.
    value = Node(written, place) if keys[0] in _TEXTS else parse_yaml(written, place, mistakes)
    if value is None:
        return root
    try:
        _check_set_path(root, keys)
        return _put(root, keys, value, ())
    except UserError as error:
        mistakes += [place.mistake(one.message, one.hint) for one in error.mistakes]
        return root


def _check_set_path(root: Node, keys: list[str]) -> None:
    """Raise UserError for a path that does not exist. Keys in models, `with` and `run` are validated later."""
    head = keys[0]
    if head not in _SET_KEYS:
        raise UserError(Mistake(f"{head!r} cannot be set", hint=nearest(head, _SET_KEYS)))
    if head == "models":
        known = _models(root)
        if len(keys) < 2:
            raise UserError("name a model and one of its keys: models.<name>.<key>=value")
        if keys[1] not in known and len(keys) > 2:
            raise UserError(Mistake(f"unknown model {keys[1]!r}", hint=nearest(keys[1], known)))
    if head == "stages":
        ids = stage_index(root)
        if len(keys) < 3:
            raise UserError("name a stage and one of its keys: stages.<id>.with.<parameter>=value")
        if keys[1] not in ids:
            raise UserError(Mistake(f"unknown stage {keys[1]!r}", hint=nearest(keys[1], ids)))
        valid = {*root.find(("stages", ids[keys[1]])).mapping(), "with", "run", "from"}
        if keys[2] not in valid:
            close = nearest(keys[2], valid) or ""
            parameter = f"parameters are under with: stages.{keys[1]}.with.{'.'.join(keys[2:])}"
            hint = close if close.startswith("did") else parameter
            raise UserError(Mistake(f"a stage has no {keys[2]!r}", hint=hint))


def _put(node: Node, keys: list[str], item: Node, done: tuple[str, ...]) -> Node:
    """Return `node` with `item` at the path `keys`. `done` is the path of `node`, for messages."""
    if not keys:
        return item
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, tuple):
        return _put_in_list(node, node.value, keys, item, done)
    if node.value is not None and not isinstance(node.value, Mapping):
        raise UserError(f"{'.'.join(done)} is {node.describe()} and has no {key!r}")
    child = node.child(key) or Node({}, item.position)
    return node.with_key(key, _put(child, rest, item, (*done, key)))


def _put_in_list(node: Node, items: tuple[Node, ...], keys: list[str], item: Node, done: tuple[str, ...]) -> Node:
    key, rest = keys[0], keys[1:]
    stages = done == ("stages",)
    if stages:
        index = stage_index(Node({"stages": node}, node.position)).get(key)
    elif key.isdigit():
        index = int(key) if int(key) < len(items) else None
    else:  # the item is the key, or a mapping from the key to parameters
        names = [next(iter(item.mapping())) if len(item.mapping()) == 1 else item.value for item in items]
        index = names.index(key) if key in names else None
    if index is None:
        raise UserError(f"{'.'.join(done)} has no item {key!r}")
    old = items[index]
    if not stages and not key.isdigit():
        # The item is a name, alone or with parameters; the value is set in the parameters.
        old = old if isinstance(old.value, Mapping) else Node({key: Node({}, item.position)}, old.position)
        rest = [key, *rest]
    new = _put(old, rest, item, (*done, key))
    return replace(node, value=(*items[:index], new, *items[index + 1 :]))
