"""Open two models that write traces together.

A decoder decides which model writes next (`decoder.py`). Three engines implement decoders and give the same tokens:
`engine.py` for both models in this process (`in_process.py` answers requests with it), `served.py` for both behind vLLM
servers, and `fused.py` for both in one vLLM server that runs a plugin.
"""

from __future__ import annotations

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import ModelSpec
from tracefactory.core.stage import Services
from tracefactory.decoding.model_pair import ModelPair
from tracefactory.decoding.vllm_specs import DraftingSpec, FusedSpec


def check_pair(teacher: tuple[str, ModelSpec], student: tuple[str, ModelSpec]) -> list[Mistake]:
    """Return the mistakes in the specs of two models that prevent them from decoding together.

    Args:
        teacher: the teacher's name and spec.
        student: the student's name and spec.
    """
    mistakes = []
    for name, spec in dict((teacher, student)).items():
        if not spec.exchanges_tokens:
            problem = f"model {name!r} (`use: {spec.use}`) cannot exchange tokens"
            fix = "models that decode together must both be `use: transformers` (in this process) or both `use: vllm`"
            hint = "for a vLLM server that is already running, set `use: openai` with a `tokenizer:`"
            mistakes.append(Mistake(f"{problem}: {fix}", hint=hint))
    inside = [name for name, spec in (teacher, student) if spec.in_process]
    if not mistakes and len(inside) == 1:
        served = student[0] if inside[0] == teacher[0] else teacher[0]
        problem = f"{inside[0]!r} is in this process (`use: transformers`) and {served!r} is served"
        mistakes.append(Mistake(f"{problem}; models that decode together must be both in this process or both served"))
    return mistakes


def check_one_server(teacher: tuple[str, ModelSpec], student: tuple[str, ModelSpec]) -> list[Mistake]:
    """Return the mistakes in the specs of two models that prevent them from decoding inside one vLLM server.

    Args:
        teacher: the teacher's name and spec.
        student: the student's name and spec.
    """
    return [
        Mistake(f"model {name!r} is `use: {spec.use}`; `servers: one` requires two models with `use: vllm`")
        for name, spec in dict((teacher, student)).items()
        if not spec.runs_plugins
    ]


def open_pair(teacher: str, student: str, services: Services, *, one_server: bool = False) -> ModelPair:
    """Return a pair of models. Models are loaded and servers started at the first request.

    Args:
        teacher: the name of the teacher.
        student: the name of the student.
        services: the run's models and clients.
        one_server: whether one vLLM server holds both models.

    Raises:
        UserError: when the `student` extra is not installed.
    """
    environment, specs = services.environment, services.pipeline.models
    teacher_spec, student_spec = specs[teacher], specs[student]
    checkpoints = (teacher_spec.require_checkpoint(environment), student_spec.require_checkpoint(environment))
    try:
        if teacher_spec.in_process:
            from tracefactory.decoding.in_process import InProcessPair

            return InProcessPair(*checkpoints, teacher_spec.concurrency, (teacher, student))
        from tracefactory.decoding.fused import FusedPair
        from tracefactory.decoding.served import ServedModel, ServedPair
    except ModuleNotFoundError as error:
        raise UserError(f"decoding by two models needs {error.name}: pip install 'tracefactory[student]'") from error
    if one_server:
        fused = FusedSpec.of(student_spec, teacher_spec, environment)
        served = ServedModel(student, services.client(student, (f"with-{teacher}", fused)), checkpoints[1])
        return FusedPair(served, (teacher, checkpoints[0]), fused.draft_length)
    # Managed servers draft with the random numbers that will decide.
    managed = teacher_spec.runs_plugins
    drafting = ("drafting", DraftingSpec.model_validate(teacher_spec.model_dump())) if managed else None
    return ServedPair(
        ServedModel(teacher, services.client(teacher, drafting), checkpoints[0]),
        ServedModel(student, services.client(student), checkpoints[1]),
    )
