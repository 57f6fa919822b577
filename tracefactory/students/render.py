"""Render a trace with the student's chat template, as in training, and find its supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import numpy as np

from tracefactory.core.errors import UserError
from tracefactory.core.token_scores import Ints

_REMEDY = (
    'use `reasoning: inline` ("<think>" text inside the message, which a plain chat template keeps) '
    "or set `chat_template:` to a training template"
)


class RenderError(ValueError):
    """A trace cannot be rendered without loss; `reason` is a stable snake_case identifier."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Rendered:
    """One trace in the student's tokens.

    `ids` is the whole conversation; tokens [first, stop) are supervised, `text` is their text (the assistant's turn
    including its end-of-turn marker), and `starts`/`ends` are their character ranges in it. `body_start` is the start
    of the reasoning in `text` (of the answer, when there is no reasoning). `lead` is the control token at the start of
    the rendering, if there is one.
    """

    ids: Ints
    first: int
    stop: int
    text: str
    starts: Ints
    ends: Ints
    body_start: int
    lead: int | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def supervised(self) -> int:
        """The number of supervised tokens, which is the length of the trace in the student's tokens."""
        return self.stop - self.first


class Renderer:
    """Renders traces with one tokenizer's chat template.

    The conversation is tokenized as one text, as trainers do. A token is supervised when it contains a character of the
    assistant's turn, including a token across its start. Whitespace that the template writes after the end-of-turn
    marker is never generated, so it is not supervised.
    """

    def __init__(self, tokenizer: Any, reasoning: Literal["inline", "field"]) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
        self._placement = reasoning

    def check(self, system: str | None = None) -> None:
        """Check that the template keeps the reasoning and the answer.

        Args:
            system: the system prompt; None for none.

        Raises:
            UserError: when it does not, with the problem and its fix.
        """
        for reasoning in ("First, halve the 84 apples.\n\nThen add 3 pears.", ""):
            try:
                self.render("How many are left?", reasoning, "There are \\boxed{45}.", system)
            except RenderError as error:
                form = "with reasoning" if reasoning else "without reasoning"
                message = f"the student's chat template cannot render a trace {form}: {error}; {_REMEDY}"
                raise UserError(message) from error

    def render(self, question: str, reasoning: str, answer: str, system: str | None = None) -> Rendered:
        """Render one trace.

        Args:
            question: the user's message.
            reasoning: the reasoning of the trace; may be empty.
            answer: the answer of the trace.
            system: the system prompt; None for none.

        Raises:
            RenderError: when the template fails, or its assistant turn lacks the reasoning or the answer.
        """
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": question})
        prompt = self._apply(messages, add_generation_prompt=True)
        message = {"role": "assistant", "content": answer}
        if reasoning and self._placement == "field":
            message["reasoning_content"] = reasoning
        elif reasoning:
            message["content"] = f"<think>\n{reasoning}\n</think>\n\n{answer}"
        whole = self._apply([*messages, message], add_generation_prompt=False)
        if not whole.startswith(prompt):
            detail = "the text for training does not begin with the prompt for generation"
            raise RenderError("prompt_not_a_prefix", detail)
        turn = whole[len(prompt) :]
        body, end = _locate(turn, reasoning, answer)
        return self._tokenize(whole, len(prompt), len(prompt) + end, body)

    def _apply(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise RenderError("template_failed", f"it fails with {error}") from error
        return text

    def _tokenize(self, whole: str, start: int, end: int, body: int) -> Rendered:
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int32).reshape(-1, 2)
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
        if len(inside) == 0 or inside[0] == 0:
            raise RenderError("no_supervised_tokens", "its assistant turn has no token after a prompt")
        first, stop = int(inside[0]), int(inside[-1]) + 1
        return Rendered(
            ids=ids,
            first=first,
            stop=stop,
            text=whole[start:end],
            starts=np.maximum(offsets[first:stop, 0] - start, 0),
            ends=np.minimum(offsets[first:stop, 1], end) - start,
            body_start=body,
            lead=int(ids[0]) if int(ids[0]) in self._special else None,
        )


def _locate(turn: str, reasoning: str, answer: str) -> tuple[int, int]:
    """Return the start of the body in the assistant's turn, and the end of the supervised part of the turn.

    Templates may trim whitespace around both parts; any other change is an error.
    """
    reasoning_at = turn.find(reasoning.strip())
    if reasoning_at < 0:
        raise RenderError("reasoning_not_rendered", "it drops or rewrites the reasoning")
    answer_at = turn.find(answer.strip(), reasoning_at + len(reasoning.strip()))
    if answer_at < 0:
        raise RenderError("answer_not_rendered", "it drops or rewrites the answer")
    body = reasoning if reasoning.strip() else answer
    body_at = (reasoning_at if reasoning.strip() else answer_at) - (len(body) - len(body.lstrip()))
    answer_end = answer_at + len(answer.strip())
    return body_at, max(answer_end, len(turn.rstrip()))
