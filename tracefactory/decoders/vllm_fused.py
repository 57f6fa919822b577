"""A plugin for vLLM 0.32 (V1 model runner): reverse speculative decoding inside of one engine.

The student is the engine's target and the teacher its draft model. The plugin puts its own functions in the place of
two of vLLM's: where the draft model samples, the teacher's draw is made with the noise of that place; where the target
verifies a draft, the rule of `rule.py` decides instead of the ratio of speculative decoding. Both see all logits, so
the tokens are those of the in-process engine.

A request opts in by its extra argument `tracefactory_rsd`, whose prompt lacks the last token: there is no draft for the
first token that an engine samples, so that token is given (`first`). Each token comes with the student's logarithm as
its log-probability, by which draw it came as its rank (1: the student's own, 2: the teacher's first draw, ...), and the
teacher's logarithm as the log-probability of the likeliest token beside it. Requests that do not opt in get the
likeliest tokens of the student.

It leans on vLLM's internals. `install` refuses any other version, and a server that cannot have run it is found out by
the client, since the first token is not the one given. The code is loaded into vLLM's own environment, see
`vllm_site.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tracefactory.decoders.noise import TEACHER, Noise
from tracefactory.decoders.pools import NO_TOKEN, Pools, Sampling, pools_of
from tracefactory.decoders.rule import Acceptance, decide

VERSION = "0.32."
ARGUMENT = "tracefactory_rsd"
NO_DRAFT = 100
"""The rank of a token for which there was no draft, as after a preemption: the trace is void."""

_UNKNOWN = -9999.0  # what vLLM's server makes of a log-probability that JSON has no number for


@dataclass(frozen=True)
class Asked:
    """What a request wants: its noise, how both models draw, the rule, and how many tokens both have."""

    key: int
    first: int
    teacher: Sampling
    student: Sampling
    rule: Acceptance
    tokens: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Asked:
        """Read a request's extra argument; what is amiss in it is raised as Python does."""
        sampling = {role: Sampling(**told[role]) for role in ("teacher", "student")}
        rule = Acceptance(p=told["p"], draws=told["draws"])
        return cls(key=told["key"], first=told["first"], rule=rule, tokens=told["tokens"], **sampling)


NOBODY = Asked(0, 0, Sampling(temperature=0), Sampling(temperature=0), Acceptance(p=1, draws=1), 1 << 62)
"""Stands for a request that did not opt in."""


@dataclass
class Drafting:
    """What the target leaves to the draft model for one step: whose noise, and from which position on.

    The draft model adds, per token drafted, its pools and log-probabilities of all requests.
    """

    names: list[str]
    asked: list[Asked]
    positions: list[int]
    pools: list[Pools] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    def draw(self, logits: Any) -> Any:
        """Return the teacher's draws for the next position of every request, and keep what they were drawn from."""
        pools = pools_of(logits, [one.teacher for one in self.asked], allowed(self.asked, logits))
        drawn = pools.draw(noise(self.asked, self.positions, len(self.pools)), TEACHER)
        self.pools.append(pools)
        self.logprobs.append(logits.log_softmax(dim=-1))
        likeliest = logits.argmax(dim=-1)
        tokens = torch.from_numpy(np.maximum(drawn, 0)).to(logits.device)
        return torch.where(torch.from_numpy(drawn == NO_TOKEN).to(logits.device), likeliest, tokens)


@dataclass(frozen=True, eq=False)
class Settled:
    """One request's new tokens, by which draw each came, and what both models' logarithms of them are."""

    tokens: list[int]
    draws: list[int]
    student: list[float]
    teacher: list[float]


def settle(one: Asked, position: int, draft: Sequence[int], teacher: Pools, told: Any, logits: Any) -> Settled:
    """Decide a request's draft by the rule, up to the first token that is not the drafted one.

    `teacher` and `told` [K, vocabulary] are the draft model's pools and log-probabilities at the drafted places,
    `logits` [K, vocabulary] the target's; `position` is that of the first place in the trace.
    """
    places = len(draft)
    student = pools_of(logits, [one.student] * places)
    at = noise([one] * places, range(position, position + places), 0)
    decided = decide([one.rule] * places, teacher, student, at)
    kept = next((i for i, token in enumerate(draft) if decided.tokens[i] != token), places - 1) + 1
    tokens, draws = decided.tokens[:kept].tolist(), decided.draws[:kept].tolist()
    rows, chosen = list(range(kept)), torch.tensor(tokens)
    ours = logits.log_softmax(dim=-1)[rows, chosen].tolist()
    return Settled(tokens, draws, ours, told[rows, chosen].tolist())


def noise(asked: Sequence[Asked], positions: Sequence[int], offset: int) -> Noise:
    """Return the randomness of one place per request."""
    keys = np.array([one.key for one in asked], dtype=np.uint64)
    return Noise(keys, np.array(positions, dtype=np.int64) + offset)


