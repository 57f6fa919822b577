"""What a command may import before it works: an answer that needs no models must not wait for their packages."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tracefactory.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tracefactory"
# Of the packages that take a tenth of a second or more to import.
HEAVY = {"aiohttp", "datasets", "huggingface_hub", "math_verify", "openai", "pandas", "ray", "reasoning_gym", "sympy"}
HEAVY |= {"genai_prices", "torch", "transformers", "xllamacpp"}
ALL = HEAVY | {"numpy", "polars", "pyarrow", "rich"}
CODE = """\
import json, sys
sys.argv = ["tracefactory", *json.loads(sys.argv[1])]
from tracefactory.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def imported_by(*arguments: str, cwd: Path = ROOT) -> set[str]:
    command = [sys.executable, "-c", CODE, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("check", "--help")])
def test_help_imports_no_package_that_does_work(arguments: tuple[str, ...]) -> None:
    assert not ALL & imported_by(*arguments)


def test_check_imports_no_model_and_no_cluster(tmp_path: Path) -> None:
    imported_by("check", "pipelines/mix_distill.yaml")  # its tasks are checked once per version of reasoning_gym
    assert not HEAVY & imported_by("check", "pipelines/mix_distill.yaml")


def test_a_finished_run_imports_no_model_and_no_cluster(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(sorted((ROOT / "tests" / "e2e" / "stored").glob("*.tar.xz"))[-1]) as tar:
        tar.extractall(tmp_path, filter="data")
    (project,) = (file.parent.parent for file in tmp_path.glob("*/pipelines/sums.yaml"))
    imported_by("run", "pipelines/sums.yaml", cwd=project)  # views have other versions since it was stored
    assert not HEAVY & imported_by("run", "pipelines/sums.yaml", cwd=project)


def test_a_run_that_makes_rows_imports_no_pandas_which_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "problems.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    stages = "stages: [{id: problems, source: files, with: {paths: problems.jsonl}}]"
    (tmp_path / "pipelines/p.yaml").write_text(f'name: p\nversion: "1"\n{stages}\nrun: {{executor: inline}}\n')
    assert not HEAVY & imported_by("run", "pipelines/p.yaml", cwd=tmp_path)
    code = """
from tracefactory.engine.process import settle
settle()
import sys
import pyarrow as pa
table = pa.table({"a": pa.array(["x", None])})
assert "pandas" not in sys.modules
frame = table.to_pandas()
import pandas as pd
assert pa.Table.from_pandas(frame).to_pydict() == table.to_pydict()
assert pa.array(pd.Series([1.0, float("nan")])).null_count == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_has_its_file_and_its_line_in_the_help() -> None:
    files = {file.stem for file in (PACKAGE / "cli").glob("*.py")}
    rendered = {"rendered_row", "rendered_student", "rendered_trainer"}
    helpers = {"__init__", "options", "stored_record", "student_text", *rendered}
    assert files - helpers == set(COMMANDS)
    for name in COMMANDS:
        assert callable(getattr(import_module(f"tracefactory.cli.{name}"), name))
        assert len(COMMANDS[name]) <= 78
