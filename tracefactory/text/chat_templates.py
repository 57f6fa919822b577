"""Chat templates: the text that a model is given for a list of messages.

A `ChatTemplate` renders with a tokenizer of transformers, or (`ChatTemplate.of_source`) with the template's source
alone, which needs no tokenizer and so can be checked at once. Both report every failure of a template as `RenderError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
_MARK = "mark of the question"


class RenderError(ValueError):
    """A conversation cannot be rendered without loss; `reason` is a stable snake_case identifier."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[RenderError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class ChatTemplate:
    """A chat template.

    Args:
        apply: renders messages; it is called with `add_generation_prompt` and `tools` as keywords.
    """

    def __init__(self, apply: Callable[..., str]) -> None:
        self._apply = apply

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> ChatTemplate:
        """Return the template of a tokenizer of transformers."""
        return cls(lambda messages, **options: str(tokenizer.apply_chat_template(messages, tokenize=False, **options)))

    @classmethod
    def of_source(cls, source: str, *, bos: str = "", eos: str = "") -> ChatTemplate:
        """Return a template from its source, rendered in the environment that transformers gives to templates.

        Args:
            source: the Jinja text.
            bos: the text of the token at the start of a conversation.
            eos: the text of the stop token.

        Raises:
            RenderError: when the source is no valid template.
        """
        try:
            compiled = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise RenderError("template_failed", f"it is no valid template: {error}") from error
        return cls(
            lambda messages, **options: compiled.render(messages=messages, bos_token=bos, eos_token=eos, **options)
        )

    def text(self, messages: Sequence[Message], *, generate: bool, tools: Sequence[Any] | None = None) -> str:
        """Return messages as text.

        Args:
            messages: the conversation.
            generate: whether the beginning of the assistant's turn follows.
            tools: the function schemas of the tools.

        Raises:
            RenderError: when the template fails.
        """
        try:
            copies = [dict(message) for message in messages]
            return self._apply(copies, add_generation_prompt=generate, tools=list(tools) if tools else None)
        except Exception as error:  # an expression in a template can raise any exception
            raise RenderError("template_failed", f"it fails with {error or type(error).__name__}") from error

    @cached_property
    def generation(self) -> str:
        """The text after the user's message that begins the assistant's turn, the end of the user's turn included."""
        return self.text([{"role": "user", "content": _MARK}], generate=True).rpartition(_MARK)[2]


class _Generation(Extension):
    """The tag of templates for training that marks what the assistant writes; it changes no text."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Return the body of the tag."""
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment of templates (https://huggingface.co/docs/transformers/chat_templating_writing)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": fail, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment
