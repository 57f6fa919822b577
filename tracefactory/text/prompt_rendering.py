"""A prompt under a chat template: the text that a model continues, and what the template does to the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError
from tracefactory.text.reasoning import opens_thinking
from tracefactory.text.turns import parts

_OPEN = "<think>"
_ANSWER = "mark of the answer"


class Continues(StrEnum):
    """How a prefill becomes the beginning of the assistant's turn."""

    JOINED = "joined"  # after the prompt for generation, with one opening tag (`continued`)
    APPENDED = "appended"  # after the prompt for generation, as it is: llama.cpp
    RENDERED = "rendered"  # as a message of the template, which is cut after it: vLLM


class Outlined(Protocol):
    """A prompt (`text.prompts.Prompt`)."""

    def outline(self) -> list[dict[str, str]]:
        """Return its messages without values."""
        ...


@dataclass(frozen=True)
class Fault:
    """What a chat template does to a prompt: a stable reason, a sentence, and what to do."""

    reason: str
    detail: str
    remedy: str


def continued(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """Return the text that a model continues.

    A last message of the assistant is a prefill: it follows the prompt for generation unchanged, except for an opening
    tag with which the prompt for generation ends already, and the line break after both.

    Args:
        template: the model's chat template.
        messages: the messages of a request.

    Raises:
        RenderError: when the template fails.
    """
    before, prefill = _split(messages)
    text = template.text(before, generate=True)
    if opens_thinking(template.generation) and prefill.lstrip().startswith(_OPEN):
        prefill = prefill.lstrip().removeprefix(_OPEN)
        return text + (prefill.removeprefix("\n") if text.endswith("\n") else prefill)
    return text + prefill


def prompt_faults(template: ChatTemplate, prompt: Outlined, continues: Continues) -> Iterator[Fault]:
    """Yield what a chat template does to a prompt; no values are needed, since it does the same to all.

    Args:
        template: the model's chat template.
        prompt: the prompt.
        continues: how a prefill is continued.
    """
    before, prefill = _split(prompt.outline())
    try:
        text = template.text(before, generate=True)
    except RenderError as error:
        yield _failed(template, before, error)
        return
    missing = dict(_missing(before, text))
    if "system" in missing:
        yield Fault("system_not_rendered", "it drops the system message", _NO_SYSTEM)
    if "user" in missing:
        yield Fault("question_not_rendered", "it drops or rewrites a user's message", _OTHER_TEMPLATE)
    if "reasoning" in missing:
        yield Fault(
            "example_reasoning_dropped",
            "it removes the reasoning of the worked examples, which then teach to answer without thinking",
            _EXAMPLES_ELSEWHERE,
        )
    elif _doubles_examples(template, before, text):
        detail = "it writes think tags of its own around the reasoning of the worked examples, which has them"
        yield Fault("think_tags_doubled", detail, _EXAMPLES_ELSEWHERE)
    elif "assistant" in missing:
        yield Fault("example_not_rendered", "it drops or rewrites the answer of a worked example", _OTHER_TEMPLATE)
    if prefill:
        yield from _prefill_faults(template, before, prefill, continues)


_NO_SYSTEM = "move the text of `system:` to the beginning of the body"
_EXAMPLES_ELSEWHERE = "write the examples into `system:` or into the body instead of `examples:`: there it keeps them"
_OTHER_TEMPLATE = "set `chat_template:` to one that renders it"


def _split(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Return the messages before a prefill, and the prefill; "" where there is none."""
    if messages and messages[-1]["role"] == "assistant":
        return list(messages[:-1]), str(messages[-1]["content"])
    return list(messages), ""


def _failed(template: ChatTemplate, messages: Sequence[Message], error: RenderError) -> Fault:
    """Return why a template fails with these messages."""
    without = [message for message in messages if message["role"] != "system"]
    if len(without) < len(messages):
        try:
            template.text(without, generate=True)
        except RenderError:
            pass
        else:
            return Fault("no_system_role", f"it has no system role: {error}", _NO_SYSTEM)
    return Fault(error.reason, str(error), _OTHER_TEMPLATE)


def _missing(messages: Sequence[Message], text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of messages that do not occur in `text` in their order, as (role or "reasoning", part)."""
    at = 0
    for message in sorted(messages, key=lambda one: one["role"] != "system"):
        reasoning, content = parts(message)
        for name, part in (("reasoning", reasoning.strip()), (message["role"], content.strip())):
            found = text.find(part, at)
            if found < 0:
                yield name, part
            else:
                at = found + len(part)


def _doubles_examples(template: ChatTemplate, messages: Sequence[Message], text: str) -> bool:
    """Tell whether there are more think tags in the text than in worked examples that all reason."""
    examples = [str(message["content"]) for message in messages if message["role"] == "assistant"]
    given = "".join(str(message["content"]) for message in messages) + template.generation
    return bool(examples) and all(map(_reasons, examples)) and text.count(_OPEN) > given.count(_OPEN)


def _reasons(content: str) -> bool:
    return bool(parts({"content": content})[0].strip())


def _prefill_faults(
    template: ChatTemplate, before: Sequence[Message], prefill: str, continues: Continues
) -> Iterator[Fault]:
    text = template.text(before, generate=True)
    opens = prefill.lstrip().startswith(_OPEN)
    if opens and _OPEN in template.generation and not opens_thinking(template.generation):
        detail = "its prompt for generation closes the thinking, and the prefill opens it again"
        yield Fault("thinking_closed_in_prompt", detail, "leave `prefill:` out, or use the template that thinks")
    elif opens and continues is not Continues.JOINED and opens_thinking(template.generation):
        detail = "its prompt for generation opens the thinking, and the prefill opens it again"
        yield Fault("think_tags_doubled", detail, f"leave {_OPEN} out of `prefill:`: the template writes it")
    elif continues is Continues.RENDERED and _cut(template, before, prefill) != text + prefill:
        detail = "a served model continues another text than the prefill: it trims or moves what ends the prompt"
        yield Fault(
            "prefill_changed", detail, "write a prefill without white space at its end, or leave `prefill:` out"
        )
    elif opens and not _begins_turn(template, before, text):
        detail = "its assistant's turn has a header before the thinking, which a prefill would replace"
        yield Fault("prefill_not_in_turn", detail, "leave `prefill:` out: the model writes the header")


def _cut(template: ChatTemplate, before: Sequence[Message], prefill: str) -> str:
    """Return what a server continues that renders the prefill as a message and cuts the text after it.

    As `apply_chat_template(continue_final_message=True)` of transformers does, which vLLM calls.
    """
    try:
        text = template.text([*before, {"role": "assistant", "content": prefill}], generate=False)
    except RenderError:
        return ""
    at = text.rfind(prefill.strip())
    kept = prefill.lstrip()
    return text[: at + len(kept if text[at:].startswith(kept) else prefill.strip())]


def _begins_turn(template: ChatTemplate, before: Sequence[Message], text: str) -> bool:
    """Tell whether the thinking in a turn to train on is where a prefill puts it, white space aside."""
    turn: Mapping[str, Any] = {"role": "assistant", "content": f"{_OPEN}\n{_ANSWER}\n</think>\n\n{_ANSWER}"}
    try:
        trained = template.text([*before, turn], generate=False)
    except RenderError:
        return True
    head, found, _ = trained.rpartition("</think>")[0].rpartition(_OPEN)
    return not found or opens_thinking(template.generation) or "".join(head.split()) == "".join(text.split())
