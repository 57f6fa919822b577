"""Find mistakes in a filter file, from its text and from its function, each as file:line."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tracefactory.core.decisions import REASON, Decision
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.rows import Kind, Problem, Row, Trace
from tracefactory.filters.api import FilterMark, Params, Rule

_SHAPES = {
    False: "def {name}(trace: Trace, params: SomeParams) -> Decision",
    True: "def {name}(params: SomeParams) -> Rules",
}
_DECORATORS = ("trace_filter", "column_filter")
_ROWS: dict[Any, Kind | None] = {Trace: Kind.TRACES, Problem: Kind.PROBLEMS, Row: None}
_RULES = (Iterable[Rule], Iterator[Rule], list[Rule])
# A filter may use only what is in its stage's key: its source, its parameters and the files that it declares.
_MODULES = frozenset(
    {
        *("os", "io", "pathlib", "shutil", "glob", "tempfile", "sqlite3", "subprocess", "multiprocessing", "threading"),
        *("random", "secrets", "uuid", "time", "datetime", "socket", "ssl", "http", "urllib", "urllib3", "requests"),
        *("httpx", "httpx2", "aiohttp", "huggingface_hub", "datasets", "openai"),
    }
)
_CALLS = frozenset({"open", "exec", "eval", "compile", "input", "__import__"})
_METHODS = frozenset(
    {
        *("open", "read_text", "read_bytes", "loadtxt", "genfromtxt", "fromfile", "memmap", "read_csv", "read_json"),
        *(
            "read_parquet",
            "read_ndjson",
            "read_excel",
            "scan_csv",
            "scan_parquet",
            "scan_ndjson",
            "read_table",
            "urlopen",
        ),
        *("now", "today", "default_rng"),
    }
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_source(file: Path, tree: ast.Module) -> tuple[Function, tuple[str, ...]]:
    """Check a filter file without running it.

    Args:
        file: the file.
        tree: its syntax tree.

    Returns:
        The filter's function, and the drop reasons that are written in the file, in order.

    Raises:
        UserError: with every mistake.
    """
    mistakes: list[Mistake] = []
    name = file.stem
    if not REASON.fullmatch(name):
        mistakes.append(Mistake(f"{name!r} is no snake_case name; a filter file is named like its filter", file))
    found = list(_decorated(tree))
    if not found:
        hint = "a filter folder holds filters only" if name.startswith(("_", "test", "conftest")) else None
        mistakes.append(Mistake("no function is decorated with @trace_filter or @column_filter", file, hint=hint))
    mistakes += [
        Mistake(f"a second filter, {function.name!r}; one file holds one filter", file, function.lineno)
        for function in found[1:]
    ]
    for function in found[:1]:
        mistakes += _check_definition(file, function)
    mistakes += _check_inputs(file, tree)
    reasons: list[str] = []
    imports = [one for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names]
    aliases = {one.asname: one.name for one in imports if one.asname}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", "")
        mistakes += _check_drop(file, aliases.get(name, name), call, reasons)
    if mistakes:
        raise UserError(sorted(mistakes, key=lambda mistake: mistake.line or 0))
    return found[0], tuple(dict.fromkeys(reasons))


def check_function(
    function: types.FunctionType, mark: FilterMark, file: Path
) -> tuple[Kind | None, type[Params] | None]:
    """Check the signature of a filter.

    Args:
        function: the filter.
        mark: what its decorator declares.
        file: its file.

    Returns:
        The kind of its rows (None for a filter on both kinds or on columns), and the model of its parameters (None
        without parameters).

    Raises:
        UserError: with every mistake.
    """
    line = function.__code__.co_firstlineno
    hint = f"write it as {_SHAPES[mark.columns].format(name=function.__name__)}"
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        raise UserError(Mistake(f"its annotations do not resolve: {error}", file, line)) from error
    arguments = [one for one in inspect.signature(function).parameters.values() if one.name != "files"]
    mistakes: list[Mistake] = []
    kind: Kind | None = None
    if not all(one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in arguments):
        mistakes.append(Mistake("a filter takes plain arguments", file, line, hint))
    if not mark.columns:
        first = arguments.pop(0) if arguments else None
        given = None if first is None else hints.get(first.name)
        kind = _ROWS.get(given)
        if given not in _ROWS:
            named = "" if first is None else f" {first.name!r}"
            mistakes.append(Mistake(f"its first argument{named} is not a Trace or a Problem", file, line, hint))
    if len(arguments) > 1:
        mistakes.append(Mistake("a filter takes a row and, if it has parameters, params", file, line, hint))
    returns = hints.get("return")
    if not (returns in _RULES if mark.columns else returns is Decision):
        wanted = "Rules" if mark.columns else "a Decision"
        mistakes.append(Mistake(f"it does not say that it returns {wanted}", file, line, hint))
    model: Any = hints.get(arguments[0].name) if arguments else None
    if arguments and not (isinstance(model, type) and issubclass(model, Params)):
        mistakes.append(Mistake(f"its argument {arguments[0].name!r} is not a Params model", file, line, hint))
    if bool(mark.files) != ("files" in inspect.signature(function).parameters):
        wanted = "an argument `files: Files`" if mark.files else "files=(...) in its decorator"
        mistakes.append(Mistake(f"a filter that reads files has {wanted}", file, line))
    if mistakes:
        raise UserError(mistakes)
    return kind, typing.cast("type[Params] | None", model)


def _check_inputs(file: Path, tree: ast.Module) -> Iterator[Mistake]:
    """Yield a mistake for each use of something that is not in the key: files, clocks, randomness, the network."""
    hint = "declare files: @trace_filter(files=(...)); other than that a filter sees its row and its parameters alone"
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [one.name for one in node.names if one.name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _MODULES:
            found = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            found = [f"{node.func.id}()"]
        elif isinstance(node, ast.Attribute):
            numpy_random = node.attr == "random" and getattr(node.value, "id", None) in ("np", "numpy")
            found = [f".{node.attr}"] if node.attr in _METHODS or numpy_random else []
        for name in found:
            line = getattr(node, "lineno", None)
            message = f"a filter may not use {name}: a stage would stay cached when what it reads changes"
            yield Mistake(message, file, line, hint)


def _decorated(tree: ast.Module) -> Iterator[Function]:
    """Yield the functions with a filter decorator, which may be called and may be an attribute of a module."""
    for node in tree.body:
        if isinstance(node, Function):
            names = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
            if any(getattr(name, "attr", getattr(name, "id", None)) in _DECORATORS for name in names):
                yield node


def _check_definition(file: Path, function: Function) -> Iterator[Mistake]:
    if isinstance(function, ast.AsyncFunctionDef):
        yield Mistake("a filter is a plain function, not async", file, function.lineno)
    if function.name != file.stem:
        hint = f"rename one of them: {function.name}.py, or def {file.stem}"
        yield Mistake(f"the filter is called {function.name!r}, its file {file.stem!r}", file, function.lineno, hint)
    if not ast.get_docstring(function):
        hint = "one sentence: what it keeps"
        yield Mistake(f"the filter {function.name!r} has no docstring", file, function.lineno, hint)


def _check_drop(file: Path, name: str, call: ast.Call, reasons: list[str]) -> Iterator[Mistake]:
    """Check the reasons that are written in a call of `drop`, `drop_if` or `band`, and add the valid ones to `reasons`.

    A reason that is computed elsewhere is checked when the filter runs.
    """
    place = {"drop": 0, "drop_if": 1}.get(name)
    keywords = [k.value for k in call.keywords if k.arg in ("reason", "below", "above")]
    if place is None and name != "band":
        return
    if place is None:
        reasons.append("not_measured")
        found: list[ast.expr | None] = list(keywords)
    else:
        found = [call.args[place] if len(call.args) > place else next(iter(keywords), None)]
    for reason in found:
        if isinstance(reason, (ast.JoinedStr, ast.BinOp)):
            hint = "put what varies from row to row into the detail: drop(reason, detail)"
            yield Mistake("a drop reason must be one fixed word", file, call.lineno, hint)
        elif isinstance(reason, ast.Constant):
            if isinstance(reason.value, str) and REASON.fullmatch(reason.value):
                reasons.append(reason.value)
            else:
                yield Mistake(f"drop reason {reason.value!r} is not snake_case", file, call.lineno)
