"""A Ray cluster as users start one: a head and workers by the command line, each with its own home and folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.conftest import kill_tree

RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Node:
    """One `ray start --block`, which owns the processes of the node."""

    process: subprocess.Popen[bytes]
    home: Path

    def kill(self) -> None:
        """kill -9 of everything on the node, as when its machine is taken away."""
        kill_tree(self.process.pid)
        self.process.wait()


@dataclass
class Cluster:
    """A cluster whose nodes share one token, as they must; `close` ends it."""

    token: str | None = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[Node] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rc")))  # sockets need a short path

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start("--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder / 't'}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment without a trace of Ray, except what is given."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**clean, "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0", **more}

    def start(self, *arguments: str, around: tuple[str, ...] = (), cpus: int = 1, **more: str) -> Node:
        """Start a node and wait until it runs.

        Args:
            arguments: of `ray start`.
            around: a command that the node is started by.
            cpus: its CPUs.
            more: environment variables.
        """
        home = self.folder / f"home-{len(self.nodes)}"
        home.mkdir()
        log = home / "log"
        if self.token is None:
            more["RAY_AUTH_MODE"] = "disabled"
        else:
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text(self.token)
            more.setdefault("RAY_AUTH_MODE", "token")
        command = [*around, RAY, "start", "--block", *arguments, f"--num-cpus={cpus}", "--object-store-memory=80000000"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=home, stdout=out, stderr=out, env=self.environment(HOME=str(home), **more)
            )
        self.nodes.append(Node(process, home))
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        return self.nodes[-1]

    def join(self, **more: Any) -> Node:
        """Start a worker node."""
        return self.start(f"--address={self.address}", **more)

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
