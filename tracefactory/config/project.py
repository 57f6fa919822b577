"""A project on disk: its folders, and the starter project that new projects are copied from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_text
from tracefactory.core.pipeline import Project
from tracefactory.store.shared.cloud import checked_url

FOLDERS = ("pipelines", "prompts", "filters")
_GITIGNORE = """\
# Paid completions and computed stages: keep a copy of .tracefactory/requests, but not in git.
/.tracefactory/
# Releases, which `tracefactory publish` pushes to the Hub.
/out/
__pycache__/
"""
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def find_project(path: Path, environ: Mapping[str, str] = os.environ) -> Project:
    """Return the project of a pipeline file or folder: the nearest folder, here or above, that contains pipelines/.

    Its state is in `.tracefactory`, or in the folder that the environment variable TRACEFACTORY_HOME names. With the
    URL of an object store in TRACEFACTORY_SHARED, this state is shared with other machines.

    Args:
        path: a file or folder.
        environ: the environment variables.

    Raises:
        UserError: when `path` does not exist or is not in a project, or a variable names no state.
    """
    if not path.exists():
        others = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"the folder has: {', '.join(others[:24])}" if others else None
        raise UserError(Mistake(f"{path} does not exist", hint=hint))
    absolute = path.resolve()
    for folder in (absolute, *absolute.parents):
        if (folder / "pipelines").is_dir():
            return Project(root=folder, state_dir=_state_dir(folder, environ), shared=_shared(environ))
    raise UserError(
        Mistake(
            f"{path} is in no project: neither its folder nor one above it contains a folder pipelines/",
            hint="`tracefactory init my-project` makes a project",
        )
    )


def _state_dir(project: Path, environ: Mapping[str, str]) -> Path:
    home = environ.get("TRACEFACTORY_HOME")
    if home and "://" in home:
        raise UserError(
            Mistake(
                f"TRACEFACTORY_HOME={home} is a URL, and the state of a machine is a folder",
                hint="TRACEFACTORY_SHARED is the object store that machines share",
            )
        )
    return Path(home).expanduser().resolve() if home else project / ".tracefactory"


def _shared(environ: Mapping[str, str]) -> str:
    url = environ.get("TRACEFACTORY_SHARED", "")
    return checked_url(url).rstrip("/") if url else ""


def find_optional_project(folder: Path) -> Project | None:
    """Return the project of a folder; None if `folder` is the working folder and not in a project.

    Args:
        folder: a folder of a project; `Path()` is the working folder.

    Raises:
        UserError: when another folder than the working folder does not exist or is not in a project.
    """
    try:
        return find_project(folder)
    except UserError:
        if folder != Path():
            raise
        return None


def pipeline_files(project: Project) -> list[Path]:
    """Return the pipeline files of a project."""
    return sorted(file for file in project.pipelines.iterdir() if file.suffix in (".yaml", ".yml"))


def starter_dir() -> Path:
    """Return the folder of the starter project.

    In an installed wheel it is package data; in a checkout of the repository it is the repository itself.

    Raises:
        FileNotFoundError: when the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "starter", package.parent):
        if (folder / "pipelines").is_dir():
            return folder
    raise FileNotFoundError(f"no starter project next to {package}: the installation is incomplete")


def init_project(target: Path) -> list[Path]:
    """Copy the starter project to a new folder, and return the written files, relative to it.

    The folder appears only when all files have been copied.

    Args:
        target: a folder that is empty or does not exist.

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
        write_text(draft / ".gitignore", _GITIGNORE)
        written = sorted(file.relative_to(draft) for file in draft.rglob("*") if file.is_file())
        draft.replace(target)
    return written
