"""The plugin for one vLLM engine, driven as vLLM drives it: the tokens are those of the in-process engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.decoders.test_served import asked, columns, in_process
from tracefactory.core.errors import RunError
from tracefactory.core.model import RequestFailed
from tracefactory.decoding.fused import FusedPair
from tracefactory.decoding.served import ServedModel
from tracefactory.serving.vllm.plugins import fused_decoding as vllm_fused
from tracefactory.students import Checkpoint


class FusedServer:
    """One engine with a draft model, as far as the plugin sees it; all requests form one batch."""

    def __init__(self, teacher: Any, student: Any, drafted: int = 4) -> None:
        self.models = {"draft": teacher, "target": student}
        self.drafted = drafted
        self.spec = SimpleNamespace(model="m")
        self.plugin = True
        self.forgetful = False
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[dict[str, Any]]]] = []

    async def ask(
        self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Any], *, near: str = ""
    ) -> Any:
        if body is None:
            return read({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]})
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, answer))
        await asyncio.sleep(0.01)
        if self._waiting:
            batch, self._waiting = self._waiting, []
            for (_, future), done in zip(batch, self.answers([one for one, _ in batch]), strict=True):
                future.set_result(done)
        return read(await answer)

    def logits(self, which: str, tokens: list[int], rows: int) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.models[which](input_ids=torch.tensor([tokens])).logits[0, -rows:]
        return logits

    def answers(self, bodies: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        states, sequences, contents = {}, {}, {}
        for number, body in enumerate(bodies):
            params = SimpleNamespace(extra_args=body["sampling_params"]["extra_args"])
            states[str(number)] = SimpleNamespace(sampling_params=params, output_token_ids=[])
            sequences[str(number)], contents[str(number)] = list(body["token_ids"]), []
        runner = SimpleNamespace(requests=states, drafter=SimpleNamespace(tracefactory_drafting=None))
        drafts: dict[str, list[int]] = {name: [] for name in states}
        active, metadata = list(states), None
        while active:
            runner.input_batch = SimpleNamespace(req_ids=active)
            parts = [self.logits("target", sequences[n] + drafts[n], len(drafts[n]) + 1) for n in active]
            metadata = described(drafts, active) if any(drafts.values()) else None
            settled, drafting = vllm_fused.sample(runner, torch.cat(parts), metadata)
            width = 1 if metadata is None else self.drafted + 1
            told = vllm_fused.columns(settled, width, 3, torch.zeros(1, parts[0].shape[-1]))
            tokens = vllm_fused.padded(settled, width, told[0])
            for row, name in enumerate(active):
                new = [token for token in tokens[row].tolist() if token >= 0]
                sequences[name] += new
                states[name].output_token_ids += new
                contents[name] += [entry(*(one[row * width + at] for one in told)) for at in range(len(new))]
            runner.drafter.tracefactory_drafting = drafting
            drafts = self.draft(drafting, {name: sequences[name] for name in active})
            if self.forgetful and all(len(one.output_token_ids) > 5 for one in states.values()):
                drafts = {name: [] for name in active}  # as after a preemption
            active = [n for n in active if not ended(contents[n], bodies[int(n)]["sampling_params"])]
        return [response(contents[str(n)], body["sampling_params"]) for n, body in enumerate(bodies)]

    def draft(self, drafting: vllm_fused.Drafting, sequences: dict[str, list[int]]) -> dict[str, list[int]]:
        drafts: dict[str, list[int]] = {name: [] for name in sequences}
        for _ in range(self.drafted):
            logits = torch.cat([self.logits("draft", one + drafts[name], 1) for name, one in sequences.items()])
            for name, token in zip(sequences, drafting.draw(logits).tolist(), strict=True):
                drafts[name].append(token)
        return drafts


def described(drafts: dict[str, list[int]], active: list[str]) -> Any:
    counts = [len(drafts[name]) for name in active]
    ends = np.cumsum([count + 1 for count in counts]) - 1
    targets = [i for i in range(int(ends[-1]) + 1) if i not in set(ends.tolist())]
    return SimpleNamespace(
        num_draft_tokens=counts,
        draft_token_ids=torch.tensor([token for name in active for token in drafts[name]]),
        target_logits_indices=torch.tensor(targets),
        bonus_logits_indices=torch.tensor(ends),
    )


def entry(ids: torch.Tensor, values: torch.Tensor, rank: torch.Tensor) -> dict[str, Any]:
    """What vLLM's server makes of one row of log-probabilities when three are asked for."""
    ranks = [int(rank), 1, 2]
    tops = [
        {"token_id": int(token), "logprob": float(value), "rank": place}
        for token, value, place in zip(ids, values, ranks, strict=False)
    ]
    return {**tops[0], "top_logprobs": tops}


