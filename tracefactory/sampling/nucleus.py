"""Draw the next token of every row of a batch by temperature and nucleus, with counter-based random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracefactory.sampling.noise import STUDENT, Floats, Ints, Noise

_LIKELIEST = 256  # tokens that are looked at first: sorting 50,000 takes 60 times as long, and is rarely needed


def draw(logits: Any, temperatures: Floats, top_p: Floats, noise: Noise) -> Ints:
    """Return a token for each row; it depends on that row's logits, parameters and random number alone.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`. The token is where the random
    number falls in it, from the likeliest token on.

    Args:
        logits: a tensor [R, vocabulary].
        temperatures: the temperature of each row; 0 takes the likeliest token.
        top_p: the share of probability that each row draws from, at most 1.
        noise: the random numbers of the rows.
    """
    tokens: Ints = np.empty(len(logits), dtype=np.int64)
    greedy, drawn = temperatures == 0, np.flatnonzero(temperatures > 0)
    if greedy.any():
        tokens[greedy] = logits.argmax(dim=1).cpu().numpy()[greedy]
    if not len(drawn):
        return tokens
    chosen = logits[drawn] if greedy.any() else logits
    probabilities = (chosen / chosen.new_tensor(temperatures[drawn])[:, None]).softmax(dim=1)
    uniform = noise[drawn].uniform(STUDENT, np.zeros((len(drawn), 1), dtype=np.int64))[:, 0]
    left = np.arange(len(drawn))
    for width in (min(_LIKELIEST, logits.shape[1]), logits.shape[1]):
        values, ids = (probabilities if len(left) == len(drawn) else probabilities[left]).topk(width, dim=1)
        share, known = values.double().cpu().numpy(), width == logits.shape[1]
        ranks = _ranks(share, top_p[drawn[left]], uniform[left], known=known)
        found = ranks < width
        tokens[drawn[left[found]]] = ids.cpu().numpy()[found, ranks[found]]
        left = left[~found]
        if not len(left):
            break
    return tokens


def _ranks(probabilities: Floats, top_p: Floats, uniform: Floats, *, known: bool) -> Ints:
    """Return the rank of the drawn token from probabilities [R, k], likeliest first; k where it is beyond them.

    Args:
        probabilities: of the likeliest tokens.
        top_p: of each row.
        uniform: the random number of each row.
        known: whether these are all tokens.
    """
    sums = probabilities.cumsum(axis=1)
    whole = top_p >= 1
    within = whole[:, None] | (sums - probabilities < top_p[:, None])
    mass = np.where(within, sums, 0.0).max(axis=1)
    if not known:
        mass[whole] = 1.0
    ranks: Ints = (sums <= (uniform * mass)[:, None]).sum(axis=1)
    return ranks if known else np.where(whole | (sums[:, -1] >= top_p), ranks, probabilities.shape[1])
