"""Whole runs around the stand-in for vLLM: placed by Ray or as child processes, shared by `serve`, never orphaned."""

import json
import os
import signal
import subprocess

import psutil
import pytest

from tests.e2e.conftest import Project, end, kill_tree, wait_until

PIPELINE = """\
name: sums
version: "1"
models:
  teacher: {model}
stages:
  - {{id: problems, source: reasoning_gym, with: {{size: {size}, seed: 3, tasks: [{{task: chain_sum}}]}}}}
  - {{id: long, sample: chat, with: {{model: teacher, prompt: long, samples: 2}}}}
  - {{id: checked, verify: auto}}
run: {{executor: {executor}, workers: 1}}
"""


@pytest.fixture
def project_of(stand_in, monkeypatch):
    made = []

    def make(executor, size=20, **fields):
        spec = stand_in.spec(concurrency=8, **fields)
        for folder in ("pipelines", "prompts"):
            (stand_in.root / folder).mkdir()
        (stand_in.root / "prompts" / "long.md").write_text("---\nstyle: long\n---\n{{ question }}\n")
        pipeline = stand_in.root / "pipelines" / "sums.yaml"
        pipeline.write_text(PIPELINE.format(model=spec.model_dump_json(), size=size, executor=executor))
        made.append(Project(stand_in.root, pipeline))
        return made[-1]

    yield make
    end(made)


@pytest.mark.slow  # test_vllm_servers.py kills the servers of one client
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_run_survives_its_servers_and_its_servers_end_with_it(executor, stand_in, project_of):
    project = project_of(executor, size=60, replicas=2, environ={"STAND_IN_LATENCIES": "0.4"})
    run = project.start()
    wait_until(lambda: len(project.paid_lines()) > 10, 180)
    os.kill(stand_in.started[0]["pid"], signal.SIGKILL)
    if executor == "ray":  # the actor that owns the other server, as if its node had died
        guard = psutil.Process(stand_in.started[1]["pid"]).parent()
        guard.parent().parent().kill()
    wait_until(lambda: len(stand_in.started) == (4 if executor == "ray" else 3) or run.poll() is not None, 180)
    assert run.wait(120) == 0, (project.root / "stderr.log").read_text()
    assert stand_in.all_gone()
    outcome = project.make()
    assert outcome["stages"][-1]["tally"]["rows_in"] == 120
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == 120
    log_dir = next(path for path in (project.root / ".tracefactory" / "runs").glob("*/logs"))
    assert sorted(path.name for path in (log_dir / "teacher").iterdir()) == ["replica-0.log", "replica-1.log"]


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_kill_9_of_the_driver_leaves_no_server(executor, stand_in, project_of):
    project = project_of(executor, size=60, environ={"STAND_IN_LATENCIES": "0.4"})
    run = project.start()
    wait_until(lambda: len(project.paid_lines()) > 4, 180)
    run.kill()
    run.wait()
    assert stand_in.all_gone(30)


def test_served_servers_are_waited_for_used_and_left_alone(stand_in, project_of):
    project = project_of("inline", environ={"STAND_IN_START_S": "5"})
    command = project.command("serve", "teacher", str(project.pipeline))
    keeper = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(stand_in.started) == 1)
        outcome = project.make()  # while the server is still loading
        assert outcome["stages"][-1]["tally"]["rows_in"] == 40
        assert len(stand_in.started) == 1
        assert keeper.stdout.readline().startswith("http://127.0.0.1:")
        assert "already served by process" in project.run("serve", "teacher", str(project.pipeline), expect=2)
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(30) == 0
        assert stand_in.all_gone()
        assert list((project.root / ".tracefactory" / "servers").glob("*.json")) == []
    finally:
        kill_tree(keeper.pid)
        keeper.wait()
        keeper.stdout.close()


def test_only_a_vllm_model_is_served_and_a_wrong_name_is_told(stand_in, project_of):
    project = project_of("inline")
    assert "did you mean 'teacher'?" in project.run("serve", "techer", str(project.pipeline), expect=2)
    fake = json.dumps({"use": "fake"})
    text = project.pipeline.read_text()
    project.pipeline.write_text(text.replace(text.splitlines()[3], f"  teacher: {fake}"))
    assert "`use: fake`" in project.run("serve", "teacher", str(project.pipeline), expect=2)
