"""The process of the tests: evaluate them on proxies for the program's objects, and report how they ended.

Tests come in several styles: statements (MBPP), a function `check` (HumanEval), functions `test_...` as pytest collects
them, and `unittest.TestCase`. Those that the tests do not call themselves are called here. Tests that assert nothing
about the program say nothing about it: that is reported, and not counted as passed.
"""

from __future__ import annotations

import ast
import builtins
import marshal
import os
import socket
import sys
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from tracefactory.sandbox.inside.calls import Caller, ClosedError, Remote
from tracefactory.sandbox.inside.status import STATUS, tell

_ASSERTED, _ENTERED = "__asserted__", "__entered__"
_MODULE_ALIASES = {"np": "numpy", "pd": "pandas", "plt": "matplotlib.pyplot", "sp": "sympy", "nx": "networkx"}


class _BrokenError(Exception):
    """The tests cannot run, whatever the program does."""


def run(end: socket.socket, tests_fd: int, result_fd: int) -> None:
    """Run the tests, write how they ended to a pipe, and exit.

    Args:
        end: the tests' end of the socket.
        tests_fd: the descriptor to read from: a marshalled dictionary with `tests`, `setup`, `entry_point` and `token`.
        result_fd: the descriptor to write to: a Python literal with the token, and with `ended`: "passed", "failed",
            "no_test_ran" or "tests_broken"; then `error` is the name of a built-in exception and `test` the number of
            the test, from 1.
    """
    with os.fdopen(tests_fd, "rb") as file:
        given = marshal.loads(file.read())  # from our own process
    sys.argv = ["tests.py"]  # `unittest.main()` reads it
    number, error = 0, None
    try:
        trees = [_parsed(test) for test in given["tests"]]
        suite = _Suite(Caller(end), given["setup"], given["entry_point"] or _tested_builtin(trees))
        for number, tree in enumerate(trees, 1):  # noqa: B007  # reported
            suite.run(tree)
        suite.call_the_rest()
        ended = "passed" if suite.asserted() else "no_test_ran"
    except ClosedError:
        os._exit(STATUS["left"])  # the program's stderr has the reason
    except _BrokenError as broken:
        ended, error = "tests_broken", broken.__cause__
    except BaseException as raised:  # noqa: BLE001  # reported: the tests did not pass
        ended, error = "failed", raised
    if error is not None:
        import traceback  # here, because it takes 5 ms

        traceback.print_exception(error, limit=-2)
        sys.stderr.flush()
    tell(result_fd, {"token": given["token"], "ended": ended, "test": number, "error": _public_name(error)})
    os._exit(0 if ended == "passed" else 1)


def _public_name(error: BaseException | None) -> str | None:
    """Return the name of an exception if it is one of Python's own: another name is a text of the program."""
    name = type(error).__name__
    return name if error is not None and getattr(builtins, name, None) is type(error) else None


class _Suite:
    """The tests of one program, and what they have called and asserted."""

    def __init__(self, caller: Caller, setup: str, entry_point: str) -> None:
        self._caller, self._entry_point = caller, entry_point
        self._assertions = 0
        self._entered: set[str] = set()
        given = caller.names()
        sys.modules["solution"] = _module("solution", given)
        self._plain = {name for name, value in given.items() if not isinstance(value, Remote | types.ModuleType)}
        self._loaded: set[str] = set()
        main = _module("__main__", {name: value for name, value in given.items() if self._may_define(name, value)})
        sys.modules["__main__"] = main  # as for `unittest.main()`
        self._names = main.__dict__
        self._names |= {"__name__": "tests", _ASSERTED: self._count, _ENTERED: self._entered.add}
        self._run(_definitions(setup, {entry_point}), "setup")

    def run(self, tree: ast.Module) -> None:
        """Run the statements of one test.

        Raises:
            _BrokenError: when the test imports what is not there.
        """
        self._loaded |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        _Counted().visit(tree)
        self._run(ast.fix_missing_locations(tree), "tests.py")

    def call_the_rest(self) -> None:
        """Call `check` with the entry point, functions `test_...` and methods of test cases that have not run yet."""
        entered = frozenset(self._entered)
        check = self._names.get("check")
        if isinstance(check, types.FunctionType) and "check" not in entered and self._entry_point in self._names:
            check(self._names[self._entry_point])
        for name, value in list(self._names.items()):
            if isinstance(value, types.FunctionType) and name.startswith("test") and name not in entered:
                if not _needs_arguments(value):
                    result = value()
                    if isinstance(result, types.CoroutineType):
                        import asyncio

                        asyncio.run(result)
            elif isinstance(value, type) and value.__module__ == "tests":
                _run_class(value, entered)

    def asserted(self) -> bool:
        """Return whether assertions ran, and the tests used the program."""
        used = self._caller.used or self._loaded & self._plain
        return bool(used and self._assertions)

    def _run(self, tree: ast.Module, file: str) -> None:
        try:
            exec(compile(tree, file, "exec"), self._names)
        except ImportError as error:
            if error.name != "solution":
                raise _BrokenError from error
            raise
        except SystemExit as error:  # `unittest.main()` exits with 0 after the tests passed
            if error.code:
                raise

    def _count(self) -> None:
        self._assertions += 1

    def _may_define(self, name: str, value: Any) -> bool:
        """Return whether tests see a name of the program: it must not replace a built-in or a module they may use."""
        if name == self._entry_point:
            return True
        module = _MODULE_ALIASES.get(name, name if name in sys.stdlib_module_names else None)
        if module is not None:
            return isinstance(value, types.ModuleType) and value.__name__ == module
        return not hasattr(builtins, name)


