"""The digest of a Python source: equal for sources that differ only in comments, layout or docstrings."""

from __future__ import annotations

import ast
from typing import Any

from tracefactory.core.fingerprint import digest

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_digest(tree: ast.Module) -> str:
    """Return the sha256 of what the tree does: its nodes without positions and docstrings.

    Fields that are empty or None are left out, because which of them exist differs between Python versions, and a
    stage key must not.
    """
    return digest(_plain(tree))


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
