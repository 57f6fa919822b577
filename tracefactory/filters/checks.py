"""What can be wrong with a filter file, found from its text and from its function, each as file:line."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.schema import Trace
from tracefactory.filters.api import REASON, Decision, FilterMark, Params

_SHAPE = "def {name}(trace: Trace, params: SomeParams) -> Decision"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_source(file: Path, tree: ast.Module) -> tuple[str, ...]:
    """Check what can be seen without running the file; return the drop reasons written in it, in order.

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
        mistakes.append(Mistake("no function is decorated with @trace_filter", file, hint=hint))
    mistakes += [
        Mistake(f"a second filter, {function.name!r}; one file holds one filter", file, function.lineno)
        for function in found[1:]
    ]
    for function in found[:1]:
        mistakes += _check_definition(file, function)
    reasons: list[str] = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        mistakes += _check_drop(file, call, reasons)
    if mistakes:
        raise UserError(sorted(mistakes, key=lambda mistake: mistake.line or 0))
    return tuple(dict.fromkeys(reasons))


def one_filter(file: Path, tree: ast.Module) -> Function:
    """Return the decorated function of a tree that `check_source` accepted."""
    return next(_decorated(tree))


def check_function(function: types.FunctionType, mark: FilterMark, file: Path) -> type[Params] | None:
    """Check the signature of a filter and of its measuring half; return its parameters' model, None if it has none.

    Raises:
        UserError: with every mistake.
    """
    line = function.__code__.co_firstlineno
    shape = f"write it as {_SHAPE.format(name=function.__name__)}"
    hints = _hints(function, file, line)
    arguments = list(inspect.signature(function).parameters.values())
    positional = all(argument.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for argument in arguments)
    mistakes: list[Mistake] = []
    if not positional or not 1 <= len(arguments) <= 2:
        mistakes.append(Mistake("a filter takes a trace and, if it has parameters, params", file, line, shape))
    elif hints.get(arguments[0].name) is not Trace:
        mistakes.append(Mistake(f"its first argument {arguments[0].name!r} is not a Trace", file, line, shape))
    if hints.get("return") is not Decision:
        mistakes.append(Mistake("it does not say that it returns a Decision", file, line, shape))
    model: Any = hints.get(arguments[1].name) if len(arguments) == 2 else None
    if len(arguments) == 2 and not (isinstance(model, type) and issubclass(model, Params)):
        mistakes.append(Mistake(f"its second argument {arguments[1].name!r} is not a Params model", file, line, shape))
    mistakes += _check_measure(mark, file, line)
    if mistakes:
        raise UserError(mistakes)
    return typing.cast("type[Params] | None", model)


def _decorated(tree: ast.Module) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, Function) and any(_is_trace_filter(decorator) for decorator in node.decorator_list):
            yield node


def _is_trace_filter(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(called, "attr", getattr(called, "id", None)) == "trace_filter"


def _check_definition(file: Path, function: Function) -> Iterator[Mistake]:
    if isinstance(function, ast.AsyncFunctionDef):
        yield Mistake("a filter is a plain function, not async", file, function.lineno)
    if function.name != file.stem:
        hint = f"rename one of them: {function.name}.py, or def {file.stem}"
        yield Mistake(f"the filter is called {function.name!r}, its file {file.stem!r}", file, function.lineno, hint)
    if not ast.get_docstring(function):
        hint = "one sentence: what it keeps"
        yield Mistake(f"the filter {function.name!r} has no docstring", file, function.lineno, hint)


def _check_drop(file: Path, call: ast.Call, reasons: list[str]) -> Iterator[Mistake]:
    """Check a `drop(...)` whose reason is written in place; one computed elsewhere is checked when it is called."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "drop"):
        return
    reason = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "reason"), None)
    if isinstance(reason, (ast.JoinedStr, ast.BinOp)):
        hint = "put what varies from row to row into the detail: drop(reason, detail)"
        yield Mistake("a drop reason must be one fixed word", file, call.lineno, hint)
    elif isinstance(reason, ast.Constant):
        if isinstance(reason.value, str) and REASON.fullmatch(reason.value):
            reasons.append(reason.value)
        else:
            yield Mistake(f"drop reason {reason.value!r} is not snake_case", file, call.lineno)


def _hints(function: types.FunctionType, file: Path, line: int) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        raise UserError(Mistake(f"its annotations do not resolve: {error}", file, line)) from error


def _check_measure(mark: FilterMark, file: Path, line: int) -> Iterator[Mistake]:
    if mark.measure is None:
        if mark.needs:
            yield Mistake("needs= belongs to a measure=, and there is none", file, line)
        return
    try:
        inspect.signature(mark.measure).bind(None, None, **dict.fromkeys(mark.needs))
    except TypeError as error:
        takes = ", ".join(["trace", "params", *(f"{need}=" for need in mark.needs)])
        yield Mistake(f"its measure must take ({takes}): {error}", file, line)
