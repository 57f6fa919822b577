"""No program leaves the sandbox or passes its limits: as root, as an ordinary user, and in bubblewrap."""

# ruff: noqa: E501  # programs are easier to read on one line

from __future__ import annotations

import contextlib
import json
import os
import site
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from tests.attacks.programs import ESCAPES, TOO_MUCH
from tests.attacks.users import AS_ROOT, PROJECT, command, possible_users, run
from tracefactory.core.pipeline import Protection
from tracefactory.sandbox.protections import PROTECTIONS

WITHOUT_NAMESPACES = (sys.executable, "-m", "tests.attacks.without_namespaces")


@contextlib.contextmanager
def host(folder: Path) -> Iterator[dict[str, str]]:
    """Yield what a program must not reach: files, sockets and a process of this machine."""
    folder.chmod(0o755)
    secret, public = folder / "secret", folder / "public"
    for file, mode in ((secret, 0o600), (public, 0o666)):
        file.write_text("content")
        file.chmod(mode)
    os.mkfifo(folder / "fifo")
    (folder / "fifo").chmod(0o666)
    with contextlib.ExitStack() as open_ones:
        port = open_ones.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        for address in (str(folder / "socket"), f"\0{folder}"):
            listener = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        (folder / "socket").chmod(0o777)
        yield {
            "HOST_FILE": str(secret),
            "OPEN_FILE": str(public),
            "HOST_FIFO": str(folder / "fifo"),
            "HOST_SOCKET": str(folder / "socket"),
            "HOST_ABSTRACT": str(folder),
            "HOST_PORT": str(port),
            "HOST_PID": str(os.getpid()),
        }


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = Path("/tmp") / f"tracefactory-attacks-{os.getpid()}-{time.monotonic_ns()}"  # short, and open to all users
    folder.mkdir()
    try:
        with host(folder) as names:
            yield names
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def filled(code: str, names: dict[str, str]) -> dict[str, Any]:
    for name, value in names.items():
        code = code.replace(name, value)
    return {"code": code}


@pytest.mark.parametrize("user", possible_users())
def test_no_program_leaves_the_sandbox(user: str, here: dict[str, str]) -> None:
    protections, *ends = run(user, [filled(code, here) for code in ESCAPES.values()])
    assert protections["possible"] == {}
    assert protections["outside"] == ("bubblewrap" if "bubblewrap" in user else "own")
    escaped = {name: end for name, end in zip(ESCAPES, ends, strict=True) if "ESCAPED" in end["stdout"]}
    assert escaped == {}
    assert Path(here["OPEN_FILE"]).read_text() == "content"


@pytest.mark.parametrize("user", possible_users())
def test_no_program_passes_its_limits(user: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    _, *ends = run(user, [filled(code, {}) for code in TOO_MUCH.values()])
    escaped = {name: end for name, end in zip(TOO_MUCH, ends, strict=True) if "ESCAPED" in end["stdout"]}
    assert escaped == {}
    by_name = dict(zip(TOO_MUCH, ends, strict=True))
    assert by_name["memory of many processes"]["ended"] == "memory"
    left = [one for one in psutil.process_iter(["cmdline"]) if "sandbox/inside" in " ".join(one.info["cmdline"] or ())]
    left = [one for one in left if one.pid not in before]
    assert psutil.wait_procs(left, timeout=10)[1] == []


@pytest.mark.parametrize("user", possible_users())
def test_ordinary_programs_run(user: str) -> None:
    programs = {
        "print(sum(map(int, input().split())))": "7\n",
        "import numpy, sympy\nprint(numpy.ones(3) @ numpy.ones(3), sympy.sqrt(8))": "3.0 2*sqrt(2)\n",
        "import os\nprint(os.listdir('.'), dict(os.environ))": "[] {}\n",
        "open('a', 'w').write('x')\nprint(open('a').read())": "x\n",
        "import zoneinfo\nprint(zoneinfo.ZoneInfo('Europe/Berlin'))": "Europe/Berlin\n",
        "import random, secrets, uuid, threading, decimal, asyncio\nprint(asyncio.run(asyncio.sleep(0, 5)))": "5\n",
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(6)'], capture_output=True).stdout)": (
            "b'6\\n'\n"
        ),
        "import concurrent.futures as f\nwith f.ThreadPoolExecutor(4) as p: print(list(p.map(abs, [-1, 2])))": "[1, 2]\n",
    }
    _, *ends = run(user, [{"code": code, "stdin": "3 4", "limits": {"memory_mb": 2048}} for code in programs])
    assert [end["stdout"] for end in ends] == list(programs.values()), [end["stderr"] for end in ends]


