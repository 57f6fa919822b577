"""Reverse speculative decoding in process, against plain decoding by the teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from tests.bench.gpu.models import Pair
from tests.bench.gpu.scoring import free, least, peak, wait
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoders.teacher_prefix import TeacherPrefix
from tracefactory.decoding.decoder import Decoder, Role
from tracefactory.decoding.draft_schedule import DraftPlan, DraftScheduler
from tracefactory.decoding.engine import Engine
from tracefactory.decoding.kv_cache import CachedModel
from tracefactory.decoding.provenance import Provenance
from tracefactory.decoding.rollout import Rollout, RolloutSpec
from tracefactory.decoding.vocabulary import compare

QUESTION = "A farmer has 12 cows and buys 7 more. How many cows does the farmer have? Explain step by step."


def measure(pair: Pair, rows: Sequence[int], tokens: int, device: str) -> list[dict[str, Any]]:
    """Measure a pair at several batch sizes.

    Plain decoding is measured twice: by `generate` of transformers, and by our engine with the teacher as the only
    writer. The ratio is with the faster of both.

    Args:
        pair: the models.
        rows: the batch sizes.
        tokens: the tokens of each trace.
        device: the torch device.

    Returns:
        A line per batch size: tokens per second, ratios, the student's share of the tokens, the peak of memory.
    """
    lines = []
    for count in rows:
        free(device)
        generated = count * tokens / least(partial(_generate, pair, count, tokens), device, rounds=1)
        alone, _ = decoded(pair, TeacherPrefix(tokens=tokens + 1), DraftScheduler(), count, tokens, device)
        learned = DraftScheduler()
        decoded(pair, ReverseSpeculative(), learned, count, tokens, device)  # it learns what passes cost
        free(device)
        ours, runs = decoded(pair, ReverseSpeculative(), learned, count, tokens, device)
        by_student = sum(int(Provenance.of(run).by_student.sum()) for run in runs)
        plan = learned.plan(count)
        lines.append(
            {
                "rows": count,
                "tokens": tokens,
                "generate_tokens_per_s": round(generated, 1),
                "teacher_alone_tokens_per_s": round(alone, 1),
                "tokens_per_s": round(ours, 1),
                "ratio": round(ours / max(alone, generated), 3),
                "student_share": round(by_student / sum(len(run.tokens) for run in runs), 3),
                "plan": f"{plan.drafter.name.lower()} drafts {plan.length}",
                "agreement": {role.name.lower(): round(learned.agreement(role), 3) for role in Role},
                "peak_bytes": peak(device),
            }
        )
    return lines


def exactness(pair: Pair, rows: int, tokens: int, device: str) -> dict[str, Any]:
    """Compare the tokens of two draft plans with those of decoding token by token.

    In float64 all rows are equal; below, rows part where two scores are closer than the rounding error.
    """
    plans = {
        "one": DraftPlan(Role.TEACHER, 1),
        "teacher 4": DraftPlan(Role.TEACHER, 4),
        "student 8": DraftPlan(Role.STUDENT, 8),
    }
    runs = {
        name: decoded(pair, ReverseSpeculative(), DraftScheduler(plan), rows, tokens, device)[1]
        for name, plan in plans.items()
    }
    found: dict[str, Any] = {"rows": rows, "tokens": tokens}
    for name in list(plans)[1:]:
        equal = [list(a.tokens) == list(b.tokens) for a, b in zip(runs["one"], runs[name], strict=True)]
        firsts = [
            next((at for at, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), tokens)
            for a, b in zip(runs["one"], runs[name], strict=True)
        ]
        found[name] = {"equal_rows": sum(equal), "mean_first_difference": round(sum(firsts) / rows, 1)}
    return found


def decoded(
    pair: Pair, decoder: Decoder, scheduler: DraftScheduler, rows: int, tokens: int, device: str
) -> tuple[float, list[Rollout]]:
    """Decode `rows` traces together; return tokens per second without the first round, and the traces."""
    models = {Role.TEACHER: CachedModel(pair.teacher, rows), Role.STUDENT: CachedModel(pair.student, rows)}
    size = pair.teacher.get_output_embeddings().out_features
    vocabulary = compare(pair.tokenizer, pair.tokenizer).sized(size)
    engine = Engine(models, vocabulary, pair.tokenizer, frozenset(), scheduler)
    prompt = tuple(_prompt(pair))
    runs = [engine.add(RolloutSpec(prompt, decoder, key, tokens)) for key in range(rows)]
    engine.round()
    wait(device)
    before, started = sum(len(run.tokens) for run in runs), time.perf_counter()
    while engine.busy:
        engine.round()
    wait(device)
    return (sum(len(run.tokens) for run in runs) - before) / (time.perf_counter() - started), runs


def _prompt(pair: Pair) -> list[int]:
    message = [{"role": "user", "content": QUESTION}]
    text = pair.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids: list[int] = pair.tokenizer.encode(text, add_special_tokens=False)
    return ids


def _generate(pair: Pair, rows: int, tokens: int) -> None:
    ids = torch.tensor([_prompt(pair)] * rows, device=pair.teacher.device)
    torch.manual_seed(0)
    with torch.inference_mode():
        pair.teacher.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens
        )
