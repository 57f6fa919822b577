"""A plugin for vLLM 0.32 (V1 model runner): reverse speculative decoding inside one engine.

The student is the engine's target model and the teacher its draft model. The plugin replaces two functions of vLLM:
where the draft model samples, the teacher draws with the noise of the position; where the target model verifies a
draft, the rule of `acceptance.py` decides instead of the ratio of speculative decoding. Both have all logits, so the
tokens are those of the in-process engine.

A request opts in with the extra argument `tracefactory_rsd` and a prompt without its last token: an engine has no draft
for the first token that it samples, so that token is given as `first`. Each token is returned with the student's
log-probability as its own, with the number of its draw as its rank (1: the student's own, 2: the teacher's first draw,
...), and with the teacher's log-probability as that of the likeliest other token. Requests that do not opt in get the
likeliest tokens of the student.

The plugin depends on vLLM's internals. `install` rejects other versions, and the client detects a server that does not
run the plugin, because its first token is not the given one. In addition to what vLLM plans for, a step needs memory
for the teacher's logits [requests, K, vocabulary] in float32 and for about three copies of the student's. The code is
loaded into vLLM's own environment, see `plugin_dir.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tracefactory.sampling.acceptance import Acceptance, decide
from tracefactory.sampling.candidates import NO_TOKEN, Candidates, Sampling, candidates_of
from tracefactory.sampling.noise import TEACHER, Noise

VERSION = "0.32."
ARGUMENT = "tracefactory_rsd"
NO_DRAFT = 100
"""The rank of a token without a draft, for example after a preemption; the trace cannot be used."""

_UNKNOWN = -9999.0  # what vLLM's server writes for a log-probability that JSON cannot represent


@dataclass(frozen=True)
class TraceRequest:
    """The options of a request: noise key, first token, sampling of both models, rule, and vocabulary size."""

    key: int
    first: int
    teacher: Sampling
    student: Sampling
    rule: Acceptance
    tokens: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TraceRequest:
        """Read a request's extra argument; invalid values raise KeyError or TypeError."""
        sampling = {role: Sampling(**options[role]) for role in ("teacher", "student")}
        rule = Acceptance(p=options["p"], draws=options["draws"])
        return cls(key=options["key"], first=options["first"], rule=rule, tokens=options["tokens"], **sampling)


NOT_REQUESTED = TraceRequest(0, 0, Sampling(temperature=0), Sampling(temperature=0), Acceptance(p=1, draws=1), 1 << 62)
"""The options of a request that did not opt in."""


@dataclass
class Drafting:
    """The state of one step that the target model passes to the draft model: requests and their first positions.

    For each drafted token, the draft model adds its candidates and logits [requests, vocabulary] of all requests.
    """

    names: list[str]
    requests: list[TraceRequest]
    positions: list[int]
    candidates: list[Candidates] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)

    def draw(self, logits: Any) -> Any:
        """Return the teacher's draws for the next position of every request; record their candidates and logits."""
        candidates = candidates_of(logits, [one.teacher for one in self.requests], allowed(self.requests, logits))
        drawn = candidates.draw(noise(self.requests, self.positions, len(self.candidates)), TEACHER)
        self.candidates.append(candidates)
        self.logits.append(logits)
        likeliest = logits.argmax(dim=-1)
        tokens = torch.from_numpy(np.maximum(drawn, 0)).to(logits.device)
        return torch.where(torch.from_numpy(drawn == NO_TOKEN).to(logits.device), likeliest, tokens)


@dataclass(frozen=True, eq=False)
class NewTokens:
    """The new tokens of one request, with the draw and both models' log-probabilities of each."""

    tokens: list[int]
    draws: list[int]
    student: list[float]
    teacher: list[float]