@pytest.mark.parametrize("user", possible_users())
def test_a_missing_protection_is_a_refusal_with_the_remedy(user: str, here: dict[str, str]) -> None:
    program = {"code": "print('ran')"}
    protections, refused, partly, *_ = run(user, [program, {**program, "allow": ["network"]}], *WITHOUT_NAMESPACES)
    for end in (refused, partly):
        assert "not run here" in end["refused"] or "does not start" in end["refused"]
    if "error" in protections:  # root becomes another user, who cannot read an interpreter below /root
        assert user == AS_ROOT
        return
    missing = [name for name in PROTECTIONS if name in protections["possible"]]
    assert "network" in missing
    for name in missing:
        assert name in refused["refused"]
    assert "allow" in refused["refused"]
    requests = [{**program, "allow": missing}, {**filled(ESCAPES["read a file of root"], here), "allow": missing}]
    _, allowed, secret = run(user, requests, *WITHOUT_NAMESPACES)
    assert allowed["stdout"] == "ran\n"
    assert "ESCAPED" not in secret["stdout"]


@pytest.mark.parametrize("user", possible_users())
def test_a_protection_that_is_lost_after_it_was_measured_is_no_verdict(user: str) -> None:
    code = (
        "from tracefactory.sandbox.launch import Limits, SandboxError, Way, launch\n"
        "try:\n    print('ran', launch(Way('own'), {'code': 'print(1)', 'stdio': True}, Limits()))\n"
        "except SandboxError as error:\n    print('refused', error)\n"
    )
    process = [*command(user), *WITHOUT_NAMESPACES, sys.executable, "-c", code]
    done = subprocess.run(process, capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.startswith("refused"), done.stdout
    assert "unshare" in done.stdout


def test_the_program_is_not_root_although_the_interpreter_lies_in_a_folder_of_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("this is about root")
    protections, end = run(AS_ROOT, [{"code": "import os\nprint(os.getuid(), os.getgid(), os.getgroups())"}])
    assert protections["possible"] == {}
    user, group, groups = end["stdout"].split()
    assert int(user) > 60_000
    assert int(group) > 60_000
    assert groups == "[]"


@pytest.mark.parametrize("user", possible_users())
def test_an_interpreter_below_the_folder_for_temporary_files_is_not_hidden(user: str) -> None:
    """The writable folder is at /tmp, where environments of tests and of notebooks lie."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        venv.create(folder, symlinks=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "only_here.py").write_text("value = 7")
        (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
        program = {"code": "import only_here\nprint(only_here.value)\nopen('x', 'w').close()"}
        process = [*command(user), str(folder / "bin/python"), "-m", "tests.attacks.driver"]
        done = subprocess.run(process, input=json.dumps([program]), capture_output=True, text=True, cwd="/", check=True)
    protections, end = json.loads(done.stdout)
    assert protections["possible"] == {}
    assert end["stdout"] == "7\n", end["stderr"]


def test_every_protection_can_be_allowed_by_its_name() -> None:
    assert get_args(Protection) == tuple(PROTECTIONS)


def test_the_minimal_root_shows_no_folder_of_the_project() -> None:
    from tracefactory.sandbox.root import is_below, minimal_root

    shown = minimal_root().paths
    assert not any(is_below(str(PROJECT), path) for path in shown)
    assert not any(is_below(str(Path.home()), path) for path in shown)
    assert not any(path in ("/", "/usr", "/etc", "/home", "/tmp", "/var", "/proc", "/sys", "/dev") for path in shown)
