"""Children end with their parent, whichever way it ends, and say why when they do not start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import runs
from tracefactory.core.errors import RunError
from tracefactory.core.processes import Child

CHILD = """
import sys, time
from tracefactory.core.processes import end_with_parent, report_ready
end_with_parent()
report_ready(int(sys.argv[-1]), port=1)
{rest}
"""
# A parent that starts a child, says its pid, and waits to be killed. With "fork", a fork of it lives on and keeps the
# parent's end of the child's standard input open.
PARENT = """
import asyncio, os, sys, time
from pathlib import Path
from tracefactory.core.processes import Child
async def main():
    child = await Child.spawn("child", [sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]), ready_timeout_s=60)
    if sys.argv[3] == "fork" and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print(child.pid, flush=True)
    if sys.argv[3] == "leave":
        return
    time.sleep(60)
asyncio.run(main())
"""
SLEEP = CHILD.format(rest="time.sleep(60)")
# Holds the interpreter's lock for good, as a long call into C code does: no Python thread of the child runs again.
BUSY = CHILD.format(rest="import ctypes; ctypes.PyDLL(None).sleep(60)")


def gone(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not runs(pid):
            return True
        time.sleep(0.05)
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")


@pytest.mark.parametrize(
    ("child", "way"),
    [
        (SLEEP, "kill"),
        (SLEEP, "leave"),
        pytest.param(BUSY, "kill", marks=linux),
        pytest.param(SLEEP, "fork", marks=linux),
    ],
)
def test_no_child_outlives_its_parent(child, way, tmp_path):
    argv = [sys.executable, "-W", "ignore", "-c", PARENT, child, str(tmp_path / "log"), way]
    parent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid, within_s=0.2) or way == "leave"
        if way != "leave":
            os.kill(parent.pid, signal.SIGKILL)
        assert gone(pid), f"the child outlived its parent ({way})"
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
        parent.wait()


async def spawn(code: str, tmp_path: Path, *, ready_s: float = 60) -> Child:
    return await Child.spawn("the child", [sys.executable, "-c", code], tmp_path / "log", ready_timeout_s=ready_s)


async def test_a_child_reports_its_facts_and_ends_on_stop(tmp_path):
    child = await spawn(SLEEP, tmp_path)
    assert child.facts == {"port": 1}
    assert child.alive
    await child.stop()
    assert not child.alive
    assert child._process.returncode == 0  # it left by itself, at the end of its input
    await child.stop()


async def test_a_child_that_ignores_stop_is_killed(tmp_path):
    code = "import os, sys, time; os.write(int(sys.argv[-1]), b'{}\\n'); time.sleep(60)"
    child = await spawn(code, tmp_path)
    await child.stop(grace_s=0.2)
    assert child._process.returncode == -signal.SIGKILL


async def test_a_child_that_exits_at_its_start_is_reported_with_its_log(tmp_path):
    with pytest.raises(RunError, match=r"(?s)the child ended with status 3.*no such weights"):
        await spawn("import sys; print('no such weights', file=sys.stderr); sys.exit(3)", tmp_path)


async def test_a_child_that_never_gets_ready_is_ended(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(RunError, match="was not ready after 1 s"):
        await spawn(code, tmp_path, ready_s=1)
    assert gone(int((tmp_path / "pid").read_text()))


async def test_ctrl_c_in_the_terminal_does_not_reach_a_child(tmp_path):
    child = await spawn(SLEEP, tmp_path)
    try:
        assert os.getsid(child.pid) == child.pid
    finally:
        await child.stop()
