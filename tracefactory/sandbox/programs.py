"""Extract the program from a completion."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

_BLOCK = re.compile(r"```[ \t]*+(?P<language>[A-Za-z0-9_+-]*+)[^\n`]*+\n(?P<code>.*?)(?P<end>```|\Z)", re.DOTALL)
_LIKE_CODE = re.compile(
    r"^[^\S\n]*+(?:def |class |import |from \w+ import|print\(|return\b|[A-Za-z_]\w*+\s*+=[^=])", re.MULTILINE
)
_PYTHON = frozenset(("python", "py", "python3", "tool_code", ""))


@dataclass(frozen=True)
class Program:
    """A Python program and its [start, end) range in the text."""

    code: str
    start: int
    end: int


def find_program(text: str, *, names: tuple[str, ...] = (), cut_off: bool = False) -> Program | None:
    """Return the last Python block of a completion; None when there is none.

    A text without blocks counts as a block when it is Python. A truncated block does not count.

    Args:
        text: the completion.
        names: blocks that define one of these names are preferred.
        cut_off: whether the completion was truncated.
    """
    blocks = [
        _program(match)
        for match in _BLOCK.finditer(text)
        if match["language"].lower() in _PYTHON and match["code"].strip() and (match["end"] or not cut_off)
    ]
    for block in reversed(blocks):
        if names and any(defines(block.code, name) for name in names):
            return block
    parsed = [block for block in blocks if parse_program(block.code) is not None]
    if parsed or blocks:
        return (parsed or blocks)[-1]
    if cut_off or "```" in text or not _LIKE_CODE.search(text):
        return None
    whole = parse_program(text) or parse_program("def _():\n" + text)
    return None if whole is None else Program(text, 0, len(text))


def _program(block: re.Match[str]) -> Program:
    """Return the program of a block, without the line break and the indentation of its closing fence."""
    code = block["code"].rstrip(" \t").removesuffix("\n") if block["end"] else block["code"]
    return Program(code, block.start("code"), block.start("code") + len(code))


def defines(code: str, name: str) -> bool:
    """Return whether the text of a program binds `name` at its top level."""
    return (
        re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE)
        is not None
    )


def parse_program(code: str) -> ast.Module | None:
    """Return the syntax tree of a text; None when it is not a Python program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ignore warnings about escape sequences in the program
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def print_last(code: str) -> str:
    """Return the program with its last expression printed, as in a notebook, unless that is a call to print."""
    tree = parse_program(code)
    last = tree.body[-1] if tree is not None and tree.body else None
    if (
        tree is None
        or not isinstance(last, ast.Expr)
        or (isinstance(last.value, ast.Call) and getattr(last.value.func, "id", "") == "print")
    ):
        return code
    tree.body[-1] = ast.Expr(ast.Call(ast.Name("print", ast.Load()), [last.value], []))
    return ast.unparse(ast.fix_missing_locations(tree))
