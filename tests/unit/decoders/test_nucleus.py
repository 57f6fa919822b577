"""Draws from a nucleus: the likeliest token, the right frequencies, no token outside, and rows that need all tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracefactory.sampling import nucleus
from tracefactory.sampling.noise import Noise
from tracefactory.sampling.nucleus import draw

LOGITS = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.2, 0.05], dtype=torch.float64))
DRAWS = 20_000


def drawn(logits: torch.Tensor, temperature: float, top_p: float, draws: int = DRAWS) -> np.ndarray:
    """Return the share of each token in draws at different positions."""
    rows = logits.expand(draws, -1)
    noise = Noise(np.full(draws, 7, dtype=np.uint64), np.arange(draws))
    tokens = draw(rows, np.full(draws, temperature), np.full(draws, top_p), noise)
    return np.bincount(tokens, minlength=logits.shape[-1]) / draws


@pytest.mark.parametrize("likeliest", [2, 256])
@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.4, 0.05, 0.3, 0.2, 0.05]),
        (0.5, 1.0, [0.16, 0.0025, 0.09, 0.04, 0.0025]),
        (2.0, 1.0, [0.4**0.5, 0.05**0.5, 0.3**0.5, 0.2**0.5, 0.05**0.5]),
        (1.0, 0.85, [0.4, 0, 0.3, 0.2, 0]),  # the token that crosses the share is in the nucleus
        (1.0, 0.65, [0.4, 0, 0.3, 0, 0]),
        (1.0, 0.3, [1, 0, 0, 0, 0]),
        (0.0, 1.0, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(
    temperature: float, top_p: float, expected: list[float], likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nucleus, "_LIKELIEST", likeliest)  # 2: most rows need the tokens behind
    shares, wanted = drawn(LOGITS, temperature, top_p), np.array(expected) / sum(expected)
    assert np.array_equal(shares[wanted == 0], wanted[wanted == 0])
    assert np.abs(shares - wanted).max() < 5 * np.sqrt(0.25 / DRAWS)


def test_a_row_is_drawn_the_same_beside_any_others() -> None:
    logits = torch.randn(6, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    temperatures, top_p = np.array([0.0, 1.0, 3.0, 0.7, 0.0, 1.0]), np.array([1.0, 1.0, 0.99, 0.9, 0.5, 0.2])
    noise = Noise(np.arange(6, dtype=np.uint64), np.arange(6) * 3)
    together = draw(logits, temperatures, top_p, noise)
    alone = [
        int(draw(logits[row : row + 1], temperatures[row : row + 1], top_p[row : row + 1], noise[row : row + 1])[0])
        for row in range(6)
    ]
    assert together.tolist() == alone
    assert together[[0, 4]].tolist() == logits.argmax(dim=1)[[0, 4]].tolist()