def _run_class(kind: type, entered: Set[str]) -> None:
    import unittest

    tests = [name for name in dir(kind) if name.startswith("test")]
    methods = [name for name in tests if getattr(getattr(kind, name), "__qualname__", name) not in entered]
    if not methods:
        return
    if issubclass(kind, unittest.TestCase):
        result = unittest.TestResult()
        result.failfast = True
        unittest.TestSuite(map(kind, methods)).run(result)
        if failed := [*result.errors, *result.failures]:
            raise AssertionError(failed[0][1])
    elif kind.__name__.startswith("Test"):  # as pytest collects classes
        for name in methods:
            getattr(kind(), name)()


def _parsed(test: str) -> ast.Module:
    try:
        return ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _BrokenError from error


def _tested_builtin(trees: Sequence[ast.Module]) -> str:
    """Return the built-in name that a program is to define, as `sum` in `assert sum(10, 15) == 6`; "" for none.

    That is the name that the first assertion calls first, where the tests call no names but built-in ones.
    """
    nodes = [node for tree in trees for node in ast.walk(tree)]
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    if not called or any(not hasattr(builtins, name) for name in called):
        return ""
    return called[0]


def _module(name: str, names: Mapping[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    return module


def _needs_arguments(function: types.FunctionType) -> bool:
    code, defaults = function.__code__, function.__defaults__ or ()
    return code.co_argcount > len(defaults) or code.co_kwonlyargcount > len(function.__kwdefaults__ or ())


def _definitions(text: str, without: set[str]) -> ast.Module:
    """Return the imports and functions of the problem's own code, which tests may use and a program cannot replace."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the beginning of a function, which the program continues
        return ast.Module([], [])
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef
    tree.body = [one for one in tree.body if isinstance(one, kinds) and getattr(one, "name", "") not in without]
    return tree


class _Counted(ast.NodeTransformer):
    """Counts the assertions that run, and notes which functions are entered, by qualified name."""

    def __init__(self) -> None:
        self._classes: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._entered(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._entered(node)

    def _entered(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.name == "check" or node.name.startswith("test"):
            name = ".".join([*self._classes, node.name])
            node.body.insert(0, _statement(_ENTERED, ast.Constant(name)))
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, list(_counted(statements)))
        return node


def _counted(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for one in statements:
        if _asserts(one):
            yield _statement(_ASSERTED)
        yield one


def _asserts(statement: ast.stmt) -> bool:
    """Return whether a statement is an assertion.

    That is `assert`, a call of `assert...`, an `if` that raises, or a `try` with one of these in it, which expects an
    exception of the program.
    """
    if isinstance(statement, ast.Assert | ast.Raise):
        return True
    if isinstance(statement, ast.If):
        return any(isinstance(one, ast.Raise) for one in statement.body)
    if isinstance(statement, ast.Try):
        return any(map(_asserts, statement.body))
    within: list[ast.expr] = []
    if isinstance(statement, ast.Expr):
        within = [statement.value]
    elif isinstance(statement, ast.With):
        within = [item.context_expr for item in statement.items]
    return any(isinstance(one, ast.Call) and _called(one).startswith(("assert", "fail", "raises")) for one in within)


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def _statement(name: str, *args: ast.expr) -> ast.stmt:
    return ast.Expr(ast.Call(ast.Name(name, ast.Load()), list(args), []))
