"""Regular expressions of the package, and texts on which they would backtrack.

The texts for a pattern come from its parse tree: for each repetition, what stands before it and a long run of what it
accepts, followed by a character that lets the match fail.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import re._compiler as compiler
import re._constants as codes
import re._parser as parser
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    "answers",
    "maths",
    "text",
    "steps",
    "pruners",
    "pruning",
    "filters",
    "verifiers",
    "verification",
    "rollouts",
    "decoders",
    "decoding",
    "students",
    "views",
    "reading",
]
"""The packages whose modules read texts of models."""
METHODS = ("search", "match", "fullmatch", "finditer", "findall", "sub", "subn", "split")
ANY_METHOD = frozenset(("scan", "match", "fullmatch"))
FAILS = ("\x00", ",.;\x00")
"""What ends a run: a character that almost no pattern accepts, also after signs that end a clause."""
_ALPHABET = " \n\taA1.,\\${}(-*_:=é中|`#\"'/+%\u200b\u0301^><029xI;!?&~@[])"
_ONE = (codes.IN, codes.ANY, codes.NOT_LITERAL)
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)
_LONG = 100
"""Repetitions with a lower limit are not long runs."""
UNITS = (
    *" \n\t\\${(}[1aA*`-_|'\"+&中", "a.", "1,", "1 ", "a ", r"\(", r"\[", "\u200b", "e\u0301", "\u202e", r"\n", "**",
    "```\n", "=1", "a, ", "The answer is ", r"\boxed{", "$$", "<think>", r"\text{", "# ", "1/", "I ", ".\n", "\r\n",
    "10^", "-1", "<a>",
)  # fmt: skip
"""What hostile texts repeat, besides what the parse tree of a pattern gives."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A pattern of a module, and how the code uses it: `scan` for every method that tries all places of the text."""

    label: str
    pattern: re.Pattern[str]
    methods: frozenset[str]

    @property
    def package(self) -> str:
        """The package of the module."""
        return self.label.removeprefix("tracefactory.").split(".")[0]


