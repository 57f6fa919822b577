"""Read a request for models in torch: its decoder, its prompt in tokens, and the stop tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.decoding.decoder import DECODERS, Decoder
from tracefactory.decoding.rollout import RolloutSpec
from tracefactory.serving.encoding import control_tokens_of, encode, ranges_of_texts
from tracefactory.text.chat_templates import ChatTemplate, RenderError
from tracefactory.text.prompt_rendering import continued
from tracefactory.text.reasoning import opens_thinking


def decoder_of(request: ChatRequest) -> Decoder:
    """Return the decoder that a request names (see `tracefactory.stages.sample.family`)."""
    kind = DECODERS.get(request.params["decoder"])
    return kind.model_validate({name: request.params[name] for name in kind.model_fields if name in request.params})


def rollout_spec(tokenizer: Any, request: ChatRequest) -> RolloutSpec:
    """Return what determines the trace that a request asks for; its prompt is in the student's tokens.

    Args:
        tokenizer: the student's tokenizer.
        request: the request, whose last message may be a prefill.

    Raises:
        RequestFailed: when the student's chat template fails.
    """
    params = request.params
    try:
        prompt, turn = prompt_tokens(tokenizer, ChatTemplate.of_tokenizer(tokenizer), request.messages)
    except RenderError as error:
        message = f"the student's chat template: {error}"
        raise RequestFailed(error.reason, message, attempts=1, retryable=False) from error
    return RolloutSpec(
        prompt, decoder_of(request), params["seed"], params["max_tokens"], opened_in_prompt=opens_thinking(turn)
    )


def prompt_tokens(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Mapping[str, Any]]
) -> tuple[tuple[int, ...], str]:
    """Return the tokens that a model continues, and the text of the assistant's turn at their end.

    A prefill, which is a last message of the assistant, is continued. A control token that a message spells is text.

    Args:
        tokenizer: the model's tokenizer.
        template: the tokenizer's chat template.
        messages: the messages.

    Raises:
        RenderError: when the template fails.
    """
    text = continued(template, messages)
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    own = control_tokens_of(tokenizer).values()
    spelled = any(token in str(message["content"]) for message in before for token in own)
    plain = ranges_of_texts(template, before, generate=True) if spelled else []
    return tuple(encode(tokenizer, text, plain)[0]), text[text.rfind(template.generation) :]


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
