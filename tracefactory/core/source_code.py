"""Python sources that users write: their digest, and the line that an error comes from."""

from __future__ import annotations

import ast
import traceback
from typing import Any

from tracefactory.core.fingerprint import digest

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_digest(tree: ast.Module) -> str:
    """Return the sha256 of a syntax tree without positions and docstrings.

    It is equal for sources that differ only in comments, layout or docstrings. Fields that are empty or None are left
    out, because Python versions differ in which of them exist, and stage keys must be equal on all versions.
    """
    return digest(_plain(tree))


def line_of(error: BaseException, file: str) -> int | None:
    """Return the line of `file` that an error comes from; None when it comes from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno for frame in frames if frame.filename == file), None)


def _plain(node: Any) -> Any:
    if isinstance(node, ast.Constant):
        return [type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields = dict(ast.iter_fields(node))
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
        plain = {name: _plain(value) for name, value in fields.items()}
        return [type(node).__name__, {name: value for name, value in plain.items() if value not in (None, [])}]
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return node
