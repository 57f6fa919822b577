"""Python sources that users write: their digest, and the line of them that an error is about."""

from __future__ import annotations

import ast
import traceback
from typing import Any

from tracefactory.core.fingerprint import digest

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_digest(tree: ast.Module) -> str:
    """Return the sha256 of what the tree does: its nodes without positions and docstrings.

    It is equal for sources that differ only in comments, layout or docstrings.

    Fields that are empty or None are left out, because which of them exist differs between Python versions, and a
    stage key must not.
    """
    return digest(_plain(tree))


def line_of(error: BaseException, file: str) -> int | None:
    """Return the line of `file` that an error comes from, None when it does not come from there."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno for frame in frames if frame.filename == file), None)


def _plain(node: Any) -> Any:
    if isinstance(node, ast.Constant):
        return [type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields = {name: _field(node, name, value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return node


def _field(node: ast.AST, name: str, value: Any) -> Any:
    if name == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        return _plain(value[1:])
    return _plain(value)
