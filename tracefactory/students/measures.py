"""Measures of traces, computed from stored token scores without another forward pass.

Sums and means are over the given tokens: by default those of the words, see `students.over`. p is the student's
probability at temperature 1; surprisal is -ln p in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.rows import Frozen
from tracefactory.core.token_scores import TokenScores
from tracefactory.students.names import acceptance_name
from tracefactory.students.over import Over

RANK_CLIP = 100
_LEAST_NLL = 1e-12


class MeasureParams(Frozen):
    """The cut-offs to measure at. A filter can use only cut-offs that were measured."""

    quantiles: tuple[float, ...] = Field(default=(0.01, 0.05, 0.1), description="Low quantiles of p over the tokens.")
    below: tuple[float, ...] = Field(default=(0.01,), description="Thresholds of p, for the share of tokens below.")
    top_k: tuple[int, ...] = Field(default=(20,), description="Ranks, for the share of tokens outside of them.")
    acceptance: tuple[tuple[float, int], ...] = Field(
        default=((0.01, 20),),
        description="Pairs of a threshold of p and a rank, for the rule of reverse speculative decoding.",
    )


def trace_measures(scores: TokenScores, params: MeasureParams | None = None) -> dict[str, float]:
    """Return every measure of one trace by name.

    Args:
        scores: the scores of the tokens to measure over.
        params: the cut-offs to measure at; None for the defaults.

    Returns:
        tokens, mean_surprisal, perplexity, mean_entropy, min_p, mean_clipped_rank, rank_surprisal, and for each cut-off
        p_q<q>, share_below_p<p>, share_outside_top<k>, acceptance_p<p>_top<k>. mean_entropy is missing when there are
        no entropies; a served student does not report them.

    Raises:
        ValueError: when there are no tokens to measure over.
    """
    params = params or MeasureParams()
    measures = {
        "tokens": float(len(scores)),
        "mean_surprisal": mean_surprisal(scores),
        "perplexity": float(np.exp(mean_surprisal(scores))),
        "min_p": p_quantile(scores, 0.0),
        "mean_clipped_rank": mean_clipped_rank(scores),
        "rank_surprisal": rank_surprisal(scores),
    }
    if not np.isnan(scores.entropies).any():
        measures["mean_entropy"] = float(scores.entropies.mean(dtype=np.float64))
    measures |= {f"p_q{q:g}": p_quantile(scores, q) for q in params.quantiles}
    measures |= {f"share_below_p{p:g}": float(np.mean(scores.logprobs < math.log(p))) for p in params.below}
    measures |= {f"share_outside_top{k}": float(np.mean(scores.ranks > k)) for k in params.top_k}
    measures |= {acceptance_name(p, k): acceptance(scores, p, k) for p, k in params.acceptance}
    return measures


_ABOUT: dict[str, tuple[str, str, Literal["lower", "higher", ""], str]] = {
    # stem: description, unit, better end, source
    "tokens": ("All supervised tokens of the trace, in the student's tokenizer.", "tokens", "", ""),
    "mean_surprisal": ("Mean of -ln p.", "nats per token", "lower", ""),
    "perplexity": ("exp of the mean surprisal.", "", "lower", ""),
    "min_p": ("Smallest probability of a token.", "probability", "higher", ""),
    "mean_clipped_rank": ("Mean of min(rank, 100).", "rank", "lower", "arXiv 2601.14249"),
    "rank_surprisal": ("Sum of clipped ranks over sum of surprisal.", "ranks per nat", "lower", "arXiv 2601.14249"),
    "mean_entropy": ("Mean entropy of the student's distribution.", "nats per token", "", ""),
    "p_q": ("Quantile of p.", "probability", "higher", ""),
    "share_below_p": ("Share of tokens below a probability.", "share", "lower", ""),
    "share_outside_top": ("Share of tokens outside of the student's likeliest.", "share", "lower", ""),
    "acceptance_p": ("Share of tokens that reverse speculative decoding takes.", "share", "higher", "arXiv 2509.22230"),
}
_STEMS = ("p_q", "share_below_p", "share_outside_top", "acceptance_p")  # followed by a cut-off in the name


def measure_columns(student: str, params: MeasureParams, over: Over, *, entropies: bool) -> list[Column]:
    """Return the columns of all measures that `trace_measures` gives under a student."""
    columns = []
    for name in measure_names(params, entropies=entropies):
        stem = name if name in _ABOUT else next(stem for stem in _STEMS if name.startswith(stem))
        about, unit, better, source = _ABOUT[stem]
        about += "" if name == "tokens" else f" Over {over.about}."
        columns.append(Column(name=f"{student}/{name}", description=about, unit=unit, direction=better, source=source))
    return columns


def measure_names(params: MeasureParams, *, entropies: bool) -> tuple[str, ...]:
    """Return the names of the measures of `trace_measures` with these parameters."""
    ones, entropy = np.ones(1, np.int32), np.full(1, 0.0 if entropies else math.nan, np.float32)
    scores = TokenScores(
        token_ids=ones,
        starts=ones,
        ends=ones,
        ranks=ones,
        logprobs=np.zeros(1, np.float32),
        entropies=entropy,
        body_start=0,
    )
    return tuple(trace_measures(scores, params))


def mean_surprisal(scores: TokenScores) -> float:
    """Return the mean of -ln p over tokens, in nats; other work calls its negative global naturalness.

    Raises:
        ValueError: for a trace without supervised tokens.
    """
    if len(scores) == 0:
        raise ValueError("a trace without supervised tokens has no measures")
    return -float(scores.logprobs.mean(dtype=np.float64))


def p_quantile(scores: TokenScores, q: float) -> float:
    """Return the q-quantile of p over tokens: the smallest p that at least a share q of the tokens does not exceed.

    It is the p of a token, without interpolation; q = 0 gives the minimum.
    """
    return float(np.exp(np.quantile(scores.logprobs.astype(np.float64), q, method="inverted_cdf")))


def acceptance(scores: TokenScores, p: float = 0.01, top_k: int = 20) -> float:
    """Return the share of tokens that the rule of reverse speculative decoding would accept.

    The rule (arXiv 2509.22230, and its authors' code) accepts a teacher's token when it is in the student's top 20 and
    the student gives it a probability of at least 0.01. This is an absolute threshold, not the ratio of speculative
    decoding. Here it is applied to a finished trace, token by token, under the student's unmodified distribution
    (temperature 1, no nucleus). Whether the authors compared tempered probabilities depended on their engine.
    """
    return float(np.mean((scores.logprobs >= math.log(p)) & (scores.ranks <= top_k)))


def mean_clipped_rank(scores: TokenScores) -> float:
    """Return the mean over tokens of min(rank, 100)."""
    return float(np.minimum(scores.ranks, RANK_CLIP).mean(dtype=np.float64))


def rank_surprisal(scores: TokenScores) -> float:
    """Return the rank-surprisal ratio of a trace: sum of min(rank, 100) over sum of surprisal; lower is better.

    Definition: arXiv 2601.14249. It is low for tokens with a low probability but a good rank. As in the authors' code,
    the denominator is at least 1e-12, so that a trace with probability 1 has a (very large) value.
    """
    return mean_clipped_rank(scores) / max(mean_surprisal(scores), _LEAST_NLL)


def dataset_rank_surprisal(traces: Iterable[tuple[float, float]]) -> float:
    """Return the rank-surprisal ratio of a set of traces, each given as (mean_clipped_rank, mean_surprisal).

    It is the ratio of the two means over traces (arXiv 2601.14249), so traces have equal weight whatever their length.
    The paper ranks teachers by it, with 200 traces each.

    Raises:
        ValueError: when there are no traces.
    """
    pairs = np.array(list(traces), dtype=np.float64)
    if len(pairs) == 0:
        raise ValueError("no traces to measure")
    rank, surprisal = pairs.mean(axis=0)
    return float(rank / max(surprisal, _LEAST_NLL))
