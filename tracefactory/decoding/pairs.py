"""Open two models that write traces together.

A decoder says who writes next (`decoder.py`). Three engines write by it, and give the same tokens: `engine.py`, many
traces at once with both models in this process (`pair.py` answers requests with it); `served.py`, with both behind vLLM
servers; and `fused.py`, with both in one vLLM server that runs a plugin.
"""

from __future__ import annotations

from typing import Protocol

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import ChatRequest, ModelSpec
from tracefactory.core.stage import Services
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.vllm_specs import DraftingSpec, FusedSpec


class Writers(Protocol):
    """Two models that answer requests together."""

    async def complete(self, request: ChatRequest) -> Decoded:
        """Return one trace.

        Raises:
            RequestFailed: when there is none.
        """
        ...

    async def close(self) -> None:
        """Give up what is being written."""
        ...


def check_pair(teacher: tuple[str, ModelSpec], student: tuple[str, ModelSpec]) -> list[Mistake]:
    """Return what keeps two models (name, spec) from decoding together, as far as their specs say."""
    mistakes = []
    for name, spec in dict((teacher, student)).items():
        if not spec.exchanges_tokens:
            said = (
                f"model {name!r} (`use: {spec.use}`) takes no tokens: two that write together are `use: transformers`"
            )
            hint = "a vLLM server that runs already is `use: openai` with a `tokenizer:`"
            mistakes.append(Mistake(f"{said} (in this process) or `use: vllm`, both of them", hint=hint))
    inside = [name for name, spec in (teacher, student) if spec.in_process]
    if not mistakes and len(inside) == 1:
        served = student[0] if inside[0] == teacher[0] else teacher[0]
        said = f"{inside[0]!r} is in this process (`use: transformers`) and {served!r} is served"
        mistakes.append(Mistake(f"{said}; models that write together are both in this process, or both served"))
    return mistakes


def check_one_server(teacher: tuple[str, ModelSpec], student: tuple[str, ModelSpec]) -> list[Mistake]:
    """Return what keeps two models (name, spec) from decoding inside of one vLLM server."""
    return [
        Mistake(f"model {name!r} is `use: {spec.use}`; `servers: one` needs two models that are `use: vllm`")
        for name, spec in dict((teacher, student)).items()
        if not spec.runs_plugins
    ]


def open_pair(teacher: str, student: str, services: Services, *, one_server: bool = False) -> Writers:
    """Return the two models of these names, ready to decode together; nothing is loaded or started yet.

    Raises:
        UserError: when the `student` extra is not installed.
    """
    environment, specs = services.environment, services.pipeline.models
    one, other = specs[teacher], specs[student]
    checkpoints = (one.require_checkpoint(environment), other.require_checkpoint(environment))
    try:
        if one.in_process:
            from tracefactory.decoding.pair import Pair

            return Pair(*checkpoints, one.concurrency, (teacher, student))
        from tracefactory.decoding.fused import FusedPair
        from tracefactory.decoding.served import ServedPair, Side
    except ModuleNotFoundError as error:
        raise UserError(f"decoding together needs {error.name}: pip install 'tracefactory[student]'") from error
    if one_server:
        fused = FusedSpec.of(other, one, environment)
        side = Side(student, services.client(student, (f"with-{teacher}", fused)), checkpoints[1])
        return FusedPair(side, (teacher, checkpoints[0]), fused.drafted)
    # Servers of our own that draft know the noise that will decide.
    drafting = ("drafting", DraftingSpec.of(one)) if one.runs_plugins else None
    return ServedPair(
        Side(teacher, services.client(teacher, drafting), checkpoints[0]),
        Side(student, services.client(student), checkpoints[1]),
    )