def allowed(asked: Sequence[Asked], logits: Any) -> Any:
    """Return which ids a model may propose: not those of rows that stand for no token."""
    return np.arange(logits.shape[-1]) < max((one.tokens for one in asked if one is not NOBODY), default=1 << 62)


def sample(runner: Any, logits: Any, metadata: Any) -> tuple[list[Settled], Drafting]:
    """Return the new tokens of every request of the batch, and what the draft model needs to go on.

    `runner` is vLLM's model runner, `logits` and `metadata` what its `_sample` is given.
    """
    names = list(runner.input_batch.req_ids)
    counts = [0] * len(names) if metadata is None else list(metadata.num_draft_tokens)
    targets = logits[:0] if metadata is None else logits[metadata.target_logits_indices].float()
    alone = logits if metadata is None else logits[metadata.bonus_logits_indices]
    drafts: list[int] = [] if metadata is None else metadata.draft_token_ids.tolist()
    before: Drafting | None = getattr(runner.drafter, "tracefactory_drafting", None)
    asked, positions, settled, start = [], [], [], 0
    for row, (name, count) in enumerate(zip(names, counts, strict=True)):
        state = runner.requests[name]
        told = ((state.sampling_params and state.sampling_params.extra_args) or {}).get(ARGUMENT)
        one, written = (NOBODY if told is None else Asked.of(told)), len(state.output_token_ids)
        mine, start = slice(start, start + count), start + count
        if written == 0 and one is not NOBODY:
            new = Settled([one.first], [0], [0.0], [0.0])
        elif one is NOBODY or not count or before is None or name not in before.names:
            likeliest = int((targets[mine][0] if count else alone[row]).argmax())
            new = Settled([likeliest], [NO_DRAFT - 1], [_UNKNOWN], [_UNKNOWN])
        else:
            at = before.names.index(name)
            pools = Pools.join([pool[at : at + 1] for pool in before.pools[:count]])
            heard = torch.stack([logprobs[at] for logprobs in before.logprobs[:count]])
            new = settle(one, written - 1, drafts[mine], pools, heard, targets[mine])
        settled.append(new)
        asked.append(one)
        positions.append(max(written - 1, 0) + (len(new.tokens) if written else 0))
    return settled, Drafting(names, asked, positions)


def install() -> None:
    """Put the plugin in place; vLLM calls this in each of its processes.

    Raises:
        RuntimeError: on a version of vLLM that it was not made for.
    """
    import vllm
    from vllm.v1.outputs import LogprobsTensors, SamplerOutput
    from vllm.v1.spec_decode.draft_model import DraftModelProposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not vllm.__version__.startswith(VERSION):
        raise RuntimeError(f"tracefactory's plugin is made for vLLM {VERSION}x, and this is {vllm.__version__}")
    plain = DraftModelProposer._sample_draft_tokens

    def draw_drafts(self: Any, hidden: Any, sampling_metadata: Any) -> Any:
        drafting = getattr(self, "tracefactory_drafting", None)
        if drafting is None or len(hidden) != len(drafting.names):
            return plain(self, hidden, sampling_metadata)
        return drafting.draw(self.model.compute_logits(hidden).float()), None

    def decide_drafts(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        settled, self.drafter.tracefactory_drafting = sample(self, logits, spec_decode_metadata)
        width = 1 if spec_decode_metadata is None else spec_decode_metadata.max_spec_len + 1
        wanted = self.input_batch.sampling_metadata.max_num_logprobs
        told = None if wanted is None else LogprobsTensors(*columns(settled, width, wanted, logits))
        return SamplerOutput(sampled_token_ids=padded(settled, width, logits), logprobs_tensors=told)

    DraftModelProposer._sample_draft_tokens = draw_drafts
    GPUModelRunner._sample = decide_drafts


def padded(settled: Sequence[Settled], width: int, logits: Any) -> Any:
    """Return the tokens as vLLM wants them: [requests, width], -1 behind the last."""
    rows = [[*one.tokens, *[-1] * (width - len(one.tokens))] for one in settled]
    return torch.tensor(rows, dtype=torch.int32, device=logits.device)


def columns(settled: Sequence[Settled], width: int, wanted: int, logits: Any) -> tuple[Any, Any, Any]:
    """Return token ids and log-probabilities [requests * width, wanted + 1], and ranks [requests * width].

    In the first column is the token itself, in the second the teacher's logarithm of it; ids differ along a row because
    vLLM files them by id.
    """
    count = len(settled) * width
    ids = np.zeros((count, wanted + 1), dtype=np.int32)
    values = np.full((count, wanted + 1), _UNKNOWN, dtype=np.float32)
    ranks = np.ones(count, dtype=np.int64)
    for row, one in enumerate(settled):
        for offset, token in enumerate(one.tokens):
            at = row * width + offset
            ids[at] = (token + np.arange(wanted + 1)) % logits.shape[-1]
            values[at, :2] = (one.student[offset], one.teacher[offset])[: wanted + 1]
            ranks[at] = one.draws[offset] + 1
    return tuple(torch.from_numpy(one).to(logits.device) for one in (ids, values, ranks))
