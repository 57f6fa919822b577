"""The main job on a real vLLM: its engine is killed in mid-run, then the driver; shared servers finish the work."""

import json
import signal
import subprocess

import pytest

from tests.e2e.conftest import kill_tree, wait_until
from tests.vllm.conftest import FIELDS
from tests.vllm.project import family, lives, main_job

pytestmark = pytest.mark.vllm
SIZE = 10
PER_PROBLEM = 4  # two styles, two samples each
PATIENCE_S = 900


def engines(pid):
    return [process for process in family(pid) if "VLLM::" in " ".join(process.cmdline())]


def test_kill_9_of_the_engine_and_of_the_driver_and_the_end_on_shared_servers(vllm_environ, tmp_path):
    project = main_job(tmp_path / "project", FIELDS, size=SIZE)
    driver = project.start()
    try:
        wait_until(lambda: len(project.paid_lines()) >= 4 or driver.poll() is not None, PATIENCE_S)
        assert driver.poll() is None, (project.root / "stderr.log").read_text()
        killed = engines(driver.pid)
        killed[0].kill()
        wait_until(lambda: not any(map(lives, killed)), 60)
        paid = len(project.paid_lines())
        assert paid < SIZE * PER_PROBLEM / 2, "most was done before the engine could be killed"
        wait_until(lambda: len(project.paid_lines()) > paid or driver.poll() is not None, PATIENCE_S)
        assert driver.poll() is None, "a dead engine ended the run"
        serving = [one for one in family(driver.pid) if "vllm" in " ".join(one.cmdline()).lower()]
        assert len(serving) >= 3  # the guard, the API server, the engine
        driver.kill()
        driver.wait()
        wait_until(lambda: not any(map(lives, serving)), 60)
    finally:
        if driver.poll() is None:
            kill_tree(driver.pid)
    output = (project.root / "stderr.log").read_text()
    assert "0 of 1 servers up; starting, " in output
    assert "restart 1 of 5" in output
    finish_on_shared_servers(project)


def finish_on_shared_servers(project):
    command = project.command("serve", "teacher", str(project.pipeline))
    keeper = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
    try:
        url = keeper.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        serving = family(keeper.pid)
        outcome = json.loads(
            project.run(*("run", str(project.pipeline), "--set", "run.executor=inline", "--json"), timeout=PATIENCE_S)
        )
        runs = sorted((project.root / ".tracefactory" / "runs").iterdir())
        assert not (runs[-1] / "logs").exists()  # it started no server of its own
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(60) == 0
        assert not any(map(lives, serving))
    finally:
        if keeper.poll() is None:
            kill_tree(keeper.pid)
        keeper.stdout.close()
    for stage in outcome["stages"]:
        tally = stage["tally"]
        assert tally["rows_in"] == tally["kept"] + tally["dropped"] + tally["errors"]
    rows = {stage["id"]: stage["tally"] for stage in outcome["stages"]}
    requests = rows["problems"]["kept"] * PER_PROBLEM  # a problem that was drawn twice is there once
    assert rows["checked"]["rows_in"] == requests
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == requests  # none lost, none paid for again
