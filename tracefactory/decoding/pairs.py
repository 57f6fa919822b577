"""Open two models that write traces together.

A decoder says who writes next (`decoder.py`). Three engines write by it, and give the same tokens: `engine.py`, many
traces at once with both models in this process (`pair.py` answers requests with it); `served.py`, with both behind vLLM
servers; and `fused.py`, with both in one vLLM server that runs a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import ChatRequest, ModelSpec
from tracefactory.core.stage import Services
from tracefactory.decoding.provenance import Decoded
from tracefactory.models.openai import OpenAISpec
from tracefactory.models.transformers import TransformersSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.vllm.drafting import DraftingSpec, FusedSpec

if TYPE_CHECKING:
    from tracefactory.serving.client import ChatClient


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
        if not isinstance(spec, TransformersSpec | VLLMSpec | OpenAISpec):
            said = f"model {name!r} is `use: {spec.use}`; models that write together are both `use: transformers`"
            mistakes.append(Mistake(f"{said} (in this process), or both `use: vllm` or `use: openai` (vLLM servers)"))
        elif isinstance(spec, OpenAISpec) and not spec.tokenizer:
            said = f"model {name!r} has no `tokenizer:`: models that write together exchange tokens, not text"
            mistakes.append(Mistake(said, hint="name the folder of the served checkpoint, or its id and revision"))
    inside = [name for name, spec in (teacher, student) if isinstance(spec, TransformersSpec)]
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
        if not isinstance(spec, VLLMSpec)
    ]


def open_pair(teacher: str, student: str, services: Services, *, one_server: bool = False) -> Writers:
    """Return the two models of these names, ready to decode together; nothing is loaded or started yet.

    Raises:
        UserError: when the `student` extra is not installed.
    """
    specs = services.pipeline.models
    one, other = specs[teacher], specs[student]
    try:
        if isinstance(one, TransformersSpec) and isinstance(other, TransformersSpec):
            from tracefactory.decoding.pair import Pair

            inside = (one.student(services.environment), other.student(services.environment))
            return Pair(*inside, one.concurrency, (teacher, student))
        from tracefactory.decoding.fused import FusedPair
        from tracefactory.decoding.served import ServedPair, Side
    except ModuleNotFoundError as error:
        raise UserError(f"decoding together needs {error.name}: pip install 'tracefactory[student]'") from error
    if one_server:
        assert isinstance(one, VLLMSpec)
        assert isinstance(other, VLLMSpec)
        fused = FusedSpec.of(other, one, services.environment)
        side = Side(student, services.client(student, (f"with-{teacher}", fused)), other.student(services.environment))
        return FusedPair(side, (teacher, one.student(services.environment)), fused.drafted)
    assert isinstance(one, VLLMSpec | OpenAISpec)
    assert isinstance(other, VLLMSpec | OpenAISpec)
    return ServedPair(
        Side(teacher, _drafting(teacher, one, services), one.student(services.environment)),
        Side(student, services.client(student), other.student(services.environment)),
    )


def _drafting(name: str, spec: ModelSpec, services: Services) -> ChatClient:
    """Return the client of a model that drafts: servers of our own know the noise that will decide."""
    drafting = ("drafting", DraftingSpec.of(spec)) if isinstance(spec, VLLMSpec) else None
    client: ChatClient = services.client(name, drafting)
    return client
