"""A made-up Python environment whose `vllm` is the stand-in, for everything around vLLM that needs no model."""

import json
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import runs
from tracefactory.core.environment import Environment
from tracefactory.models.vllm import VLLMSpec


class StandIn:
    """The made-up environment, and what its servers did."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "stand-in"
        self.folder.mkdir()
        package = root / "site" / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("vllm_stand_in.py"), package / "api_server.py")
        python = root / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{root / "site"}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        (root / "checkpoint").mkdir()
        (root / "checkpoint" / "config.json").write_text("{}")

    def spec(self, **fields):
        environ = {"STAND_IN": str(self.folder), **fields.pop("environ", {})}
        fields = {"model": "./checkpoint", "env": "env", "gpus": 0, "hang_s": 2.0, "retries": 20, **fields}
        return VLLMSpec.model_validate({"use": "vllm", "environ": environ, **fields})

    def environment(self, **fields):
        return Environment(root=self.root, **fields)

    def noted(self, file):
        path = self.folder / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def started(self):
        return self.noted("started.jsonl")

    def living(self):
        """The processes of its servers and engines that still run."""
        pids = [pid for one in self.started for pid in (one["pid"], one["engine"])]
        return [pid for pid in pids if runs(pid)]

    def all_gone(self, within_s=30.0):
        end = time.monotonic() + within_s
        while self.living() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.living()


@pytest.fixture
def stand_in(tmp_path):
    made = StandIn(tmp_path)
    yield made
    for pid in made.living():
        psutil.Process(pid).kill()
