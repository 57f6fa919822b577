"""Parameters of `prune:` stages: those of the pruner, and what its stage needs to ask a model and to count tokens."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import ModelName, PromptName
from tracefactory.pruning import PRUNERS, Pruner
from tracefactory.pruning.conclusion import Check
from tracefactory.text.steps import Granularity


class AnswerParams(Frozen):
    """How a model answers."""

    max_tokens: int = Field(default=256, ge=1, description="Tokens of one answer.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus sampling, where answers are sampled.")
    seed: int = Field(default=0, ge=0, description="Start of the seeds of sampled answers.")


class AskParams(AnswerParams):
    """How a model is asked."""

    model: ModelName = Field(description="The model that is asked, by its name under models:.")


class TypesParams(AskParams):
    """Have a model type the steps, greedily and some dozens at a time."""

    prompt: PromptName = Field(default="step_types", description="The prompt that shows numbered steps.")
    max_tokens: int = Field(default=1024, ge=1, description="Tokens of one answer.")


class CheckParams(Check, AnswerParams):
    """Have a student conclude from the pruned reasoning, to check that it leads to the answer."""

    model: ModelName | None = Field(
        default=None,
        description="The student that concludes, by its name under models:; null means the model that the pruner asks "
        "to conclude, or else `student:`.",
    )
    prompt: PromptName = Field(default="prune_conclude", description="The prompt that shows the pruned reasoning.")


class Concluder(CheckParams, AskParams):
    """The check of a stage with its student."""

    model: ModelName = Field(description="The student that concludes.")


CHECK = (
    "What is checked of a pruned trace, besides its form and its answer text. conclude: a student concludes to the "
    "right answer from the question and the pruned reasoning, without the sentences that state the answer. answer: "
    "nothing, and the card says so."
)


class StageParams(Frozen):
    """What every `prune:` stage has besides the parameters of its pruner."""

    granularity: Granularity = Field(default=Granularity.STEP, description="How fine the steps are.")
    types: TypesParams | None = Field(
        default=None,
        description="The model that says what each step does; null has rules say it. Neither says whether the answer "
        "needs the step.",
    )
    student: ModelName | None = Field(
        default=None,
        description="The model in whose tokens lengths are counted, by whose stored scores `low_information` goes, and "
        "that scores text for `answer_likelihood`; without it, lengths are the server's count for the parent, shared "
        "out by characters.",
    )
    check: Literal["conclude", "answer"] = Field(default="conclude", description=CHECK)
    conclude: CheckParams | None = Field(default=None, description="How `check: conclude` asks the student.")


class ConcludeParams(AskParams):
    """Have the student answer from the beginning of a reasoning."""

    prompt: PromptName = Field(default="prune_conclude", description="The prompt that shows the beginning.")


class JudgeParams(AskParams):
    """Have the student judge the beginning of a reasoning, and go on with it."""

    prompt: PromptName = Field(default="prune_sufficient", description="The prompt that asks whether it is enough.")
    continue_prompt: PromptName = Field(default="prune_continue", description="The prompt whose prefill it is.")
    continue_max_tokens: int = Field(default=4096, ge=1, description="Tokens of a continuation.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus sampling of a continuation.")


class RewriteParams(AskParams):
    """Have a model write a reasoning anew."""

    prompt: PromptName = Field(default="prune_rewrite", description="The prompt that shows the reasoning.")
    max_tokens: int = Field(default=4096, ge=1, description="Tokens of one rewrite.")
    temperature: float = Field(default=0.6, ge=0, description="Sampling temperature; 0 decodes greedily.")


_BY_NEED: dict[str, type[AskParams]] = {"student": ConcludeParams, "judge": JudgeParams, "writer": RewriteParams}
"""The parameters of the model that a pruner asks, by what the pruner needs."""

# What a prompt may use. The gold answer is in none: a student that is shown it proves nothing.
_VALUES = {
    "student": frozenset({"question", "reasoning"}),
    "writer": frozenset({"question", "reasoning", "answer_text", "words"}),
}


def params_of(name: str) -> type[Frozen]:
    """Return the parameters of `prune: <name>`: one flat model, which is itself the pruner."""
    pruner = PRUNERS.get(name)
    _check_needs(name, pruner)
    asked = tuple(_BY_NEED[need] for need in sorted(pruner.needs) if need in _BY_NEED)
    bases: tuple[type[Frozen], ...] = (StageParams, *asked, pruner)
    # A pruner that keeps what the student concludes from has made the check itself.
    check = Field(default="answer" if pruner.concludes else "conclude", description=CHECK)
    fields: dict[str, Any] = {"check": (Literal["conclude", "answer"], check)}
    return create_model(f"{pruner.__name__}Params", __base__=bases, __doc__=pruner.__doc__, **fields)


def _check_needs(name: str, pruner: type[Pruner]) -> None:
    """Refuse a pruner that asks for a model it does not declare: its stage would have no parameter to name one."""
    source = inspect.getsource(inspect.getmodule(pruner) or pruner)
    for tool, needs in (("student", {"student", "judge"}), ("writer", {"writer"}), ("scorer", {"scorer"})):
        if re.search(rf"\btools\.(\w+_)?{tool}\b", source) and not pruner.needs & needs:
            raise UserError(
                Mistake(
                    f"the pruner {name!r} asks a {tool} and does not say so",
                    Path(inspect.getfile(pruner)),
                    inspect.getsourcelines(pruner)[1],
                    hint=f"add to its class: needs = frozenset({{{sorted(needs)[-1]!r}}})",
                )
            )


def asked_model(params: Any) -> str | None:
    """Return the model that the pruner asks, None where it asks none."""
    found: str | None = getattr(params, "model", None)
    return found


def concluder(params: Any) -> Concluder | None:
    """Return how the student is asked to conclude; None where it is not checked, or where no student is named."""
    if params.check != "conclude":
        return None
    given = params.conclude or CheckParams()
    model = given.model or (asked_model(params) if params.needs & {"student", "judge"} else None) or params.student
    return None if model is None else Concluder(**given.model_dump(exclude={"model"}), model=model)


def prompts_of(params: Any) -> dict[str, str]:
    """Return the names of the prompts that the parameters name, by the parameter."""
    named = {key: getattr(params, key) for key in ("prompt", "continue_prompt") if hasattr(params, key)}
    if params.types is not None:
        named["types"] = params.types.prompt
    asked = concluder(params)
    return named if asked is None else {**named, "conclude": asked.prompt}


def mistakes(params: Any, pipeline: Pipeline) -> Iterator[Mistake]:
    """Yield what is wrong with prompts, models and files, which the types of the parameters cannot say."""
    yield from _wrong_prompts(params, pipeline)
    yield from _wrong_check(params, pipeline)
    if params.student is not None:
        # Weights that are missing, or a variable that is not set, are reported where they are written.
        with suppress(UserError):
            if pipeline.models[params.student].checkpoint(Environment(root=pipeline.project.root)) is None:
                hint = "a model with `use: local` or `use: transformers` has"
                yield Mistake(f"student: {params.student!r} has no tokenizer at hand", hint=hint)
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            yield Mistake("student: counting its tokens needs: pip install 'tracefactory[student]'")


def _wrong_check(params: Any, pipeline: Pipeline) -> Iterator[Mistake]:
    """Yield what is wrong with `check:` and `conclude:`."""
    asked = concluder(params)
    if params.check == "answer":
        if params.conclude is not None:
            yield Mistake("conclude: has no effect with `check: answer`")
    elif asked is None:
        hint = (
            "name a student: conclude: {model: NAME}; or write check: answer, and the card says that the reasoning of "
            "pruned traces was not checked"
        )
        yield Mistake("no student checks that the pruned reasoning leads to the answer", hint=hint)


def _wrong_prompts(params: Any, pipeline: Pipeline) -> Iterator[Mistake]:
    for key, name in prompts_of(params).items():
        prompt = pipeline.prompts[name]
        known = _VALUES["writer" if "writer" in params.needs and key == "prompt" else "student"]
        for variable in sorted(prompt.variables - known):
            given = ", ".join(sorted(known))
            yield Mistake(f"{key}: {name!r} uses {variable!r}, which has no value here", hint=f"there are: {given}")
        continues = prompt.opened_in_prompt and (prompt.prefill or "").rstrip().endswith("{{ reasoning }}")
        if key == "continue_prompt" and not continues:
            yield Mistake(f"{key}: {name!r} must have a prefill that opens <think> and ends in the reasoning")