def modules() -> Iterator[tuple[Path, ModuleType]]:
    """Yield the modules that read texts of models, with their files."""
    files = [file for package in PACKAGES for file in sorted((ROOT / "tracefactory" / package).rglob("*.py"))]
    for file in (*files, ROOT / "tracefactory/sandbox/programs.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield file, importlib.import_module(name)
    for file in sorted((ROOT / "filters").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"project_filter_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield file, module


@lru_cache(maxsize=1)
def patterns() -> tuple[Found, ...]:
    """Return the patterns of these modules: in their names, in their classes and tables, and written in their calls."""
    known = {file: (module, ast.parse(file.read_text("utf-8"))) for file, module in modules()}
    uses: dict[str, set[str]] = {}
    own: dict[Path, dict[str, set[str]]] = {}
    for file, (_, tree) in known.items():
        own[file] = _uses(tree)
        for name, methods in own[file].items():
            uses.setdefault(name, set()).update(methods)
    found: dict[tuple[str, int], Found] = {}

    def add(label: str, pattern: re.Pattern[str], methods: set[str] | frozenset[str]) -> None:
        key = (pattern.pattern, pattern.flags)
        before = found.get(key, Found(label, pattern, frozenset()))
        found[key] = dataclasses.replace(before, methods=before.methods | methods)

    for file, (module, tree) in known.items():
        where = str(file.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for name, value in vars(module).items():
            methods = (own[file] if name.startswith("_") else uses).get(name, ANY_METHOD)
            for pattern in () if name.startswith("__") else _nested(value):
                add(f"{where}:{name}", pattern, methods)
        for line, pattern, method in _written(tree):
            if (pattern.pattern, pattern.flags) not in found:
                add(f"{where}:{line}", pattern, {method})
    return tuple(found.values())


def _uses(tree: ast.Module) -> dict[str, set[str]]:
    """Return by which methods each name of a module is used as a pattern, also in loops over a table of patterns."""
    tables: dict[str, list[str]] = {}
    used: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension):
            names = [_name(one) for one in ast.walk(node.iter) if isinstance(one, ast.Name | ast.Attribute)]
            for target in ast.walk(node.target):
                if isinstance(target, ast.Name):
                    tables.setdefault(target.id, []).extend(names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            name = _name(node.func.value)
            for one in (name, *tables.get(name, ())):
                used.setdefault(one, set()).add(_kind(node.func.attr))
    return used


def _name(node: ast.expr | ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _kind(method: str) -> str:
    return method if method in ("match", "fullmatch") else "scan"


def _nested(value: Any, depth: int = 0) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 5:
        inner: list[Any] = []
        if isinstance(value, dict):
            inner = [*value.keys(), *value.values()]
        elif isinstance(value, tuple | list | set | frozenset):
            inner = list(value)
        elif isinstance(value, type):
            inner = list(vars(value).values()) if value.__module__.startswith(("tracefactory", "project_")) else []
        elif dataclasses.is_dataclass(value):
            inner = [getattr(value, one.name, None) for one in dataclasses.fields(value)]
        for one in inner:
            yield from _nested(one, depth + 1)


def _written(tree: ast.Module) -> Iterator[tuple[int, re.Pattern[str], str]]:
    """Yield the patterns in calls such as `re.sub(r"...", ...)`; what is put into one with braces counts as `x`."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _name(node.func.value) == "re"):
            continue
        method, flags = node.func.attr, 0
        if method not in METHODS and method != "compile":
            continue
        for part in (*node.args[1:], *(keyword.value for keyword in node.keywords)):
            for one in ast.walk(part):
                if isinstance(one, ast.Attribute) and _name(one.value) == "re" and one.attr.isupper():
                    flags |= getattr(re, one.attr)
        written = node.args[0]
        if isinstance(written, ast.Constant):
            yield node.lineno, re.compile(written.value, flags), _kind(method)
        elif isinstance(written, ast.JoinedStr) and method != "compile":
            text = "".join(str(one.value) if isinstance(one, ast.Constant) else "x" for one in written.values)
            yield node.lineno, re.compile(text, flags), _kind(method)


def hostile_units(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return, for a pattern, pairs of what a hostile text begins with and what it then repeats."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    units: dict[tuple[str, str], None] = {}
    for before, run in _runs(tree, tree.state, [""], {}):
        for pair in ((before, run), ("", before + run), ("", run + before)):
            units[pair] = None
    for whole in _least(tree, tree.state, {})[:4]:
        units |= {("", part): None for part in (whole, whole[:-1]) if part}
    return list(units | {("", unit): None for unit in UNITS})


def _accepted(item: Any, state: Any) -> list[str]:
    """Return characters that one item accepts."""
    one = compiler.compile(parser.SubPattern(state, [item]), state.flags)
    found = [sign for sign in _ALPHABET if one.fullmatch(sign)]
    return found or [sign for sign in map(chr, range(0x3100)) if one.fullmatch(sign)][:1] or [""]


def _least(items: Any, state: Any, groups: dict[int, str]) -> list[str]:
    """Return short texts that items accept, one for each branch."""
    texts = [""]
    for code, value in items:
        parts = [""]
        if code is codes.LITERAL:
            parts = [chr(value)]
        elif code in _ONE:
            parts = _accepted((code, value), state)[:1]
        elif code is codes.BRANCH:
            parts = [text for branch in value[1] for text in _least(branch, state, groups)]
        elif code is codes.SUBPATTERN:
            parts = _least(value[3], state, groups)
            groups[value[0]] = parts[0]
        elif code is codes.ATOMIC_GROUP:
            parts = _least(value, state, groups)
        elif code in _REPEATS and value[0]:
            parts = [text * value[0] for text in _least(value[2], state, groups)]
        elif code is codes.GROUPREF:
            parts = [groups.get(value, "")]
        texts = [text + part for text in texts for part in parts][:12]
    return texts


def _runs(items: Any, state: Any, before: list[str], groups: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Yield, for each long repetition, a text that leads up to it, and what it repeats."""
    for code, value in items:
        if code in _REPEATS:
            if value[1] >= _LONG:
                one = value[2][0] if len(value[2]) == 1 else (None, None)
                runs = _accepted(one, state)[:6] if one[0] in _ONE else _least(value[2], state, groups)[:4]
                yield from ((text, run) for run in runs if run for text in before[:2])
            yield from _runs(value[2], state, before, groups)
        elif code is codes.BRANCH:
            for branch in value[1]:
                yield from _runs(branch, state, before, groups)
        elif code is codes.SUBPATTERN:
            yield from _runs(value[3], state, before, groups)
        elif code is codes.ATOMIC_GROUP:
            yield from _runs(value, state, before, groups)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            yield from _runs(value[1], state, before if value[0] > 0 else [""], groups)
        after = _least([(code, value)], state, groups)
        before = [text + part for text in before for part in after][:4]
