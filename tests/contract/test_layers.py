"""The package is in layers: a module imports from its own layer or those below, and modules form no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tracefactory"
LAYERS = [
    {"core"},
    {"store"},
    {"text", "maths", "answers", "sandbox", "sampling"},
    {"serving"},
    {"models"},
    # What the methods below are made of.
    {"filters", "reading", "verification", "pruning", "students", "decoding", "trainers"},
    {"sources", "verifiers", "pruners", "decoders", "rollouts", "config"},
    {"stages"},
    {"engine"},
    {"publish"},
    {"views"},
    {"teaching"},
    {"testing", "cli"},
    {"__main__"},
]
"""Lowest first. `tracefactory` itself holds the version, which anybody may read."""


def modules() -> dict[str, Path]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """Return the modules of this package that a module imports, wherever in it; those for types alone do not run."""
    tree = ast.parse(MODULES[name].read_text())
    typing = {
        id(one)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for one in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {one if (one := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return {one for one in found if one in MODULES and one not in (name, "tracefactory")}


class Imports(dict[str, set[str]]):
    """What each module imports, looked up when it is first asked for: reading all of them takes seconds."""

    def __missing__(self, name: str) -> set[str]:
        self[name] = imported(name)
        return self[name]


IMPORTS = Imports()


def layer(name: str) -> int:
    (place,) = [index for index, names in enumerate(LAYERS) if name.split(".")[1] in names]
    return place


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name != "tracefactory"))
def test_a_module_imports_nothing_from_a_layer_above(name: str) -> None:
    assert not [one for one in sorted(IMPORTS[name]) if layer(one) > layer(name)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    reach: dict[str, set[str]] = {}

    def reachable(name: str) -> set[str]:
        if name not in reach:
            reach[name] = set()
            seen, todo = set[str](), [name]
            while todo:
                for one in IMPORTS[todo.pop()] - seen:
                    seen.add(one)
                    todo.append(one)
            reach[name] = seen
        return reach[name]

    assert not [name for name in MODULES if name in reachable(name)]


def test_the_check_finds_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTS, "tracefactory.core.rows", {"tracefactory.stages.sample.chat"})
    with pytest.raises(AssertionError):
        test_a_module_imports_nothing_from_a_layer_above("tracefactory.core.rows")
    with pytest.raises(AssertionError):
        test_no_modules_import_each_other_in_a_circle()
