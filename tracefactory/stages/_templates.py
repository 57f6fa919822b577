"""What the chat template of a model does to the prompt of a stage, as mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.model import ChatRequest, ModelSpec
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.refs import find_refs
from tracefactory.serving.templates import template_at_hand
from tracefactory.text.chat_templates import ChatTemplate
from tracefactory.text.prompt_rendering import Continues, prompt_faults

_PREFILLED = ChatRequest(model_identity={}, messages=({"role": "user"}, {"role": "assistant"}))


def prompt_mistakes(
    stage: StageSpec[Any], pipeline: Pipeline, prompt: str, model: str, *, student: bool = False
) -> Iterator[Mistake]:
    """Yield what a model's chat template does to a prompt with a system message, worked examples or a prefill.

    A template that is not on this machine is not looked at, except for a student's, which is loaded with its tokenizer.

    Args:
        stage: the stage.
        pipeline: its pipeline.
        prompt: the name of the prompt.
        model: the name of the model that is given the prompt.
        student: whether the model is the student of a decoder, which gets a prefill by `prompt_rendering.continued`.

    Raises:
        UserError: when the checkpoint cannot be read.
    """
    used, spec = pipeline.prompts[prompt], pipeline.models[model]
    if not _is_shaped(used):
        return
    template = _template(spec, Environment(root=pipeline.project.root), student=student)
    if template is None:
        return
    continues = Continues.JOINED
    if not student and spec.body(_PREFILLED).get("continue_final_message"):
        continues = Continues.RENDERED
    elif not student and spec.echoes_prefill:
        continues = Continues.APPENDED
    for fault in prompt_faults(template, used, continues):
        message = f"stage {stage.id!r}: prompt {prompt!r} under the chat template of {model!r}: {fault.detail}"
        yield Mistake(f"{message} ({fault.reason})", stage.file, stage.line, fault.remedy)


def unread_templates(pipeline: Pipeline) -> list[str]:
    """Return the models whose chat template is not on this machine, although it decides what a prompt becomes.

    These are the models of stages whose prompts have a system message, worked examples or a prefill.

    Args:
        pipeline: the pipeline.

    Raises:
        UserError: when a checkpoint cannot be read.
    """
    environment, found = Environment(root=pipeline.project.root), set()
    for stage in pipeline.stages:
        refs = find_refs(type(stage.params), stage.params)
        prompts = [pipeline.prompts[ref.name] for ref in refs if ref.kind == "prompt"]
        if any(_is_shaped(prompt) for prompt in prompts) and not _is_decoded(stage):
            specs = {name: pipeline.models[name] for name in stage.model_names}
            found |= {name for name, spec in specs.items() if _template(spec, environment, student=False) is None}
    return sorted(found)


def _is_shaped(prompt: Any) -> bool:
    """Tell whether a chat template can change more of a prompt than the question."""
    return bool(prompt.system or prompt.examples or prompt.prefill)


def _is_decoded(stage: StageSpec[Any]) -> bool:
    """Tell whether two models continue one rendering by the student's template, which is loaded with its tokenizer."""
    return all(name in type(stage.params).model_fields for name in ("teacher", "student"))


def _template(spec: ModelSpec, environment: Environment, *, student: bool) -> ChatTemplate | None:
    checkpoint = spec.checkpoint(environment)
    if checkpoint is None:
        return None
    found = template_at_hand(checkpoint)
    if found is None and student:
        from tracefactory.students.tokens import renderer  # imports torch

        return renderer(checkpoint).template
    return found
