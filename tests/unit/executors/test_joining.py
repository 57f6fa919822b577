"""What is said at once where Ray would wait, and who is refused."""

from __future__ import annotations

import fcntl
import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.pipeline import RunOptions
from tracefactory.engine.executors import ray_cluster, ray_nodes


@pytest.fixture
def silent() -> Iterator[str]:
    """A port where something listens that is not Ray."""
    with socket.create_server(("", 0)) as server:  # Ray asks this machine by the address of its network
        yield f"127.0.0.1:{server.getsockname()[1]}"


def join(address: str | None) -> None:
    ray_cluster.connect(RunOptions(ray_address=address))


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", ":", "", "auto:auto"])
def test_an_address_that_cannot_be_joined_is_a_mistake(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="ray_address"):
        join(address)


def test_a_port_where_nothing_listens_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RunError, match=f"no Ray cluster answers at .*:{port}"):
        join(f"127.0.0.1:{port}")


def test_a_server_that_is_not_ray_is_told(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE_S", 0.5)
    with pytest.raises(RunError, match="does not answer as the head of a Ray cluster"):
        join(silent)


@pytest.mark.parametrize(
    ("address", "environment", "cluster"),
    [
        (None, "", False),
        (None, "head:6379", True),
        ("auto", "", True),
        ("head:1", "", True),
        ("local", "head:1", False),
    ],
)
def test_a_ray_job_names_its_cluster_in_the_environment(
    address: str | None, environment: str, cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert ray_cluster.is_cluster(RunOptions(ray_address=address)) is cluster


@pytest.mark.parametrize(("package", "extra"), [("torch", "student"), ("reasoning_gym", "gym")])
def test_a_missing_extra_is_found_before_ray_is_started(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, find = golden.pipeline(), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"need {package} \(pip install 'tracefactory\[{extra}\]'\)"):
        ray_nodes.check_this_machine(pipeline)


def looked(probe: Path, **found: Any) -> list[str]:
    """Return what is said of a node that found what this process finds, except `found`."""
    with probe.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        seen = ray_nodes._looker()(str(probe), [], "node")
    return [str(one) for one in ray_nodes._mistakes("node x", {**seen, **found}, probe)]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe-1"
    path.write_text(path.name)
    return path


def test_a_node_like_this_one_is_right(probe: Path) -> None:
    assert looked(probe) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"python": "3.9.1"}, "node x has python 3.9.1, but this process has "),
        ({"ray": "2.9.0"}, "node x has ray 2.9.0, but this process has "),
        ({"tracefactory": "0.0.1"}, "node x has tracefactory 0.0.1, not "),
        ({"fault": "No module named 'polars'"}, "node x cannot import tracefactory: No module named 'polars'"),
        ({"missing": ["torch"]}, "node x has no torch (pip install 'tracefactory[student]')"),
        ({"token": "other"}, "has another content there"),
        ({"answer": "/nowhere/else"}, "what it writes there does not appear here"),
        ({"files": "/s: No such file or directory"}, "No such file or directory"),
        ({"locks": "they do not hold between nodes"}, "mount it with locks for all nodes"),
    ],
)
def test_what_is_wrong_with_a_node_is_told_with_the_remedy(probe: Path, found: dict[str, Any], told: str) -> None:
    (mistake,) = looked(probe, **found)
    assert told in mistake


def test_a_lock_that_another_node_can_take_does_not_hold(probe: Path) -> None:
    assert ray_nodes._looker()(str(probe), [], "node")["locks"] == "they do not hold between nodes"


def test_a_folder_that_a_node_does_not_have_is_told(tmp_path: Path) -> None:
    found = ray_nodes._looker()(str(tmp_path / "not" / "there"), [], "node")
    assert "No such file" in found["files"]
