"""From logits to what a decision needs: the likeliest tokens of P places, with their weights for drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tracefactory.decoders.noise import Floats, Longs, Noise
from tracefactory.schema import Frozen

NO_TOKEN = -1


class Sampling(Frozen):
    """How a model's tokens are drawn: from its `top_k` likeliest within the nucleus `top_p` at `temperature`.

    At temperature 0 it is the likeliest token. `tested` says which probability a threshold is held against: that of the
    model itself (`raw`: temperature 1, whole vocabulary), or that of the distribution drawn from (`tempered`:
    temperature and nucleus applied, before `top_k`).
    """

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=20, ge=1)
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
    raw = (values - totals).double().cpu().numpy()
    scaled = logits / heat[:, None]
    log_total = scaled.logsumexp(dim=1, keepdim=True)
    drawn = (values / heat[:, None] - log_total).double().cpu().numpy()
    found, tokens = np.exp(drawn), ids.cpu().numpy()
    top_p = np.array([one.top_p for one in samplings])[:, None]
    greedy = np.array([one.temperature == 0 for one in samplings])[:, None]
    place = np.arange(width)[None, :]
    inside = place < np.array([one.top_k for one in samplings])[:, None]
    kept = inside & np.where(greedy, place == 0, found.cumsum(axis=1) - found < top_p)
    tested = np.where(inside, np.exp(raw), 0.0)
    tempered = np.array([one.tested == "tempered" for one in samplings])
    if tempered.any():
        whole = np.ones((len(found), 1))
        for row in np.flatnonzero(tempered & ~greedy[:, 0]):
            whole[row] = _nucleus_mass(found[row], scaled[row], log_total[row], top_p[row, 0])
        tested[tempered] = (np.where(kept, np.where(greedy, 1.0, found), 0.0) / whole)[tempered]
    drawable = kept if allowed is None else kept & allowed[tokens]
    return Pools(tokens, np.where(drawable, drawn, -np.inf), tested, totals[:, 0].double().cpu().numpy())


def _nucleus_mass(likeliest: Floats, scaled: Any, log_total: Any, top_p: float) -> float:
    """Return the probability of the nucleus, from the likeliest tokens alone where they reach it."""
    if likeliest.sum() < top_p:
        likeliest = (scaled.sort(descending=True).values - log_total).exp().double().cpu().numpy()
    before = likeliest.cumsum() - likeliest
    return float(likeliest[before < top_p].sum())
