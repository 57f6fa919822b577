"""Ray, sockets and the state folder have one owner each; an import elsewhere fails here."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tracefactory"
FILES = sorted(PACKAGE.rglob("*.py"))

# The only modules that may import these packages.
OWNERS = {
    "ray": {f"engine/executors/{name}.py" for name in ("ray", "ray_cluster", "ray_nodes", "ray_servers")},
    "openai": {"serving/client.py"},
    "huggingface_hub": {"publish/hub_client.py", "publish/card.py", "sources/hub_dataset.py"},
    "genai_prices": {"core/prices.py"},
    "obstore": {"store/shared/cloud.py"},
    "xllamacpp": {"serving/llama_server.py"},
    "reasoning_gym": {"reading/gym.py", "verifiers/reasoning_gym.py"},
    "math_verify": {"maths/symbolic.py"},
}


@cache
def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found |= {str(one.value).split(".")[0] for one in node.args if isinstance(one, ast.Constant)}
    return found


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_package_is_imported_by_its_owner_alone(package: str) -> None:
    importers = {file.relative_to(PACKAGE).as_posix() for file in FILES if package in imports(file)}
    assert importers, f"nothing imports {package} any more: mend this test"
    assert importers <= OWNERS[package]


def test_every_module_has_a_docstring_and_no_relative_import() -> None:
    for file in FILES:
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree) or not tree.body, file
        assert all(not node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), file


def test_files_and_functions_stay_small() -> None:
    for file in FILES:
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{file}:{node.lineno} {node.name}"
