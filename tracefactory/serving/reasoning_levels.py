"""How much a model reasons, as each provider is told it: the table behind the parameter `reasoning:` of a model.

Sources: the providers' documentation of chat completions, read in November 2026. A level that a provider has no
parameter for is refused when the pipeline is checked; whether a model follows its level is what the canary looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from tracefactory.core.rows import Frozen


class ReasoningTokens(Frozen):
    """A budget of reasoning tokens."""

    tokens: int = Field(ge=1, description="The most tokens of reasoning.")


Reasoning = Literal["off", "low", "medium", "high"] | ReasoningTokens

_Body = Mapping[str, Any]


_LEVELS: Mapping[str, Callable[[str], _Body]] = {
    **dict.fromkeys(
        ("openai", "gemini", "groq", "together", "fireworks", "deepinfra"),
        lambda level: {"reasoning_effort": "none" if level == "off" else level},
    ),
    "openrouter": lambda level: {"reasoning": {"effort": "none" if level == "off" else level}},
    "deepseek": lambda level: {"thinking": {"type": "disabled" if level == "off" else "enabled"}},
    # Servers of open models: the chat template has a switch and no levels.
    **dict.fromkeys(
        ("vllm", "sglang", "llama.cpp"),
        lambda level: {"chat_template_kwargs": {"enable_thinking": level != "off"}},
    ),
}
_TOKENS: Mapping[str, Callable[[int], _Body]] = {
    "openrouter": lambda tokens: {"reasoning": {"max_tokens": tokens}},
    "gemini": lambda tokens: {"extra_body": {"google": {"thinking_config": {"thinking_budget": tokens}}}},
}
_SWITCHES = frozenset({"vllm", "sglang", "llama.cpp", "deepseek"})
"""Providers that can only turn reasoning on and off: every level but `off` is the same."""


def reasoning_body(provider: str, reasoning: Reasoning | None) -> dict[str, Any]:
    """Return the fields of a request that ask for an amount of reasoning.

    Args:
        provider: the provider, by its name in the table; any other name is taken for one that copies OpenAI.
        reasoning: the level, or a budget of tokens; without it, the model decides and there are no fields.

    Raises:
        ValueError: when the provider has no parameter for it.
    """
    if reasoning is None:
        return {}
    known = provider.lower() if provider.lower() in _LEVELS else "openai"
    if isinstance(reasoning, ReasoningTokens):
        if known not in _TOKENS:
            raise ValueError(f"{known} takes no budget of reasoning tokens: use off, low, medium or high")
        return dict(_TOKENS[known](reasoning.tokens))
    if known in _SWITCHES and reasoning in ("low", "medium"):
        raise ValueError(f"{known} can only turn reasoning on and off: use off or high")
    return dict(_LEVELS[known](reasoning))
