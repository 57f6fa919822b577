from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from tracefactory.students.head import ScoringHead, peak_bytes, to_host


def layer(vocab: int, hidden: int, *, bias: bool = False, scale: float = 1.0) -> torch.nn.Linear:
    torch.manual_seed(0)
    made = torch.nn.Linear(hidden, vocab, bias=bias).requires_grad_(False)
    made.weight.mul_(scale)
    return made


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_equal_a_whole_float64_log_softmax(chunk: int, bias: bool) -> None:
    output = layer(5_000, 32, bias=bias, scale=8.0)
    hidden, targets = torch.randn(64, 32), torch.randint(0, 5_000, (64,))
    logprobs, ranks, entropies, likeliest = to_host(*ScoringHead(output, chunk).score(hidden, targets))
    whole = output.double()(hidden.double()).log_softmax(dim=1)
    expected = whole.gather(1, targets[:, None])
    np.testing.assert_allclose(logprobs, expected[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(entropies, -(whole.exp() * whole).sum(dim=1).numpy(), atol=1e-5)
    assert ranks.tolist() == ((whole > expected).sum(dim=1) + 1).tolist()
    assert likeliest.tolist() == whole.argmax(dim=1).tolist()
    assert (logprobs.dtype, ranks.dtype, entropies.dtype) == (np.float32, np.int32, np.float32)


def test_ties_share_the_best_rank() -> None:
    output = torch.nn.Linear(1, 5, bias=False).requires_grad_(False)
    output.weight[:, 0] = torch.tensor([2.0, 3.0, 3.0, 2.0, 1.0])
    _, ranks, _, _ = ScoringHead(output, 8).score(torch.ones(5, 1), torch.arange(5))
    assert ranks.tolist() == [3, 1, 1, 3, 5]


def test_half_precision_states_are_ranked_on_float32_logits() -> None:
    output = layer(20_000, 64)
    hidden, targets = torch.randn(50, 64).bfloat16(), torch.randint(0, 20_000, (50,))
    half = layer(20_000, 64).bfloat16()
    _, ranks, _, _ = ScoringHead(half, 16).score(hidden, targets)
    logits = torch.nn.functional.linear(hidden.double(), half.weight.double())
    assert ranks.tolist() == ((logits > logits.gather(1, targets[:, None])).sum(dim=1) + 1).tolist()
    assert output.weight.dtype == torch.float32


def test_logits_that_are_not_finite_are_an_error_not_a_score() -> None:
    hidden = torch.zeros(3, 4)
    hidden[1, 0] = float("inf")
    with pytest.raises(ArithmeticError, match="not finite"):
        to_host(*ScoringHead(layer(10, 4), 2).score(hidden, torch.zeros(3, dtype=torch.long)))


def test_peak_memory_stays_within_the_bound_for_long_traces() -> None:
    """3,072 positions of 151,936 words: the float32 logits alone would be 1.9 GB, the bound for chunk 64 is 78 MB."""
    script = """
        import resource, torch
        from tracefactory.students.head import ScoringHead
        torch.set_num_threads(2)
        output = torch.nn.Linear(16, 151_936, bias=False).requires_grad_(False)
        head = ScoringHead(output, 64)
        hidden, targets = torch.randn(3_072, 16), torch.randint(0, 151_936, (3_072,))
        torch.nn.functional.linear(hidden[:8], output.weight).exp_()  # the libraries' own buffers are there now
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        head.score(hidden, targets)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    bound = peak_bytes(64, 151_936)
    assert int(done.stdout) <= bound + 32 * 2**20
    assert bound < 80e6
