"""Check the section `teach:` of a pipeline file against its models and stages."""

from __future__ import annotations

from collections.abc import Iterator

from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Kind
from tracefactory.core.stage import kinds_of
from tracefactory.core.yamlfile import Node


def teach_mistakes(pipeline: Pipeline, root: Node) -> Iterator[Mistake]:
    """Yield what is wrong with the section, at its lines; nothing where a file has none.

    Args:
        pipeline: the pipeline of the valid parts of the file.
        root: the file.
    """
    teach = pipeline.teach
    if teach is None:
        return
    fits = {"student": [name for name, spec in pipeline.models.items() if spec.in_process]}
    fits["answers"] = [name for name, spec in pipeline.models.items() if spec.takes_weights]
    kinds = {
        "student": "`use: transformers` model to train",
        "answers": "`use: transformers`, `use: local` or `use: vllm` model",
    }
    for key, name in (("student", teach.student), ("answers", teach.answers)):
        if name not in fits[key]:
            hint = nearest(name, fits[key]) or (f"one of: {', '.join(fits[key])}" if fits[key] else None)
            found = root.find(("teach", key)).position
            yield found.mistake(f"teach: {key}: {name!r} is no {kinds[key]}", hint)
    place = root.find(("teach",)).position
    if teach.answers in pipeline.models and not any(teach.answers in one.model_names for one in pipeline.stages):
        hint = f"add a stage: sample: chat, with: {{model: {teach.answers}, ...}}"
        yield place.mistake(f"teach: no stage asks {teach.answers!r}, whose place the trained students take", hint)
    last = pipeline.stages[-1] if pipeline.stages else None
    if last is not None and (last.verb != "verify" or kinds_of(pipeline)[last.id] is not Kind.TRACES):
        what = f"stage {last.id!r}: the last stage of a file with `teach:` verifies the answers"
        yield Mistake(what, last.file, last.line, "end with verify: auto")
