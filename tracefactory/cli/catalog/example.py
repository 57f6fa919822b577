"""The columns that an operation declares, found with an example stage, because they depend on parameters."""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union

from pydantic import BaseModel

from tracefactory.core.columns import Column
from tracefactory.core.model import MODELS, ModelSpec
from tracefactory.core.pipeline import Pipeline, Project, RunOptions, StageSpec
from tracefactory.core.stage import STAGES

_TEACHER = "<teacher>"


def example_columns(op: str) -> Sequence[Column]:
    """Return the columns that an operation adds, with placeholders such as `<student>` for names of models.

    Optional parameters are set, because some of them add columns. The result is empty for a plugin whose columns cannot
    be found with an example.
    """
    chat = STAGES.get("sample:chat").Params
    sampled = _stage("sampled", "sample:chat", _example(chat).model_copy(update={"model": _TEACHER}))
    stage = _stage("example", op, _example(STAGES.get(op).Params), ("sampled",))
    nowhere = Path()
    pipeline = Pipeline.model_construct(
        name="example",
        version="1",
        models=_AnyModel(),
        stages=(sampled, stage),
        run=RunOptions(),
        file=nowhere,
        project=Project(root=nowhere, state_dir=nowhere),
        prompts={},
        filters={},
    )
    try:
        return STAGES.get(op).columns(stage, pipeline)
    except Exception:  # noqa: BLE001  # columns of a plugin may depend on anything
        return ()


class _AnyModel(Mapping[str, ModelSpec]):
    """A mapping with a model under every name, of a kind that has all columns."""

    def __getitem__(self, name: str) -> ModelSpec:
        return MODELS.get("transformers").model_construct(use="transformers", model=name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _stage(stage_id: str, op: str, params: BaseModel, inputs: tuple[str, ...] = ()) -> StageSpec[Any]:
    verb, _, name = op.partition(":")
    return StageSpec[Any].model_construct(
        id=stage_id, verb=verb, name=name, inputs=inputs, params=params, file=Path(), line=1
    )


def _example(model: type[BaseModel]) -> BaseModel:
    """Return an unvalidated instance with a value for every field."""
    values = {}
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        values[name] = _value(field.annotation, name) if default is None else default
    return model.model_construct(**values)


def _value(annotation: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, UnionType):
        return _value(next(one for one in arguments if one is not type(None)), name)
    if origin is typing.Annotated:
        return _value(arguments[0], name)
    if origin is Literal:
        return arguments[0]
    if not isinstance(annotation, type):
        return ()
    if issubclass(annotation, BaseModel):
        return _example(annotation)
    if issubclass(annotation, enum.Enum):
        return next(iter(annotation))
    if issubclass(annotation, str):
        return f"<{name}>"
    return annotation(1) if issubclass(annotation, (int, float)) else ()
