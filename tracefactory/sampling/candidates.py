"""From logits to what a decision needs: the likeliest tokens of P places, with their weights for drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracefactory.sampling.noise import Floats, Longs, Noise

NO_TOKEN = -1


@dataclass(frozen=True)
class Sampling:
    """How a model's tokens are drawn: from its `top_k` likeliest within the nucleus `top_p` at `temperature`.

    At temperature 0 it is the likeliest token. `tested` says which probability a threshold is held against: that of the
    model itself (`raw`: temperature 1, whole vocabulary), or that of the distribution drawn from (`tempered`:
    temperature and nucleus applied, before `top_k`).
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 20
    tested: Literal["raw", "tempered"] = "raw"


@dataclass(frozen=True, eq=False)
class Pools:
    """The pools of P places, each at most k tokens, likeliest first.

    `weights` are natural logarithms of what tokens are drawn by (not normalised), -inf for one that cannot be drawn;
    `tested` are probabilities to hold against a threshold, 0 for one outside of the pool; `totals` [P] are the
    logarithms of the sums of exponentiated logits, by which any logit becomes a log-probability.
    """

    ids: Longs
    weights: Floats
    tested: Floats
    totals: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: Longs | NDArray[np.bool_] | slice) -> Pools:
        return Pools(self.ids[chosen], self.weights[chosen], self.tested[chosen], self.totals[chosen])

    @classmethod
    def join(cls, parts: Sequence[Pools]) -> Pools:
        """Return the places of all parts, in order."""
        width = max(part.ids.shape[1] for part in parts)
        padded = [part._widened(width) for part in parts]
        return cls(*(np.concatenate([getattr(one, field.name) for one in padded]) for field in fields(cls)))

    def draw(self, noise: Noise, stream: int) -> Longs:
        """Return one draw per place, NO_TOKEN where nothing can be drawn."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        scores = self.weights + noise.gumbel(stream, self.ids)
        best = scores.argmax(axis=1)
        rows = np.arange(len(self))
        return np.where(np.isneginf(scores[rows, best]), NO_TOKEN, self.ids[rows, best])

    def probability(self, tokens: Longs) -> Floats:
        """Return the tested probability of one token per place, 0 when it is not in the pool."""
        found: Floats = np.where(self.ids == tokens[:, None], self.tested, 0.0).sum(axis=1)
        return found

    def only(self, allowed: NDArray[np.bool_]) -> Pools:
        """Return the pools with only `allowed` [P, k] left to draw."""
        return Pools(self.ids, np.where(allowed, self.weights, -np.inf), self.tested, self.totals)

    def _widened(self, width: int) -> Pools:
        missing = ((0, 0), (0, width - self.ids.shape[1]))
        return Pools(
            np.pad(self.ids, missing, constant_values=NO_TOKEN),
            np.pad(self.weights, missing, constant_values=-np.inf),
            np.pad(self.tested, missing),
            self.totals,
        )


def pools_of(logits: Any, samplings: Sequence[Sampling], allowed: NDArray[np.bool_] | None = None) -> Pools:
    """Return the pools of logits [P, vocabulary], drawn from by the sampling of each place.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`. Tokens that are not `allowed`
    (by id) keep their place among the likeliest but are never drawn, as in the authors' code of reverse speculative
    decoding. Beside the logits this takes one array of their size.
    """
    heat = logits.new_tensor([one.temperature or 1.0 for one in samplings])
    width = min(max(one.top_k for one in samplings), logits.shape[1])
    values, ids = logits.topk(width, dim=1)
    totals = logits.logsumexp(dim=1, keepdim=True)
    scaled = logits / heat[:, None]
    log_total = scaled.logsumexp(dim=1, keepdim=True)

    def mass(row: int) -> float:
        """Return the probability of a nucleus that is wider than the pool."""
        ordered = (scaled[row].sort(descending=True).values - log_total[row]).exp().double().cpu().numpy()
        return _nucleus(ordered, samplings[row].top_p)

    raw = (values - totals).double().cpu().numpy()
    drawn = (values / heat[:, None] - log_total).double().cpu().numpy()
    return _pools(ids.cpu().numpy(), raw, drawn, totals[:, 0].double().cpu().numpy(), samplings, allowed, mass)


def pools_between(
    likeliest: Sequence[Sequence[tuple[int, float]]],
    samplings: Sequence[Sampling],
    vocabulary: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[Pools, Pools]:
    """Return the pools of P places of which only the likeliest tokens (id, log-probability) are known.

    What the other tokens weigh at a temperature lies between bounds: their probability at temperature 1 is known, and
    none is likelier than the last that is known. The pools come twice, by the least and by the most that they can
    weigh, so that what follows from both follows from `pools_of` too. `vocabulary` is how many tokens there are, or
    more. Places must have at least `top_k` tokens each.
    """
    most_known = max(len(row) for row in likeliest)
    ids = np.full((len(likeliest), most_known), NO_TOKEN, dtype=np.int64)
    raw = np.full(ids.shape, -np.inf)
    for place, row in enumerate(likeliest):
        ids[place, : len(row)], raw[place, : len(row)] = zip(*row, strict=True)
    power = np.array([1 / (one.temperature or 1.0) for one in samplings])
    rest = np.maximum(1 - np.exp(raw).sum(axis=1), 0.0)
    known = np.array([len(row) for row in likeliest])
    even = rest**power * np.maximum(vocabulary - known, 1) ** (1 - power)  # as many tokens as there can be
    steep = rest * np.exp(raw[np.arange(len(raw)), known - 1] * (power - 1))  # all as likely as the last known one
    width = max(one.top_k for one in samplings)
    found = []
    for tail, slack in ((np.minimum(even, steep), 0.0), (np.maximum(even, steep), 1.0)):
        heated = raw * power[:, None]
        drawn = heated - np.log(np.exp(heated).sum(axis=1) + tail)[:, None]

        def mass(row: int, drawn: Floats = drawn, slack: float = slack) -> float:
            """Return the probability of a nucleus that is wider than the pool; its last token may be an unknown one."""
            ordered, top_p = np.exp(drawn[row, : known[row]]), samplings[row].top_p
            if ordered.sum() >= top_p:
                return _nucleus(ordered, top_p)
            return float(min(1.0, top_p + slack * ordered[-1]))

        cut = (ids[:, :width], raw[:, :width], drawn[:, :width])
        found.append(_pools(*cut, np.zeros(len(ids)), samplings, allowed, mass))
    return found[0], found[1]


def _pools(
    ids: Longs,
    raw: Floats,
    drawn: Floats,
    totals: Floats,
    samplings: Sequence[Sampling],
    allowed: NDArray[np.bool_] | None,
    mass: Callable[[int], float],
) -> Pools:
    """Return pools from log-probabilities [P, k] by the model itself (`raw`) and at the temperature (`drawn`).

    `mass` gives the probability of the nucleus of a place whose pool does not hold all of it.
    """
    found = np.exp(drawn)
    top_p = np.array([one.top_p for one in samplings])[:, None]
    greedy = np.array([one.temperature == 0 for one in samplings])[:, None]
    place = np.arange(ids.shape[1])[None, :]
    inside = place < np.array([one.top_k for one in samplings])[:, None]
    kept = inside & np.where(greedy, place == 0, found.cumsum(axis=1) - found < top_p)
    tested = np.where(inside, np.exp(raw), 0.0)
    tempered = np.array([one.tested == "tempered" for one in samplings])
    if tempered.any():
        whole = np.ones((len(found), 1))
        for row in np.flatnonzero(tempered & ~greedy[:, 0]):
            inner = found[row].sum() >= top_p[row, 0]
            whole[row] = _nucleus(found[row], top_p[row, 0]) if inner else mass(int(row))
        tested[tempered] = (np.where(kept, np.where(greedy, 1.0, found), 0.0) / whole)[tempered]
    drawable = kept if allowed is None else kept & allowed[ids]
    return Pools(ids, np.where(drawable, drawn, -np.inf), tested, totals)


def _nucleus(ordered: Floats, top_p: float) -> float:
    """Return the probability of the nucleus, from probabilities in falling order."""
    before = ordered.cumsum() - ordered
    return float(ordered[before < top_p].sum())
