"""`tracefactory deploy`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from tracefactory import __version__
from tracefactory.config import load_pipeline
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import write_text
from tracefactory.core.pipeline import Pipeline

_FOLDER = Path(__file__).parents[1] / "deploy"
_NAMED = re.compile(r"env:([A-Za-z_]\w*)")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./+-]*")


class Target(StrEnum):
    """Where a pipeline can be started, and the image for it."""

    SLURM = "slurm"
    KUBERAY = "kuberay"
    SKYPILOT = "skypilot"
    CONTAINER = "container"


_FILES = {
    Target.SLURM: "slurm.sbatch",
    Target.KUBERAY: "kuberay.yaml",
    Target.SKYPILOT: "skypilot.yaml",
    Target.CONTAINER: "Containerfile",
}


class _File(Template):
    """A file with values to fill in as `@@{name}`: `$` belongs to shells."""

    delimiter = "@@"


def deploy(
    target: Annotated[Target, typer.Argument(show_default=False)],
    pipeline: Annotated[Path, typer.Argument(help="The pipeline that it runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The folder to write to; deploy/ of the project by default.")] = None,
    image: Annotated[str, typer.Option(help="The name of the image.")] = f"tracefactory:{__version__}",
) -> None:
    """Write a file that starts a pipeline somewhere else, and starts it again after a preemption."""
    loaded = load_pipeline(pipeline, environ=_environ(pipeline))
    _check(loaded, image)
    folder = loaded.project.root / "deploy" if out is None else out
    file = folder / _FILES[target]
    if file.exists():
        raise UserError(Mistake(f"{file} exists", hint="delete it, or choose another folder with --out"))
    try:
        shown = file.resolve().relative_to(loaded.project.root).as_posix()
    except ValueError:
        shown = file.name
    write_text(file, filled(target, loaded, file=shown if _PLAIN_PATH.fullmatch(shown) else file.name, image=image))
    print(file)


def filled(target: Target, pipeline: Pipeline, *, file: str, image: str) -> str:
    """Return the file of a target.

    Args:
        target: where the pipeline is run.
        pipeline: the pipeline.
        file: the name of the file in its own comments.
        image: the name of the container image.
    """
    variables = pipeline.variables
    values: Mapping[str, str] = {
        "pipeline": pipeline.written.file,
        "name": _label(pipeline.name),
        "version": __version__,
        "ray": version("ray"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "file": file,
        "image": image,
        "variables": ", ".join(variables) or "none",
        "options": "".join(f" --secret {name}" for name in variables),
        "secrets": "secrets:\n" + "".join(f"  {name}: null\n" for name in variables) if variables else "",
    }
    return _File((_FOLDER / _FILES[target]).read_text(encoding="utf-8")).substitute(values)


def _check(pipeline: Pipeline, image: str) -> None:
    """Raise UserError for names that cannot be written into shell scripts and YAML as they are."""
    mistakes = []
    if not _PLAIN_PATH.fullmatch(pipeline.written.file):
        what = "its name goes into shell scripts: letters, digits and ._+-/ only"
        mistakes.append(Mistake(f"{pipeline.written.file!r}: {what}"))
    if not _IMAGE.fullmatch(image):
        mistakes.append(
            Mistake(f"--image: {image!r} cannot be the name of an image", hint="as in registry.org/name:tag")
        )
    if mistakes:
        raise UserError(mistakes)


def _label(name: str) -> str:
    """Return a name as Kubernetes takes it: at most 40 small letters, digits and dashes, a letter first."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return found if found[:1].isalpha() else f"run-{found}".strip("-")


def _environ(file: Path) -> Mapping[str, str]:
    """Return the environment, with the variables that a pipeline names: they are set where it is run."""
    named = _NAMED.findall(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else []
    return {**dict.fromkeys(named, "http://set.where.it.runs"), **os.environ}
