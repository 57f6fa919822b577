"""The script that measures a GPU runs every part on the CPU with tiny shapes, and imports nothing that needs more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
RUN = """\
import sys
from tests.bench.gpu.__main__ import main
status = main(["--shapes", "tiny", "--out", sys.argv[1]])
print("imported:", sorted({"ray", "trl", "vllm", "datasets", "math_verify"} & sys.modules.keys()))
sys.exit(status)
"""


def test_every_part_runs_with_tiny_shapes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "gpu.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all("result" in found[name] for name in found if name not in ("machine", "options"))
    agreeing, less = (found[name]["result"]["by_rows"] for name in ("decoding_agreeing", "decoding_agreeing_less"))
    assert (
        agreeing[-1]["student_share"]
        < less[-1]["student_share"]
        < found["decoding"]["result"]["by_rows"][-1]["student_share"]
    )
    exact = found["exact_float64"]["result"]
    assert exact["teacher 4"]["equal_rows"] == exact["student 8"]["equal_rows"] == exact["rows"]


def test_without_a_gpu_the_real_shapes_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no GPU here" in done.stderr
