"""Chats of a `use: transformers` model: they are checked and planned, and both executors write the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Project

pytestmark = pytest.mark.slow  # three servers that import torch, and Ray

PIPELINE = """\
name: chats
version: "1"
models:
  pupil:
    {{use: transformers, model: {model}, dtype: float64, concurrency: 4, replicas: {replicas},
     skip_checks: [truncated]}}
stages:
  - id: problems
    source: files
    with: {{paths: sums.jsonl}}
  - {{id: chats, sample: chat, with: {{model: pupil, prompt: short, samples: 2, max_tokens: 20}}}}
  - {{id: checked, verify: auto}}
run: {{executor: {executor}, shards: 2}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.decoders.checkpoints import save_pair  # imports torch, which takes seconds

    return save_pair(tmp_path_factory.mktemp("pair"))[0]


def test_ray_and_inline_write_the_same_chats(project_of: Callable[..., Project], model: Path) -> None:
    digests = []
    for executor, replicas in (("inline", 1), ("ray", 2)):
        project = project_of("http://127.0.0.1:9/v1", size=8, name=executor)
        project.pipeline.write_text(PIPELINE.format(model=model, executor=executor, replicas=replicas))
        assert "no mistakes" in project.run("check", str(project.pipeline))
        assert "16 requests to pay" in project.run("plan", str(project.pipeline))
        (made,) = [one for one in project.make()["stages"] if one["id"] == "chats"]
        assert made["paid"]["requests"] == 16
        assert (made["tally"]["errors"], made["tally"]["owed"]) == (0, 0)
        digests.append(made["digest"])
    assert digests[0] == digests[1]
