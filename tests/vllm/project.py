"""The shipped main job with its teachers behind vLLM, in a project of its own; and who runs on its behalf."""

import shutil
from pathlib import Path

import psutil
import yaml

from tests.e2e.conftest import Project

ROOT = Path(__file__).parents[2]


def main_job(folder: Path, model: dict, *, size: int, executor: str = "ray") -> Project:
    """Write the project; both styles ask one teacher, so that there is one server to start."""
    for name in ("prompts", "filters"):
        shutil.copytree(ROOT / name, folder / name)
    pipeline = yaml.safe_load((ROOT / "pipelines" / "mix_distill.yaml").read_text())
    pipeline.pop("profiles", None)
    pipeline["models"] = {"teacher": model}
    pipeline["run"] = {"executor": executor, "workers": 1}
    for stage in pipeline["stages"]:
        if stage["id"] == "problems":
            stage["with"]["size"] = size
        if "sample" in stage:
            stage["with"]["model"] = "teacher"
    path = folder / "pipelines" / "job.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return Project(folder, path)


def family(pid: int) -> list[psutil.Process]:
    """Every process that a process has started, and theirs."""
    return psutil.Process(pid).children(recursive=True)


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; its number may have been given to another since."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
