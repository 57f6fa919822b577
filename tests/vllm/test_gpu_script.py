"""The served part of the script that measures a GPU, on the CPU with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.gpu.__main__ import main

pytestmark = pytest.mark.vllm


def test_a_served_teacher_is_measured(vllm_environ: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--shapes", "tiny", "--out", str(out), "--vllm", vllm_environ["TRACEFACTORY_TEST_VLLM"]]) == 0
    served = json.loads(out.read_text())["served"]["result"]
    assert min(served[name] for name in served if name.endswith("_per_s")) > 0
