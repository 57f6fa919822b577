"""Candidate tokens: the likeliest tokens of each position, with the weights to draw them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracefactory.sampling.noise import Floats, Ints, Noise

NO_TOKEN = -1


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of a model: its `top_k` likeliest tokens within the nucleus `top_p` at `temperature`.

    Temperature 0 takes the likeliest token. `tested` selects the probability that a threshold is compared with: that of
    the model itself (`raw`: temperature 1, whole vocabulary), or that of the distribution drawn from (`tempered`:
    temperature and nucleus applied, before `top_k`).
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 20
    tested: Literal["raw", "tempered"] = "raw"


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidate tokens of P positions, at most k each, likeliest first.

    `weights` are the natural logarithms of the drawing weights (not normalised), -inf for tokens that cannot be drawn.
    `tested` are the probabilities to compare with a threshold, 0 for tokens outside `top_k`. `totals` [P] are the
    log-sum-exps of the logits: subtracting them turns logits into log-probabilities.
    """

    ids: Ints
    weights: Floats
    tested: Floats
    totals: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: Ints | NDArray[np.bool_] | slice) -> Candidates:
        return Candidates(self.ids[chosen], self.weights[chosen], self.tested[chosen], self.totals[chosen])

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """Return the positions of all parts, in order."""
        width = max(part.ids.shape[1] for part in parts)
        missing = [((0, 0), (0, width - part.ids.shape[1])) for part in parts]
        pairs = list(zip(parts, missing, strict=True))
        return cls(
            np.concatenate([np.pad(part.ids, columns, constant_values=NO_TOKEN) for part, columns in pairs]),
            np.concatenate([np.pad(part.weights, columns, constant_values=-np.inf) for part, columns in pairs]),
            np.concatenate([np.pad(part.tested, columns) for part, columns in pairs]),
            np.concatenate([part.totals for part in parts]),
        )

    def draw(self, noise: Noise, stream: int) -> Ints:
        """Return one draw per position.

        Args:
            noise: the random numbers of the positions.
            stream: the stream of random numbers, see `sampling.noise`.

        Returns:
            Token ids [P], NO_TOKEN for a position without drawable candidates.
        """
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        scores = self.weights + noise.gumbel(stream, self.ids)
        best = scores.argmax(axis=1)
        rows = np.arange(len(self))
        return np.where(np.isneginf(scores[rows, best]), NO_TOKEN, self.ids[rows, best])

    def probability(self, tokens: Ints) -> Floats:
        """Return the tested probability of one token per position, 0 when it is not a candidate."""
        found: Floats = np.where(self.ids == tokens[:, None], self.tested, 0.0).sum(axis=1)
        return found


def candidates_of(logits: Any, samplings: Sequence[Sampling], allowed: NDArray[np.bool_] | None = None) -> Candidates:
    """Return the candidates of logits under the sampling parameters of each position.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`. Needs memory for one more
    array of the size of the logits.

    Args:
        logits: a tensor [P, vocabulary].
        samplings: the sampling parameters of each position.
        allowed: a mask over token ids; other tokens keep their rank but are never drawn, as in the reference code of
            reverse speculative decoding. None allows all.
    """
    temperatures = logits.new_tensor([sampling.temperature or 1.0 for sampling in samplings])
    width = min(max(sampling.top_k for sampling in samplings), logits.shape[1])
    values, ids = logits.topk(width, dim=1)
    totals = logits.logsumexp(dim=1, keepdim=True)
    scaled = logits / temperatures[:, None]
    log_total = scaled.logsumexp(dim=1, keepdim=True)

    def nucleus_mass(row: int) -> float:
        """Return the probability of a nucleus that has more tokens than the candidates."""
        ordered = (scaled[row].sort(descending=True).values - log_total[row]).exp().double().cpu().numpy()
        return _nucleus(ordered, samplings[row].top_p)

    raw = (values - totals).double().cpu().numpy()
    tempered = (values / temperatures[:, None] - log_total).double().cpu().numpy()
    logit_totals = totals[:, 0].double().cpu().numpy()
    return _candidates(ids.cpu().numpy(), raw, tempered, logit_totals, samplings, allowed, nucleus_mass)


