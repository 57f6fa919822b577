"""Read a request for a pair of models: its decoder, its prompt in tokens, and its stop tokens."""

from __future__ import annotations

from typing import Any

from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.model import ChatRequest
from tracefactory.decoding.decoder import DECODERS, Decoder


def decoder_of(request: ChatRequest) -> Decoder:
    """Return the decoder that a request names (see `tracefactory.stages.sample.family`)."""
    kind = DECODERS.get(request.params["decoder"])
    return kind.model_validate({name: request.params[name] for name in kind.model_fields if name in request.params})


def encoded_prompt(tokenizer: Any, request: ChatRequest) -> tuple[int, ...]:
    """Return the prompt in the student's tokens, rendered with its chat template; a prefill is continued.

    Args:
        tokenizer: the student's tokenizer.
        request: the request, whose last message may be a prefill.
    """
    messages = list(request.messages)
    prefill = messages.pop()["content"] if request.has_prefill else ""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prefill
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def stops_of(named: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Return the student's stop tokens.

    Args:
        named: the stop tokens in the configuration of its model.
        tokenizer: its tokenizer, which has one more.
    """
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in (tokenizer.eos_token_id, *listed) if token is not None)


def served_stops(spec: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Return the stop tokens of a student that a server loads; they equal `stops_of` its model.

    Args:
        spec: the student's checkpoint; without a configuration, only the tokenizer's stop token is returned.
        tokenizer: the student's tokenizer.
    """
    from transformers import AutoConfig, GenerationConfig

    name = spec.model if local_path(spec.model) is None else str(local_path(spec.model))
    for kind in (GenerationConfig, AutoConfig):  # transformers uses the second when there is no first
        try:
            config = kind.from_pretrained(name, revision=spec.revision or "main")
        except (OSError, ValueError):
            continue
        return stops_of(config.eos_token_id, tokenizer)
    return stops_of(None, tokenizer)
