"""Workers of models in their own memory: as many as asked for, each with GPUs that no other has."""

import os
from pathlib import Path

import pytest
import ray

from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.engine.executors.ray import RayExecutor
from tracefactory.engine.worker import WorkerSetup
from tracefactory.serving.status import ModelStatus

GPUS = 2  # Ray hands out what it is told there is; nothing here computes on them
PIPELINE = """
name: t
version: "1"
models:
  student: {{use: transformers, model: ./student.gguf, gpus: {gpus}, replicas: {replicas}}}
stages:
  - {{id: traces, source: traces, with: {{paths: traces.jsonl, question: q, answer: a, model: someone}}}}
  - {{id: known, measure: student, from: traces, with: {{student: student}}}}
run: {{executor: ray, ray_address: {address}}}
"""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init("local", num_cpus=2, num_gpus=GPUS, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def executor_of(tmp_path: Path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "traces.jsonl").write_text('{"q": "6*7?", "a": 42, "response": "It is 42."}')
    (tmp_path / "student.gguf").write_text("")

    def make(address="null", **numbers):
        path = tmp_path / "pipelines" / "t.yaml"
        path.write_text(PIPELINE.format(address=address, **numbers))
        pipeline = load_pipeline(path)
        keys = {stage.id: "0" * 64 for stage in pipeline.stages}
        return RayExecutor(WorkerSetup(pipeline, keys, tmp_path / ".tracefactory", "run")), pipeline.stage("known")

    return make


def visible(member):
    return ray.get(member.actor.__ray_call__.remote(lambda worker: os.environ.get("CUDA_VISIBLE_DEVICES")), timeout=60)


def end(members):
    for member in members:
        ray.kill(member.actor)


def test_each_replica_of_a_student_has_gpus_of_its_own(executor_of):
    executor, stage = executor_of(gpus=1, replicas=GPUS)
    members = executor._hosts(stage)
    assert sorted(map(visible, members)) == ["0", "1"]
    assert executor._hosts(stage) is members  # they are started once
    end(members)


def test_a_machine_that_has_too_few_gpus_says_so_instead_of_waiting(executor_of):
    executor, stage = executor_of(gpus=2, replicas=2)
    with pytest.raises(UserError, match="student needs 4 GPUs, but this machine has 2"):
        executor._hosts(stage)


@pytest.mark.asyncio
async def test_waiting_for_the_gpus_of_a_cluster_is_told(executor_of):
    executor, stage = executor_of(address="auto", gpus=GPUS + 1, replicas=1)
    members = executor._hosts(stage)
    assert await executor.models() == {"student": ModelStatus("waits for a node with 3 free GPUs")}
    end(members)
