"""Validate YAML as a pydantic model, with errors in the terms of the file and at their lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.yamlfile import KeyPath, Node

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "string_sub_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "text",
}
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def read_model(model: type[M], node: Node, what: str, mistakes: list[Mistake]) -> M | None:
    """Validate a YAML mapping as a model. An empty value counts as an empty mapping.

    Types are strict, as in JSON: "4" is not a number and 1 is not text.

    Args:
        model: the model.
        node: the value from the file.
        what: the name of the value in messages.
        mistakes: the list that mistakes are added to.

    Returns:
        An instance of the model; None when the value is not valid.
    """
    if node.value is not None and not isinstance(node.value, Mapping):
        mistakes.append(node.position.mistake(f"{what} must be a mapping, found {node.describe()}"))
        return None
    try:
        return model.model_validate_json(json.dumps(dict(node.plain() or {})), strict=True)
    except ValidationError as error:
        mistakes.extend(_explain(error.errors(include_url=False), model, node, what))
        return None


def field_names(model: type[BaseModel]) -> list[str]:
    """Return the keys of a model in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def label(path: KeyPath) -> str:
    """Return a path as text, such as "tasks[0].weight"."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def expected(path: KeyPath, node: Node, wanted: str, what: str) -> Mistake:
    """Return the mistake for a value of a wrong type, with advice.

    Args:
        path: the path of the value.
        node: the value.
        wanted: a description of valid values.
        what: the name of the outermost value in messages.
    """
    secret = bool(path) and isinstance(path[-1], str) and _SECRET.search(path[-1]) is not None
    found = "another text" if secret and isinstance(node.value, str) else node.describe()
    hint = None
    if "text" in wanted.split() and node.text is not None and node.value is not None:
        hint = f'quote it: "{node.text}"'
    elif "number" in wanted and isinstance(node.value, str) and _NUMBER.fullmatch(node.value):
        hint = f"write {node.value.replace('_', '')}"
    where = f"{what}: {label(path)}" if path else what
    return node.position.mistake(f"{where} must be {wanted}, found {found}", hint)


def _explain(errors: Sequence[ErrorDetails], model: type[BaseModel], node: Node, what: str) -> list[Mistake]:
    """Return one mistake per place for pydantic's errors.

    A value that matches no member of a union has one error per member. An error inside one member is more informative
    than the error that the value is not another member, so only the former is returned.
    """
    places: dict[KeyPath, list[ErrorDetails]] = {}
    guesses: set[KeyPath] = set()
    for error in errors:
        path, through_union = _real_path(error, node)
        places.setdefault(path, []).append(error)
        if through_union:
            guesses.add(path)
    shallow = {path for path in guesses for other in places if len(other) > len(path) and other[: len(path)] == path}
    return [_mistake(path, places[path], model, node, what) for path in places if path not in shallow]


def _real_path(error: ErrorDetails, node: Node) -> tuple[KeyPath, bool]:
    """Return the path of an error in the file, and whether pydantic's path also contains names of union members."""
    path: list[str | int] = []
    through_union = False
    for index, key in enumerate(error["loc"]):
        child = node.child(key)
        last = index == len(error["loc"]) - 1
        if child is not None:
            path.append(key)
            node = child
        elif last and error["type"] == "missing":
            path.append(key)
        else:
            through_union = True
    return tuple(path), through_union


def _mistake(path: KeyPath, errors: list[ErrorDetails], model: type[BaseModel], root: Node, what: str) -> Mistake:
    node, error = root.find(path), errors[0]
    if error["type"] == "missing":
        return node.position.mistake(f"{what}: {label(path)} is missing")
    if error["type"] == "extra_forbidden":
        inside = f" in {label(path[:-1])}" if len(path) > 1 else ""
        return node.position.mistake(
            f"{what}: unknown key {str(path[-1])!r}{inside}", nearest(str(path[-1]), _keys_at(model, path[:-1]))
        )
    wanted = [text for item in errors if (text := _wanted(item)) is not None]
    if wanted:
        mistake = expected(path, node, " or ".join(dict.fromkeys(wanted)), what)
        if mistake.hint is None and isinstance(node.value, str):
            close = nearest(node.value, [name for text in wanted for name in re.findall(r"'([^']+)'", text)])
            if close is not None and close.startswith("did"):
                mistake = replace(mistake, hint=close)
        return mistake
    where = f"{what}: {label(path)}" if path else what
    if error["type"] in ("value_error", "assertion_error"):
        message = str(error.get("ctx", {}).get("error", error["msg"]))
    else:
        message = error["msg"].replace("Input should", "must", 1).replace(" should ", " must ", 1)
        message = message.replace(" after validation", "")
    return node.position.mistake(f"{where}: {message}")


def _wanted(error: ErrorDetails) -> str | None:
    """Return a description of the values that an error's check accepts; None for other kinds of errors."""
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    if error["type"] == "string_pattern_mismatch":
        return f"text that matches {error.get('ctx', {}).get('pattern')}"
    found = re.fullmatch(r"Input should be (?:a valid )?(.+)", error["msg"])
    return found[1] if found else None


def _keys_at(annotation: Any, path: KeyPath) -> set[str]:
    """Return the valid keys at a path inside a value of an annotated type."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _keys_at(args[0], path)
    if origin in (Union, UnionType):
        return {key for arg in args for key in _keys_at(arg, path)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return set(field_names(annotation))
        fields = (field for name, field in annotation.model_fields.items() if (field.alias or name) == path[0])
        return {key for field in fields for key in _keys_at(field.annotation, path[1:])}
    if path and args:
        inner = args[:-1] if args[-1] is Ellipsis else args[1:] if isinstance(path[0], str) else args
        return {key for arg in inner for key in _keys_at(arg, path[1:])}
    return set()
