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
the client, since the first token is not the one given. Beside what vLLM plans for, a step takes memory for the
teacher's logits [requests, K, vocabulary] in float32 and for about three copies of the student's. The code is loaded
into vLLM's own environment, see `vllm_site.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tracefactory.sampling.acceptance import Acceptance, decide
from tracefactory.sampling.candidates import NO_TOKEN, Pools, Sampling, pools_of
from tracefactory.sampling.noise import TEACHER, Noise

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

    The draft model adds, per token drafted, its pools and logits [requests, vocabulary] of all requests.
    """

    names: list[str]
    asked: list[Asked]
    positions: list[int]
    pools: list[Pools] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)

    def draw(self, logits: Any) -> Any:
        """Return the teacher's draws for the next position of every request, and keep what they were drawn from."""
        pools = pools_of(logits, [one.teacher for one in self.asked], allowed(self.asked, logits))
        drawn = pools.draw(noise(self.asked, self.positions, len(self.pools)), TEACHER)
        self.pools.append(pools)
        self.logits.append(logits)
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


def settle(
    asked: Sequence[Asked],
    positions: Sequence[int],
    drafts: Sequence[Sequence[int]],
    before: Drafting,
    rows: Sequence[int],
    logits: Any,
) -> list[Settled]:
    """Decide the drafts of requests by the rule, each up to the first token that is not the drafted one.

    `positions` are those of the first drafted places in the traces, `rows` the requests' places in `before`, and
    `logits` [sum of the drafts' lengths, vocabulary] the target's.
    """
    each = [(request, offset) for request, draft in enumerate(drafts) for offset in range(len(draft))]
    mine = [asked[request] for request, _ in each]
    heard = np.array([offset * len(before.names) + rows[request] for request, offset in each])
    teacher, student = Pools.join(before.pools)[heard], pools_of(logits, [one.student for one in mine])
    at = noise(mine, [positions[request] + offset for request, offset in each], 0)
    decided = decide([one.rule for one in mine], teacher, student, at)
    chosen = torch.from_numpy(decided.tokens).to(logits.device)
    ours = logits.gather(1, chosen[:, None])[:, 0].double().cpu().numpy() - student.totals
    theirs = np.zeros(len(each))
    for step, told in enumerate(before.logits):
        here = np.array([place for place, (_, offset) in enumerate(each) if offset == step], dtype=np.int64)
        if len(here):
            lines = torch.tensor([rows[each[place][0]] for place in here], device=told.device)
            theirs[here] = told[lines, chosen[torch.from_numpy(here)]].double().cpu().numpy()
    theirs -= teacher.totals
    found, start = [], 0
    for draft in drafts:
        tokens = decided.tokens[start : start + len(draft)].tolist()
        kept = next((i for i, token in enumerate(tokens) if token != draft[i]), len(draft) - 1) + 1
        part = slice(start, start + kept)
        found.append(Settled(tokens[:kept], decided.draws[part].tolist(), ours[part].tolist(), theirs[part].tolist()))
        start += len(draft)
    return found


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
    ends = np.cumsum([0, *counts]).tolist()
    drafted: list[int] = [] if metadata is None else metadata.draft_token_ids.tolist()
    before: Drafting | None = getattr(runner.drafter, "tracefactory_drafting", None)
    asked, written = zip(*(_asked(runner.requests[name]) for name in names), strict=True)
    known = {} if before is None else {name: row for row, name in enumerate(before.names)}
    ruled = [row for row, name in enumerate(names) if written[row] and counts[row] and name in known]
    ruled = [row for row in ruled if asked[row] is not NOBODY]
    settled: dict[int, Settled] = {}
    if ruled and before is not None:
        places = [place for row in ruled for place in range(ends[row], ends[row + 1])]
        targets = logits[metadata.target_logits_indices[places]].float()
        drafts = [drafted[ends[row] : ends[row + 1]] for row in ruled]
        at = [written[row] - 1 for row in ruled]
        told = settle([asked[row] for row in ruled], at, drafts, before, [known[names[row]] for row in ruled], targets)
        settled = dict(zip(ruled, told, strict=True))
    for row in set(range(len(names))) - settled.keys():
        if asked[row] is not NOBODY and not written[row]:
            settled[row] = Settled([asked[row].first], [0], [0.0], [0.0])
        else:
            likeliest = int(logits[ends[row] + row].argmax())  # behind each draft there is one row more
            settled[row] = Settled([likeliest], [NO_DRAFT - 1], [_UNKNOWN], [_UNKNOWN])
    new = [settled[row] for row in range(len(names))]
    # the first token is the end of the prompt
    positions = [before_now + len(one.tokens) - 1 for before_now, one in zip(written, new, strict=True)]
    return new, Drafting(names, list(asked), positions)


def _asked(state: Any) -> tuple[Asked, int]:
    """Return what a request of vLLM wants, and how many tokens it has."""
    extra = (state.sampling_params and state.sampling_params.extra_args) or {}
    told = extra.get(ARGUMENT)
    return (NOBODY if told is None else Asked.of(told)), len(state.output_token_ids)


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
