"""Where the sandbox puts a program: its user and its control group, on hosts of several kinds."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from tracefactory.sandbox import cgroups, launch
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.run import run_program


def host(module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Let a module read the files of another host, which lie under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(module, "Path", lambda path: root / str(path).lstrip("/"))


@pytest.mark.parametrize(("mounted", "own"), [("/", "/user/me"), ("/box", "/box/user/me")], ids=["host", "container"])
def test_groups_are_made_where_memory_and_processes_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str, own: str
) -> None:
    above = tmp_path / "sys/fs/cgroup/user"
    files = {
        "proc/self/cgroup": f"0::{own}\n",
        "proc/self/mountinfo": f"30 24 0:26 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/user/cgroup.subtree_control": "cpu memory pids\n",
        "sys/fs/cgroup/user/me/cgroup.subtree_control": "memory\n",
    }
    host(cgroups, tmp_path, monkeypatch, files)
    assert [(one.memory, one.processes, one.version) for one in cgroups._candidates()] == [(above, above, 2)]
    (above / "me" / "cgroup.subtree_control").write_text("memory pids\n")
    assert [one.memory for one in cgroups._candidates()] == [above, above / "me"]


@pytest.mark.parametrize(
    ("effective", "mapped", "users"),
    [
        (0, "0 0 4294967295", range(1_000_000_000, 2_000_000_000)),
        (0, "0 100000 65536", range(61184, 65520)),  # a container, whose other users do not exist
        (1000, "0 0 4294967295", None),
    ],
)
def test_a_program_of_root_runs_as_a_user_that_nothing_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effective: int, mapped: str, users: range | None
) -> None:
    host(launch, tmp_path, monkeypatch, {"proc/self/uid_map": f"{mapped}\n"})
    monkeypatch.setattr(os, "geteuid", lambda: effective)
    user = launch._user()
    assert user is None if users is None else user in users


def test_a_program_runs_where_no_control_group_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "group", lambda memory, processes: None)
    assert run_program("print(6 * 7)", "", Limits(seconds=5, wall=30, memory_mb=256)).stdout.strip() == "42"
