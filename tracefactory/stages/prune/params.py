"""Parameters of `prune:` stages: those of the pruner, and what its stage needs to ask a model and to count tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from pydantic import Field, create_model

from tracefactory.config import Pipeline
from tracefactory.core.errors import Mistake
from tracefactory.core.op import ModelName, PromptName
from tracefactory.core.schema import Frozen
from tracefactory.models.transformers import TransformersSpec
from tracefactory.pruning import PRUNERS, Pruner
from tracefactory.stages.prune.student import has_tokenizer
from tracefactory.text.prompts import Prompt
from tracefactory.text.steps import Granularity


class AskParams(Frozen):
    """How a model is asked. `max_tokens` is of one answer; `seed` is the start of the seed of every sampled one."""

    model: ModelName
    max_tokens: int = Field(default=256, ge=1)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = Field(default=0, ge=0)


class TypesParams(AskParams):
    """`prompt` has a model type steps, greedily and some dozens at a time."""

    prompt: PromptName = "step_types"
    max_tokens: int = Field(default=1024, ge=1)


class StageParams(Frozen):
    """`granularity` is how fine the steps are; a model may say what each of them is (`types`), or rules do.

    `student` names the model in whose tokens lengths are counted (`use: local` or `use: transformers`), and whose
    stored scores `low_information` goes by; without it, lengths are the server's count of the parent's completion,
    shared out by characters.
    """

    granularity: Granularity = Granularity.STEP
    types: TypesParams | None = None
    student: ModelName | None = None


class ConcludeParams(AskParams):
    """`prompt` has the student answer from the beginning of a reasoning."""

    prompt: PromptName = "prune_conclude"


class JudgeParams(AskParams):
    """`prompt` has the student judge a beginning, `continue_prompt` go on with it, in `continue_max_tokens`."""

    prompt: PromptName = "prune_sufficient"
    continue_prompt: PromptName = "prune_continue"
    continue_max_tokens: int = Field(default=4096, ge=1)
    top_p: float = Field(default=0.9, gt=0, le=1)


class RewriteParams(AskParams):
    """`prompt` has a model write a reasoning anew at `temperature`."""

    prompt: PromptName = "prune_rewrite"
    max_tokens: int = Field(default=4096, ge=1)
    temperature: float = Field(default=0.6, ge=0)


_OWN: dict[str, type[AskParams]] = {
    "binary_cut": ConcludeParams,
    "sufficient_prefix": JudgeParams,
    "rewrite": RewriteParams,
}
"""How the pruners that ask a model ask it, by the name of the pruner."""

# What a prompt may use. The gold answer is in none: a student that is shown it proves nothing.
_VALUES = {
    "prune_conclude": frozenset({"question", "reasoning"}),
    "prune_rewrite": frozenset({"question", "reasoning", "answer_text", "words"}),
}


def params_of(name: str) -> type[Frozen]:
    """Return the parameters of `prune: <name>`: one flat model, which is itself the pruner."""
    pruner = PRUNERS.get(name)
    own = (_OWN[name],) if name in _OWN else ()
    # The bases are in this order so that the model that is asked comes first: its worker runs the stage.
    bases: tuple[type[Frozen], ...] = (StageParams, *own, pruner)
    return create_model(f"{pruner.__name__}Params", __base__=bases, __doc__=pruner.__doc__)


def prompts_of(params: Frozen) -> dict[str, str]:
    """Return the names of the prompts that the parameters name, by the parameter."""
    named = {key: getattr(params, key) for key in ("prompt", "continue_prompt") if hasattr(params, key)}
    types = params.types if isinstance(params, StageParams) else None
    return named if types is None else {**named, "types": types.prompt}


def mistakes(params: Frozen, pipeline: Pipeline) -> Iterator[Mistake]:
    """Yield what is wrong with prompts, models and files, which the types of the parameters cannot say."""
    yield from _wrong_prompts(params, pipeline)
    student = as_stage(params).student
    if student is not None:
        if not has_tokenizer(pipeline.models[student]):
            hint = "a model with `use: local` or `use: transformers` has"
            yield Mistake(f"student: {student!r} has no tokenizer at hand", hint=hint)
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            yield Mistake("student: counting its tokens needs: pip install 'tracefactory[student]'")
    asking = as_asking(params)
    if asking is not None and isinstance(pipeline.models[asking.model], TransformersSpec):
        yield Mistake(f"model: {asking.model!r} is `use: transformers`, which is not served: use `local` or `vllm`")


def _wrong_prompts(params: Frozen, pipeline: Pipeline) -> Iterator[Mistake]:
    for key, name in prompts_of(params).items():
        prompt = pipeline.prompts[name]
        known = _VALUES["prune_rewrite" if isinstance(params, RewriteParams) else "prune_conclude"]
        for variable in sorted(prompt.variables - known):
            given = ", ".join(sorted(known))
            yield Mistake(f"{key}: {name!r} uses {variable!r}, which has no value here", hint=f"there are: {given}")
        if key == "continue_prompt" and not _continues(prompt):
            yield Mistake(f"{key}: {name!r} must have a prefill that opens <think> and ends in the reasoning")


def _continues(prompt: Prompt) -> bool:
    return prompt.opened_in_prompt and (prompt.prefill or "").rstrip().endswith("{{ reasoning }}")


# One object is all of these; each function names the side of it that its caller needs.


def as_pruner(params: Frozen) -> Pruner:
    """Return the parameters of a prune stage as the pruner they are."""
    assert isinstance(params, Pruner)
    return params


def as_stage(params: Frozen) -> StageParams:
    """Return the parameters of a prune stage as those of every prune stage."""
    assert isinstance(params, StageParams)
    return params


def as_asking(params: Frozen) -> AskParams | None:
    """Return the parameters of a prune stage as what a model is asked with, None where none is."""
    return params if isinstance(params, AskParams) else None