def ended(content: list[dict[str, Any]], sampling: Mapping[str, Any]) -> bool:
    stopped = any(one["token_id"] in sampling["stop_token_ids"] for one in content[1:])
    return stopped or len(content) >= sampling["max_tokens"]


def response(content: list[dict[str, Any]], sampling: Mapping[str, Any]) -> dict[str, Any]:
    stops = [i for i, one in enumerate(content) if i and one["token_id"] in sampling["stop_token_ids"]]
    content = content[: min([*(stop + 1 for stop in stops), sampling["max_tokens"]])]
    choice = {
        "logprobs": {"content": content},
        "token_ids": [one["token_id"] for one in content],
        "finish_reason": "stop",
    }
    return {"choices": [choice], "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def fused(folders: tuple[Path, Path], drafted: int = 4) -> FusedPair:
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in folders]
    server: Any = FusedServer(*models, drafted)
    specs = [Checkpoint(model=str(folder)) for folder in folders]
    return FusedPair(ServedModel("small", server, specs[1]), ("big", specs[0]), drafted)


@pytest.mark.parametrize("drafted", [1, 5])
@pytest.mark.parametrize("changed", [{"p": 0.05}, {"tested": "tempered", "p": 0.1, "draws": 2, "top_k": 7}])
async def test_the_fused_engine_writes_the_tokens_of_the_in_process_engine(
    folders: tuple[Path, Path], drafted: int, changed: dict[str, Any]
) -> None:
    requests = asked(5, **changed)
    pair = fused(folders, drafted)
    answers = await asyncio.gather(*map(pair.complete, requests))
    expected = await in_process(folders, requests)
    assert columns(answers) == columns(expected)
    draws = np.concatenate([one.provenance.column("draws") for one in answers])
    assert (draws == 0).sum() > 3
    assert (draws == 1).sum() > 3
    for one, other in zip(answers, expected, strict=True):
        for name in ("teacher_logprobs", "student_logprobs"):
            np.testing.assert_allclose(one.provenance.column(name), other.provenance.column(name), atol=1e-4)


async def test_a_preempted_trace_fails_and_can_be_retried(folders: tuple[Path, Path]) -> None:
    pair = fused(folders)
    pair.student.client.forgetful = True  # type: ignore[attr-defined]
    with pytest.raises(RequestFailed, match="preempted") as caught:
        await pair.complete(asked(1)[0])
    assert caught.value.retryable


async def test_a_server_without_the_plugin_raises_run_error(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = fused(folders)
    plain = FusedServer.answers

    def other(self: FusedServer, bodies: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers = plain(self, bodies)
        for one in answers:
            first = one["choices"][0]["logprobs"]["content"][0]
            first["token_id"] = one["choices"][0]["token_ids"][0] = first["token_id"] ^ 1
        return answers

    monkeypatch.setattr(FusedServer, "answers", other)
    with pytest.raises(RunError, match="does not run the plugin"):
        await pair.complete(asked(1)[0])


async def test_a_trace_without_room_for_its_last_draft_is_refused(folders: tuple[Path, Path]) -> None:
    pair = fused(folders)
    with pytest.raises(RequestFailed, match="context_length"):
        await pair.complete(asked(1, tokens=480)[0])


@pytest.fixture
def other_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM of another version, as far as the plugin looks at it."""
    names = ["vllm", "vllm.v1", "vllm.v1.outputs", "vllm.v1.spec_decode", "vllm.v1.spec_decode.draft_model"]
    for name in [*names, "vllm.v1.worker", "vllm.v1.worker.gpu_model_runner"]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].__version__ = "0.33.1"  # type: ignore[attr-defined]
    for module, names in (
        ("vllm.v1.outputs", ["LogprobsTensors", "SamplerOutput"]),
        ("vllm.v1.spec_decode.draft_model", ["DraftModelProposer"]),
        ("vllm.v1.worker.gpu_model_runner", ["GPUModelRunner"]),
    ):
        for name in names:
            setattr(sys.modules[module], name, object)


@pytest.mark.usefixtures("other_vllm")
def test_another_version_of_vllm_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"supports vLLM 0\.32\.x, but this is vLLM 0\.33\.1"):
        vllm_fused.install()
