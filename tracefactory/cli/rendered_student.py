"""Find the student that `tracefactory render` renders for: of the pipeline, of files, or a chat template alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tracefactory.config import load_pipeline
from tracefactory.config.project import pipeline_files
from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import Pipeline, Project
from tracefactory.models.local import PACKAGED, packaged_weights

if TYPE_CHECKING:
    from tracefactory.students.render import Renderer

_PACKAGED_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Trained:
    """The student: its name, its renderer, the form of its reasoning, and a remark on its tokens."""

    name: str
    renderer: Renderer
    form: Literal["inline", "field"] = "inline"
    note: str = ""


def find_student(given: str | None, dataset: str, project: Project | None) -> Trained:
    """Return the student to render for.

    Args:
        given: a model of the project's pipelines, a folder, a GGUF file, packaged:NAME or a chat template; None for the
            student of the pipeline that makes the dataset.
        dataset: the name of the dataset.
        project: the project; None outside of one.

    Raises:
        UserError: when there is none, or it cannot be loaded.
    """
    try:
        from tracefactory.students.render import Renderer
        from tracefactory.students.tokens import renderer
    except ModuleNotFoundError as error:
        raise UserError(f"rendering needs {error.name}: pip install 'tracefactory[student]'") from error
    if given is not None and given.endswith((".jinja", ".j2")):
        own = renderer(_checkpoint(PACKAGED + _PACKAGED_MODEL)).tokenizer
        tokenizer = copy.copy(own)
        tokenizer.chat_template = _read(Path(given))
        return Trained(given, Renderer(tokenizer, "inline"), note=f" (counted with the tokenizer of {_PACKAGED_MODEL})")
    if given is not None and (given.startswith(PACKAGED) or local_path(given) is not None or Path(given).is_dir()):
        return Trained(given, renderer(_checkpoint(given)))
    name, pipeline = _declared(given, dataset, project)
    spec = pipeline.models[name].require_checkpoint(Environment(root=pipeline.project.root))
    return Trained(name, renderer(spec), spec.reasoning)


def _checkpoint(given: str) -> Checkpoint:
    path = packaged_weights(given.removeprefix(PACKAGED)) if given.startswith(PACKAGED) else Path(given).expanduser()
    return Checkpoint(model=str(path.resolve()))


def _read(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"--student: there is no chat template {file}")
    return file.read_text(encoding="utf-8")


def _declared(given: str | None, dataset: str, project: Project | None) -> tuple[str, Pipeline]:
    """Return the name of a student and the pipeline that declares it; that of the dataset has priority."""
    names: set[str] = set()
    broken: list[Mistake] = []
    for file in [] if project is None else pipeline_files(project):
        try:
            pipeline = load_pipeline(file)
        except UserError as error:
            broken += error.mistakes
            continue
        makes = {pipeline.name, *(str(getattr(one.params, "name", None)) for one in pipeline.stages)}
        wanted = [getattr(one.params, "student", None) for one in reversed(pipeline.stages)]
        name = given if given is not None else next((one for one in wanted if one in pipeline.models), None)
        if name in pipeline.models and (given is not None or dataset in makes):
            return str(name), pipeline
        names |= pipeline.models.keys()
    if given is None:
        hint = "name one: a model of the pipeline, a folder, a GGUF file, packaged:NAME or a chat template (.jinja)"
        raise UserError(Mistake(f"--student: no stage of the pipeline of {dataset} names a student", hint=hint))
    message = f"--student: no pipeline of the project has a model {given!r}, and there is no such file"
    raise UserError([Mistake(message, hint=nearest(given, names)), *broken])
