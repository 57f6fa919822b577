"""Check the nodes of a Ray cluster before work is sent there: versions, packages, and the state folder.

Every node must see the same state folder at the same path, with file locks that hold between nodes: requests that are
in flight, and money that is reserved, are claimed with such locks.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import platform
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tracefactory import __version__
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Pipeline

LOOK_S = 120.0
"""Seconds for the answers of all nodes; a node may have to install what `runtime_env` names first."""
EXTRA = {"torch": "student", "transformers": "student", "reasoning_gym": "gym"}
"""The extra of this package that a package belongs to."""


def packages_of(pipeline: Pipeline) -> list[str]:
    """Return the optional packages that workers import for the models and the verifiers of a pipeline."""
    used = {name for stage in pipeline.stages for name in stage.model_names}
    found = ["torch", "transformers"] if any(pipeline.models[name].in_process for name in used) else []
    return found + ["reasoning_gym"] * any(stage.op == "source:reasoning_gym" for stage in pipeline.stages)


def check_this_machine(pipeline: Pipeline) -> None:
    """Find missing packages before a cluster is started on this machine.

    Raises:
        UserError: when one is missing.
    """
    missing = [name for name in packages_of(pipeline) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(_install(f"workers need {', '.join(missing)}", missing))


def check_nodes(root: Path, packages: Collection[str]) -> None:
    """Check every node of the cluster.

    Args:
        root: the state folder.
        packages: the optional packages that workers import.

    Raises:
        UserError: with a line for everything that has to be changed on a node.
    """
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f"probe-{secrets.token_hex(16)}"
    probe.write_text(probe.name)
    try:
        with probe.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            seen = _ask_nodes(probe, packages)
            mistakes = [one for node, found in seen.items() for one in _mistakes(node, found, probe)]
    finally:
        for path in root.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)
    if mistakes:
        raise UserError(mistakes)


def _ask_nodes(probe: Path, packages: Collection[str]) -> dict[str, Mapping[str, Any] | str]:
    """Return what each node has found, or what went wrong there."""
    task = ray.remote(num_cpus=0, max_retries=0)(_looker())
    names: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = task.options(scheduling_strategy=there).remote(str(probe), list(packages), node["NodeID"])
            names[answer] = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
    done, _ = ray.wait([*names], num_returns=len(names), timeout=LOOK_S)
    found: dict[str, Mapping[str, Any] | str] = dict.fromkeys(names.values(), f"no answer within {LOOK_S:.0f} s")
    for answer in done:
        try:
            found[names[answer]] = ray.get(answer)
        except RayError as error:
            found[names[answer]] = " ".join(str(error).split())[:500]
    return found


def _looker() -> Callable[[str, list[str], str], dict[str, Any]]:
    """Return the function that nodes run. A nested function travels by value: the package may be missing there."""

    def look(probe: str, packages: list[str], node: str) -> dict[str, Any]:
        import fcntl
        import importlib.metadata
        import importlib.util
        import os
        import platform
        import sys

        found: dict[str, Any] = {
            "python": platform.python_version(),
            "ray": importlib.metadata.version("ray"),
            "missing": [name for name in packages if importlib.util.find_spec(name) is None],
            "where": sys.executable,
            "answer": f"{probe}-{node}",
            "tracefactory": "",
            "fault": "",
        }
        try:
            import tracefactory
            import tracefactory.engine.worker  # with everything that it needs

            found["tracefactory"] = tracefactory.__version__
        except ImportError as error:
            found["fault"] = str(error)
        try:
            with open(probe) as file:
                found["token"] = file.read()
            with open(found["answer"], "w") as file:
                file.write(node)
            with open(probe, "r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found["locks"] = "they do not hold between nodes"
                except BlockingIOError:
                    found["locks"] = ""
        except OSError as error:
            found["files"] = f"{os.path.dirname(probe)}: {error.strerror}"
        return found

    return look


def _mistakes(node: str, found: Mapping[str, Any] | str, probe: Path) -> list[Mistake]:
    if isinstance(found, str):
        return [Mistake(f"{node} cannot be used: {found}")]
    mistakes: list[Mistake] = []
    own = (("python", platform.python_version()), ("ray", importlib.metadata.version("ray")))
    for name, version in own:
        if found[name].split(".")[:2] != version.split(".")[:2]:
            mistakes.append(
                Mistake(f"{node} has {name} {found[name]}, but this process has {version}", hint=found["where"])
            )
    if found["fault"]:
        how = f"pip install tracefactory=={__version__} for {found['where']}"
        mistakes.append(Mistake(f"{node} cannot import tracefactory: {found['fault']}", hint=how))
    elif found["tracefactory"] != __version__:
        how = f"pip install tracefactory=={__version__} there, or `run: {{send_package: true}}` sends this code to it"
        mistakes.append(Mistake(f"{node} has tracefactory {found['tracefactory']}, not {__version__}", hint=how))
    if found["missing"]:
        mistakes.append(_install(f"{node} has no {', '.join(found['missing'])}", found["missing"]))
    if fault := _folder_fault(found, probe):
        how = "every node must mount the same folder at the same path: move the project to a shared file system"
        mistakes.append(Mistake(f"{node} does not see the state folder {probe.parent}: {fault}", hint=how))
    elif found["locks"]:
        how = "mount it with locks for all nodes (NFS 4, or Lustre with the option flock)"
        mistakes.append(Mistake(f"{node}: file locks in {probe.parent}: {found['locks']}", hint=how))
    return mistakes


def _folder_fault(found: Mapping[str, Any], probe: Path) -> str:
    if "files" in found:
        return str(found["files"])
    if found["token"] != probe.name:
        return "the file that was written here has another content there"
    return "" if Path(found["answer"]).is_file() else "what it writes there does not appear here"


def _install(what: str, missing: Collection[str]) -> Mistake:
    extras = sorted({EXTRA[name] for name in missing})
    return Mistake(what, hint=f"pip install 'tracefactory[{','.join(extras)}]'")
