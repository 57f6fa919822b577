"""A project on disk: the folders that hold its policy, and where its state and its datasets go."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Project

FOLDERS = ("pipelines", "prompts", "filters")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def find_project(path: Path, environ: Mapping[str, str] = os.environ) -> Project:
    """Return the project that a pipeline file or a folder belongs to: the nearest folder above that holds pipelines/.

    The state is kept in `.tracefactory` there, or where TRACEFACTORY_HOME says.

    Raises:
        UserError: when `path` does not exist or is in no project.
    """
    if not path.exists():
        raise UserError(_not_there(path))
    absolute = path.resolve()
    for folder in (absolute, *absolute.parents):
        if (folder / "pipelines").is_dir():
            home = environ.get("TRACEFACTORY_HOME")
            return Project(
                root=folder, state_dir=Path(home).expanduser().resolve() if home else folder / ".tracefactory"
            )
    raise UserError(
        Mistake(
            f"{path} is in no project: neither its folder nor one above it holds a folder pipelines/",
            hint="`tracefactory init my-project` makes a project",
        )
    )


def pipeline_files(project: Project) -> list[Path]:
    """Return the pipeline files of a project."""
    return sorted(file for file in project.pipelines.iterdir() if file.suffix in (".yaml", ".yml"))


def starter_dir() -> Path:
    """Return the folder that holds the project everyone starts from.

    In an installed wheel it is package data; in a checkout of the repository it is the repository itself.

    Raises:
        FileNotFoundError: when there is neither, so that the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "starter", package.parent):
        if (folder / "pipelines").is_dir():
            return folder
    raise FileNotFoundError(f"no starter project beside {package}: the installation is incomplete")


def init_project(target: Path) -> list[Path]:
    """Copy the starter project to `target`, whole or not at all, and return the files written, relative to it.

    Raises:
        UserError: when `target` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(Mistake(f"{target} exists and is not an empty folder", hint="name a new one"))
    target.parent.mkdir(parents=True, exist_ok=True)
    starter = starter_dir()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        draft = Path(temporary) / "project"
        draft.mkdir()
        for name in FOLDERS:
            if (starter / name).is_dir():
                shutil.copytree(starter / name, draft / name, ignore=_NOT_COPIED)
        written = sorted(file.relative_to(draft) for file in draft.rglob("*") if file.is_file())
        draft.replace(target)
    return written


def _not_there(path: Path) -> Mistake:
    beside = path.parent
    others = sorted(file.name for file in beside.glob("*.y*ml")) if beside.is_dir() else []
    hint = f"there are: {', '.join(others[:24])}" if others else None
    return Mistake(f"{path} does not exist", hint=hint)
