"""SmolLM2-135M as the teacher of a slightly different copy of itself, behind vLLM and in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.decoders.reference import decide_one
from tests.vllm.conftest import FIELDS
from tracefactory.core.model import ChatRequest
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoding.decoder import DECODERS
from tracefactory.decoding.prompts import decoder_of, rollout_spec
from tracefactory.decoding.provenance import Decoded
from tracefactory.students import Checkpoint

NOISE = 0.1
QUESTIONS = (
    "What is 17 + 25? Explain.",
    "Write two sentences about the sea.",
    "List three colours and why one may like them.",
    "A farmer has 12 cows and buys 7 more. How many are there?",
    "Is 91 a prime number?",
    "Name a river and say where it flows.",
)


def fields(model: Path | str, **engine: Any) -> dict[str, Any]:
    """The fields of a `use: vllm` model on one thread: two servers share two cores here."""
    environ = {**FIELDS["environ"], "OMP_NUM_THREADS": "1"}  # type: ignore[dict-item]
    arguments = {**FIELDS["engine_args"], **engine}  # type: ignore[dict-item]
    return {**FIELDS, "model": str(model), "environ": environ, "engine_args": arguments}


def save_student(teacher: str, folder: Path, noise: float = NOISE) -> Path:
    """Save a copy of the checkpoint with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(noise * weight.std() * torch.randn_like(weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def asked(count: int, most: int, decoder: str = "reverse_speculative", **changed: Any) -> list[ChatRequest]:
    params = {**DECODERS.get(decoder)().model_dump(mode="json"), **changed, "decoder": decoder, "max_tokens": most}
    return [
        ChatRequest(
            model_identity={},
            messages=({"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]},),
            params={**params, "seed": 100 + number},
        )
        for number in range(count)
    ]


@dataclass
class Compared:
    """How far runs of two engines are alike: tokens compared, and the closest decision where each pair parts."""

    tokens: int
    margins: list[float]


class Judge:
    """Both models in float64, to tell how close the decision was where two runs part."""

    def __init__(self, teacher: str, student: Path) -> None:
        load = AutoModelForCausalLM.from_pretrained
        self.models = [load(str(one), dtype=torch.float64).eval() for one in (teacher, student)]
        self.tokenizer = AutoTokenizer.from_pretrained(teacher)

    def compare(self, requests: Sequence[ChatRequest], one: Sequence[Decoded], other: Sequence[Decoded]) -> Compared:
        compared = Compared(0, [])
        for request, mine, right in zip(requests, one, other, strict=True):
            columns = [answer.provenance.column("token_ids").tolist() for answer in (mine, right)]
            at = next((i for i, (a, b) in enumerate(zip(*columns, strict=False)) if a != b), None)
            compared.tokens += min(map(len, columns)) if at is None else at + 1
            if at is not None:
                sequence = [*rollout_spec(self.tokenizer, request).prompt, *columns[1][:at]]
                with torch.no_grad():
                    logits = [model(input_ids=torch.tensor([sequence])).logits[0, -1] for model in self.models]
                decoder = decoder_of(request)
                assert isinstance(decoder, ReverseSpeculative)
                compared.margins.append(decide_one(*logits, decoder, request.params["seed"], at).margin)
        return compared


def in_process(folder: Path | str) -> Checkpoint:
    return Checkpoint(model=str(folder), dtype="float32")
