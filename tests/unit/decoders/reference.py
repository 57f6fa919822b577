"""Reverse speculative decoding as plainly as it can be written: one token at a time, no cache, no batch, float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.sampling.noise import STUDENT, TEACHER, Noise

Distribution = dict[int, float]


@dataclass
class Step:
    """One token: which of the teacher's draws it was (0: the student's), and how close the closest decision was."""

    token: int
    draw: int
    margin: float


def reference(
    teacher: Any,
    student: Any,
    prompt: list[int],
    decoder: ReverseSpeculative,
    key: int,
    tokens: int,
    stops: frozenset[int],
) -> list[Step]:
    """Write one trace; both models share their vocabulary."""
    steps: list[Step] = []
    sequence = list(prompt)
    while len(steps) < tokens and not (steps and steps[-1].token in stops):
        logits = [model(input_ids=torch.tensor([sequence])).logits[0, -1].double() for model in (teacher, student)]
        steps.append(decide_one(logits[0], logits[1], decoder, key, len(steps)))
        sequence.append(steps[-1].token)
    return steps


def decide_one(
    teacher: torch.Tensor, student: torch.Tensor, decoder: ReverseSpeculative, key: int, position: int
) -> Step:
    margins: list[float] = []
    teacher_pool, _ = pool(teacher, decoder.teacher_temperature, decoder, margins)
    student_pool, student_mass = pool(student, decoder.student_temperature, decoder, margins)
    if decoder.tested == "raw":
        tested = dict(likeliest(torch.log_softmax(student, 0), decoder.top_k))
    else:
        tested = {token: logp - math.log(student_mass) for token, logp in student_pool.items()}
    for draw in range(decoder.draws):
        candidate = draw_one(teacher_pool, key, position, TEACHER + draw, margins)
        logp = tested.get(candidate, -math.inf)
        margins.append(abs(logp - math.log(decoder.p)))
        if logp >= math.log(decoder.p):
            return Step(candidate, draw + 1, min(margins))
    return Step(draw_one(student_pool, key, position, STUDENT, margins), 0, min(margins))


def pool(
    logits: torch.Tensor, temperature: float, decoder: ReverseSpeculative, margins: list[float]
) -> tuple[Distribution, float]:
    """Return the log-probabilities of the top k of the nucleus, and the probability of the whole nucleus."""
    logp = torch.log_softmax(logits / temperature, 0)
    ordered = likeliest(logp, len(logp))
    nucleus, reached = [], 0.0
    for token, value in ordered:
        if reached >= decoder.top_p:
            break
        nucleus.append((token, value))
        reached += math.exp(value)
        margins.append(abs(reached - decoder.top_p))
    if len(nucleus) > decoder.top_k:
        margins.append(ordered[decoder.top_k - 1][1] - ordered[decoder.top_k][1])
    return dict(nucleus[: decoder.top_k]), reached


def likeliest(logp: torch.Tensor, count: int) -> list[tuple[int, float]]:
    values, ids = logp.sort(descending=True)
    return list(zip(ids[:count].tolist(), values[:count].tolist(), strict=True))


def draw_one(weights: Distribution, key: int, position: int, stream: int, margins: list[float]) -> int:
    tokens = np.array([list(weights)])
    noise = Noise(np.array([key], dtype=np.uint64), np.array([position])).gumbel(stream, tokens)[0]
    scores = sorted(zip(noise + np.array(list(weights.values())), weights, strict=True), reverse=True)
    if len(scores) > 1:
        margins.append(scores[0][0] - scores[1][0])
    return int(scores[0][1])