def decide_tokens(
    requests: Sequence[TraceRequest],
    positions: Sequence[int],
    drafts: Sequence[Sequence[int]],
    before: Drafting,
    rows: Sequence[int],
    logits: Any,
) -> list[NewTokens]:
    """Decide the drafts of requests by the rule, each up to the first token that differs from the draft.

    `positions` are the positions of the drafts' first tokens in the traces, `rows` the rows of the requests in
    `before`, and `logits` [sum of the drafts' lengths, vocabulary] those of the target model.
    """
    drafted = [(index, offset) for index, draft in enumerate(drafts) for offset in range(len(draft))]
    by_token = [requests[index] for index, _ in drafted]
    teacher_rows = np.array([offset * len(before.names) + rows[index] for index, offset in drafted])
    teacher = Candidates.concatenate(before.candidates)[teacher_rows]
    student = candidates_of(logits, [request.student for request in by_token])
    token_noise = noise(by_token, [positions[index] + offset for index, offset in drafted], 0)
    decided = decide([request.rule for request in by_token], teacher, student, token_noise)
    chosen = torch.from_numpy(decided.tokens).to(logits.device)
    student_logprobs = logits.gather(1, chosen[:, None])[:, 0].double().cpu().numpy() - student.totals
    teacher_logprobs = np.zeros(len(drafted))
    for step, teacher_logits in enumerate(before.logits):
        here = np.array([place for place, (_, offset) in enumerate(drafted) if offset == step], dtype=np.int64)
        if len(here):
            lines = torch.tensor([rows[drafted[place][0]] for place in here], device=teacher_logits.device)
            teacher_logprobs[here] = teacher_logits[lines, chosen[torch.from_numpy(here)]].double().cpu().numpy()
    teacher_logprobs -= teacher.totals
    new_tokens, start = [], 0
    for draft in drafts:
        tokens = decided.tokens[start : start + len(draft)].tolist()
        kept = next((i for i, token in enumerate(tokens) if token != draft[i]), len(draft) - 1) + 1
        part = slice(start, start + kept)
        logprobs = student_logprobs[part].tolist(), teacher_logprobs[part].tolist()
        new_tokens.append(NewTokens(tokens[:kept], decided.draws[part].tolist(), *logprobs))
        start += len(draft)
    return new_tokens


def noise(requests: Sequence[TraceRequest], positions: Sequence[int], offset: int) -> Noise:
    """Return the noise of one position per request."""
    keys = np.array([one.key for one in requests], dtype=np.uint64)
    return Noise(keys, np.array(positions, dtype=np.int64) + offset)


def allowed(requests: Sequence[TraceRequest], logits: Any) -> Any:
    """Return a mask of the ids that a model may propose; it excludes logits without a token."""
    return np.arange(logits.shape[-1]) < max(
        (one.tokens for one in requests if one is not NOT_REQUESTED), default=1 << 62
    )


def sample(runner: Any, logits: Any, metadata: Any) -> tuple[list[NewTokens], Drafting]:
    """Return the new tokens of every request of the batch, and the state for the draft model.

    `runner` is vLLM's model runner; `logits` and `metadata` are the arguments of its `_sample`.
    """
    names = list(runner.input_batch.req_ids)
    counts = [0] * len(names) if metadata is None else list(metadata.num_draft_tokens)
    ends = np.cumsum([0, *counts]).tolist()
    drafted: list[int] = [] if metadata is None else metadata.draft_token_ids.tolist()
    before: Drafting | None = getattr(runner.drafter, "tracefactory_drafting", None)
    requests, written = zip(*(_request_state(runner.requests[name]) for name in names), strict=True)
    known = {} if before is None else {name: row for row, name in enumerate(before.names)}
    ruled = [row for row, name in enumerate(names) if written[row] and counts[row] and name in known]
    ruled = [row for row in ruled if requests[row] is not NOT_REQUESTED]
    new_tokens: dict[int, NewTokens] = {}
    if ruled and before is not None:
        places = [place for row in ruled for place in range(ends[row], ends[row + 1])]
        targets = logits[metadata.target_logits_indices[places]].float()
        drafts = [drafted[ends[row] : ends[row + 1]] for row in ruled]
        first = [written[row] - 1 for row in ruled]
        rows_before = [known[names[row]] for row in ruled]
        decided = decide_tokens([requests[row] for row in ruled], first, drafts, before, rows_before, targets)
        new_tokens = dict(zip(ruled, decided, strict=True))
    for row in set(range(len(names))) - new_tokens.keys():
        if requests[row] is not NOT_REQUESTED and not written[row]:
            new_tokens[row] = NewTokens([requests[row].first], [0], [0.0], [0.0])
        else:
            likeliest = int(logits[ends[row] + row].argmax())  # each draft is followed by one more row
            new_tokens[row] = NewTokens([likeliest], [NO_DRAFT - 1], [_UNKNOWN], [_UNKNOWN])
    new = [new_tokens[row] for row in range(len(names))]
    # the first token is the last token of the prompt, so it does not count
    positions = [count + len(row_tokens.tokens) - 1 for count, row_tokens in zip(written, new, strict=True)]
    return new, Drafting(names, list(requests), positions)


