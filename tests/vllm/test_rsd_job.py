"""A run that decodes with two vLLM servers: one is killed in mid-trace; no row is lost and none is paid twice."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.e2e.conftest import Project, kill_tree, wait_until
from tests.vllm.project import family, lives
from tests.vllm.rsd import fields, save_student

pytestmark = pytest.mark.vllm
PROBLEMS, SAMPLES = 3, 3
PATIENCE_S = 900
PROMPT = "---\nstyle: rsd\n---\n{{ question }}\n"


def project(folder, models, servers) -> Project:
    (folder / "pipelines").mkdir(parents=True)
    (folder / "prompts").mkdir()
    (folder / "filters").mkdir()
    (folder / "prompts" / "plain.md").write_text(PROMPT)
    sums = {"task": "chain_sum", "params": {"min_terms": 2, "max_terms": 2}}
    given = {"teacher": "big", "student": "small", "prompt": "plain", "samples": SAMPLES, "max_tokens": 48}
    pipeline = {
        "name": "rsd",
        "version": "1",
        "models": models,
        "stages": [
            {"id": "problems", "source": "reasoning_gym", "with": {"size": PROBLEMS, "seed": 3, "tasks": [sums]}},
            {"id": "rsd", "sample": "reverse_speculative", "with": {**given, "servers": servers, "thinking": "any"}},
        ],
        "run": {"executor": "inline", "shards": 1},
    }
    path = folder / "pipelines" / "job.yaml"
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return Project(folder, path)


def engines(pid):
    return [process for process in family(pid) if "VLLM::" in " ".join(process.cmdline())]


@pytest.mark.parametrize("servers", ["two", "one"])
def test_kill_9_of_an_engine_in_mid_trace_loses_and_repays_nothing(vllm_environ, tmp_path, servers):
    teacher = vllm_environ["TRACEFACTORY_TEST_CHECKPOINT"]
    models = {
        "big": {**fields(teacher), "concurrency": 2},
        "small": fields(save_student(teacher, tmp_path / "student")),
    }
    job = project(tmp_path / "project", models, servers)
    driver = job.start()
    try:
        wait_until(lambda: job.paid_lines() or driver.poll() is not None, PATIENCE_S)
        assert driver.poll() is None, (job.root / "stderr.log").read_text()
        killed = engines(driver.pid)
        killed[-1].kill()
        wait_until(lambda: not lives(killed[-1]), 60)
        assert len(job.paid_lines()) < PROBLEMS * SAMPLES, "all was done before the engine could be killed"
        assert driver.wait(PATIENCE_S) == 0, (job.root / "stderr.log").read_text()
    finally:
        if driver.poll() is None:
            kill_tree(driver.pid)
    lines = job.paid_lines()
    assert len(lines) == len(set(lines)) == PROBLEMS * SAMPLES
    outcome = json.loads(job.run("run", str(job.pipeline), "--json", timeout=PATIENCE_S))  # everything is there
    tally = next(stage["tally"] for stage in outcome["stages"] if stage["id"] == "rsd")
    assert (tally["rows_in"], tally["errors"]) == (PROBLEMS * SAMPLES, 0)
    assert tally["kept"] + tally["dropped"] == PROBLEMS * SAMPLES
    assert job.paid_lines() == lines