def candidate_bounds(
    likeliest: Sequence[Sequence[tuple[int, float]]],
    samplings: Sequence[Sampling],
    vocabulary: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[Candidates, Candidates]:
    """Return bounds on the candidates of P positions, given only their likeliest tokens.

    The weight of the unknown tokens at a temperature is bounded: their total probability at temperature 1 is known, and
    none is likelier than the last known token.

    Args:
        likeliest: for each position at least its `top_k` likeliest tokens (id, log-probability).
        samplings: the sampling parameters of each position.
        vocabulary: the number of tokens, or an upper bound of it.
        allowed: as for `candidates_of`.

    Returns:
        The candidates under the lower and the upper bound. A conclusion that is true for both is also true for
        `candidates_of` the full logits.
    """
    max_known = max(len(row) for row in likeliest)
    ids = np.full((len(likeliest), max_known), NO_TOKEN, dtype=np.int64)
    raw = np.full(ids.shape, -np.inf)
    for index, row in enumerate(likeliest):
        ids[index, : len(row)], raw[index, : len(row)] = zip(*row, strict=True)
    power = np.array([1 / (sampling.temperature or 1.0) for sampling in samplings])
    rest = np.maximum(1 - np.exp(raw).sum(axis=1), 0.0)
    known = np.array([len(row) for row in likeliest])
    even = rest**power * np.maximum(vocabulary - known, 1) ** (1 - power)  # spread evenly over all unknown tokens
    steep = rest * np.exp(raw[np.arange(len(raw)), known - 1] * (power - 1))  # each as likely as the last known token
    width = max(sampling.top_k for sampling in samplings)
    bounds = []
    for tail, slack in ((np.minimum(even, steep), 0.0), (np.maximum(even, steep), 1.0)):
        scaled = raw * power[:, None]
        tempered = scaled - np.log(np.exp(scaled).sum(axis=1) + tail)[:, None]

        def nucleus_mass(row: int, tempered: Floats = tempered, slack: float = slack) -> float:
            """Return the probability of a nucleus that exceeds the candidates; its last token may be unknown."""
            ordered, top_p = np.exp(tempered[row, : known[row]]), samplings[row].top_p
            if ordered.sum() >= top_p:
                return _nucleus(ordered, top_p)
            return float(min(1.0, top_p + slack * ordered[-1]))

        top = (ids[:, :width], raw[:, :width], tempered[:, :width])
        bounds.append(_candidates(*top, np.zeros(len(ids)), samplings, allowed, nucleus_mass))
    return bounds[0], bounds[1]


def _candidates(
    ids: Ints,
    raw: Floats,
    tempered: Floats,
    totals: Floats,
    samplings: Sequence[Sampling],
    allowed: NDArray[np.bool_] | None,
    nucleus_mass: Callable[[int], float],
) -> Candidates:
    """Return candidates from log-probabilities [P, k] of the model itself (`raw`) and at the temperature (`tempered`).

    `nucleus_mass` returns the probability of the nucleus of a position whose candidates do not contain all of it.
    """
    p = np.exp(tempered)
    top_p = np.array([sampling.top_p for sampling in samplings])[:, None]
    greedy = np.array([sampling.temperature == 0 for sampling in samplings])[:, None]
    rank = np.arange(ids.shape[1])[None, :]
    in_top_k = rank < np.array([sampling.top_k for sampling in samplings])[:, None]
    in_nucleus = in_top_k & np.where(greedy, rank == 0, p.cumsum(axis=1) - p < top_p)
    tested = np.where(in_top_k, np.exp(raw), 0.0)
    test_tempered = np.array([sampling.tested == "tempered" for sampling in samplings])
    if test_tempered.any():
        mass = np.ones((len(p), 1))
        for row in np.flatnonzero(test_tempered & ~greedy[:, 0]):
            complete = p[row].sum() >= top_p[row, 0]
            mass[row] = _nucleus(p[row], top_p[row, 0]) if complete else nucleus_mass(int(row))
        tested[test_tempered] = (np.where(in_nucleus, np.where(greedy, 1.0, p), 0.0) / mass)[test_tempered]
    drawable = in_nucleus if allowed is None else in_nucleus & allowed[ids]
    return Candidates(ids, np.where(drawable, tempered, -np.inf), tested, totals)


def _nucleus(ordered: Floats, top_p: float) -> float:
    """Return the probability of the nucleus, from probabilities in descending order."""
    before = ordered.cumsum() - ordered
    return float(ordered[before < top_p].sum())