def _request_state(state: Any) -> tuple[TraceRequest, int]:
    """Return the options and the number of output tokens of one of vLLM's requests."""
    extra = (state.sampling_params and state.sampling_params.extra_args) or {}
    options = extra.get(ARGUMENT)
    return (NOT_REQUESTED if options is None else TraceRequest.of(options)), len(state.output_token_ids)


def install() -> None:
    """Install the plugin; vLLM calls this in each of its processes.

    Raises:
        RuntimeError: for an unsupported version of vLLM.
    """
    import vllm
    from vllm.v1.outputs import LogprobsTensors, SamplerOutput
    from vllm.v1.spec_decode.draft_model import DraftModelProposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not vllm.__version__.startswith(VERSION):
        raise RuntimeError(f"tracefactory's plugin supports vLLM {VERSION}x, but this is vLLM {vllm.__version__}")
    plain = DraftModelProposer._sample_draft_tokens

    def draw_drafts(self: Any, hidden: Any, sampling_metadata: Any) -> Any:
        drafting = getattr(self, "tracefactory_drafting", None)
        if drafting is None or len(hidden) != len(drafting.names):
            return plain(self, hidden, sampling_metadata)
        return drafting.draw(self.model.compute_logits(hidden).float()), None

    def decide_drafts(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        new_tokens, self.drafter.tracefactory_drafting = sample(self, logits, spec_decode_metadata)
        width = 1 if spec_decode_metadata is None else spec_decode_metadata.max_spec_len + 1
        wanted = self.input_batch.sampling_metadata.max_num_logprobs
        logprobs = None if wanted is None else LogprobsTensors(*columns(new_tokens, width, wanted, logits))
        return SamplerOutput(sampled_token_ids=padded(new_tokens, width, logits), logprobs_tensors=logprobs)

    DraftModelProposer._sample_draft_tokens = draw_drafts
    GPUModelRunner._sample = decide_drafts


def padded(new_tokens: Sequence[NewTokens], width: int, logits: Any) -> Any:
    """Return the tokens in vLLM's format: [requests, width], padded with -1."""
    rows = [[*one.tokens, *[-1] * (width - len(one.tokens))] for one in new_tokens]
    return torch.tensor(rows, dtype=torch.int32, device=logits.device)


def columns(new_tokens: Sequence[NewTokens], width: int, wanted: int, logits: Any) -> tuple[Any, Any, Any]:
    """Return token ids and log-probabilities [requests * width, wanted + 1], and ranks [requests * width].

    The first column is the token with the student's log-probability, the second has the teacher's log-probability of
    it. The ids in a row differ because vLLM stores log-probabilities by id.
    """
    count = len(new_tokens) * width
    ids = np.zeros((count, wanted + 1), dtype=np.int32)
    values = np.full((count, wanted + 1), _UNKNOWN, dtype=np.float32)
    ranks = np.ones(count, dtype=np.int64)
    for row, one in enumerate(new_tokens):
        for offset, token in enumerate(one.tokens):
            at = row * width + offset
            ids[at] = (token + np.arange(wanted + 1)) % logits.shape[-1]
            values[at, :2] = (one.student[offset], one.teacher[offset])[: wanted + 1]
            ranks[at] = one.draws[offset] + 1
    return tuple(torch.from_numpy(one).to(logits.device) for one in (ids, values, ranks))
