"""Speed of reverse speculative decoding by two servers, as ratios within one run, beside what the formula says.

A draft request takes a seconds and b more per token drafted, a score c seconds. Asking both servers for one token at a
time, at the same time, as specs do, makes

    1 / max(a + b, c)    tokens per second and trace,

and drafts of K tokens, of which a share g holds and E = 1 + g + ... + g^(K - 1) are kept,

    E / (a + K * b + c)

each, and w * (a + b) more seconds per token, where w is the share of places at which more of the distribution has to be
asked for. So drafts gain at most E / 2 where a request costs much more than a token, and 1 / (1 - g) is the most that
any K gives. On the real vLLM (`.venv-vllm`, two servers on this machine's CPU), and on a stand-in whose requests take
the time of a small model on a GPU behind HTTP.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.decoders.token_server import TokenServer, by_noise
from tests.vllm.rsd import asked, fields, save_student
from tracefactory.core.environment import Environment
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.draft_schedule import expected_tokens
from tracefactory.decoding.served import ServedModel, ServedPair
from tracefactory.decoding.vllm_specs import DraftingSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.client import ChatClient
from tracefactory.students import Checkpoint

pytestmark = pytest.mark.bench

TRACES, TOKENS, DRAFTED = 4, 72, 24
REQUEST_S, TOKEN_S = 0.06, 0.003
ROOT = Path(__file__).parents[2]


class Bigrams:
    """A model that looks at one token back: no time of its own distorts that of a request."""

    def __init__(self, spread: float) -> None:
        rng = torch.Generator().manual_seed(1)
        noise = torch.randn(257, 257, generator=torch.Generator().manual_seed(2))
        self.table = 3 * torch.randn(257, 257, generator=rng) + spread * noise
        self.table[:, 256] = -30.0  # no end: every run has the same length

    def __call__(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


class SlowServer(TokenServer):
    """A stand-in that knows the noise and takes its time."""

    async def ask(
        self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Any], *, near: str = ""
    ) -> Any:
        await asyncio.sleep(REQUEST_S + TOKEN_S * (body or {}).get("sampling_params", {}).get("max_tokens", 0))
        return await super().ask(path, body, read, near=near)


def stand_ins(folder: Path) -> tuple[ServedModel, ServedModel]:
    folders = save_pair(folder)
    servers: list[Any] = [SlowServer(Bigrams(spread), by_noise) for spread in (0.0, 0.6)]
    specs = [Checkpoint(model=str(one)) for one in folders]
    return ServedModel("big", servers[0], specs[0]), ServedModel("small", servers[1], specs[1])


@pytest.fixture(params=["stand-in", "vllm"])
async def sides(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[ServedModel, ServedModel]]:
    if request.param == "stand-in":
        yield stand_ins(tmp_path)
        return
    specs = real_servers(tmp_path)
    clients = [ChatClient.connect(spec, tmp_path / str(number), Environment()) for number, spec in enumerate(specs)]
    big, small = (
        ServedModel(n, c, s.checkpoint(Environment())) for n, c, s in zip(("big", "small"), clients, specs, strict=True)
    )
    yield big, small
    await asyncio.gather(*(client.close() for client in clients))


def real_servers(folder: Path) -> list[VLLMSpec]:
    env = Path(os.environ.get("TRACEFACTORY_TEST_VLLM", ROOT / ".venv-vllm"))
    teacher = Path(os.environ.get("TRACEFACTORY_TEST_CHECKPOINT", env / "smollm2-135m"))
    if not (env / "bin" / "python").exists() or not teacher.exists():
        pytest.skip("needs an environment with vLLM and a checkpoint: make test-vllm")
    student = save_student(str(teacher), folder / "student", noise=0.05)
    kinds: list[tuple[type[VLLMSpec], Path]] = [(DraftingSpec, teacher), (VLLMSpec, student)]
    return [kind.model_validate({**fields(one), "env": str(env)}) for kind, one in kinds]


async def speed(sides: tuple[ServedModel, ServedModel], drafted: int | None, seed: int) -> tuple[float, ServedPair]:
    """Return tokens per second of all traces together; what is opened once is not counted."""
    pair = ServedPair(*sides, drafted)
    requests = [
        one.model_copy(update={"params": {**one.params, "seed": one.params["seed"] + seed}})
        for one in asked(TRACES, TOKENS)
    ]
    await pair._open()
    started = time.perf_counter()
    answers = await asyncio.gather(*map(pair.complete, requests))
    return sum(one.completion_tokens for one in answers) / (time.perf_counter() - started), pair


async def test_drafts_against_one_token_requests(sides: tuple[ServedModel, ServedModel]) -> None:
    await speed(sides, DRAFTED, 1000)  # both servers are warm, and have the prompts in their caches
    singly, one = await speed(sides, 1, 0)
    drafted, many = await speed(sides, DRAFTED, 0)
    paced, free = await speed(sides, None, 0)
    scheduler, single = many.schedulers[Role.TEACHER, True], one.schedulers[Role.TEACHER, True]
    tokens = expected_tokens(scheduler.agreement, DRAFTED)
    again = many.widened / (TRACES * TOKENS) * single.draft_s(1)
    told = (
        1 / ((scheduler.draft_s(DRAFTED) + scheduler.score_s) / tokens + again),
        1 / (max(single.draft_s(1), single.score_s) + again),
    )
    rows = (("one token at a time", singly, told[1]), (f"drafts of {DRAFTED}", drafted, told[0]))
    print(
        f"\n{TRACES} traces of up to {TOKENS} tokens; agreement {scheduler.agreement:.3f}, "
        f"{tokens:.1f} tokens per draft,"
    )
    print(f"  {many.widened} places asked again; paced: {free.schedulers[Role.TEACHER, True].length()} tokens")
    print(f"  {'':24}{'measured':>12}{'formula':>12}  tokens/s per trace")
    for name, measured, formula in rows:
        print(f"  {name:24}{measured / TRACES:12.2f}{formula:12.2f}")
    print(f"  {'paced':24}{paced / TRACES:12.2f}")
    print(f"  drafts / one token: {drafted / singly:.2f} (formula {told[0] / told[1]:.2f}); paced {paced / singly:.2f}")
    assert max(drafted, paced) / singly >= 4
