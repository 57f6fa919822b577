"""Names of measures that contain parameters, as filters use them."""

from __future__ import annotations


def acceptance_name(p: float, top_k: int) -> str:
    """Return the name of the share of tokens that have at least probability `p` and are in the `top_k` likeliest."""
    return f"acceptance_p{p:g}_top{top_k}"


def local_name(window: int) -> str:
    """Return the name of the local naturalness with `window` steps of context."""
    return f"local_naturalness_w{window}"
