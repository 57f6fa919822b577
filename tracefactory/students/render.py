"""Render a trace with the student's chat template, as in training, and find its supervised tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.token_scores import Ints
from tracefactory.students.remedies import remedy
from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError
from tracefactory.text.turns import rendered_turn

__all__ = ["RenderError", "Rendered", "Renderer", "assistant_message"]


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
        self.template = ChatTemplate.of_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._special = frozenset({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
        self._placement = reasoning

    def check(self, system: str | None = None) -> None:
        """Check that the template keeps the reasoning and the answer of a trace that has both.

        A template whose prompt for generation opens the thinking cannot render a trace without reasoning; such a trace
        is refused by itself (`no_reasoning`).

        Args:
            system: the system prompt; None for none.

        Raises:
            UserError: when it does not, with the problem and its fix.
        """
        try:
            self.render(
                "How many are left?", "First, halve the 84 apples.\n\nThen add 3 pears.", "There are 45.", system
            )
        except RenderError as error:
            message = f"the student's chat template cannot render a trace: {error} ({error.reason})"
            hint = remedy(self.tokenizer, self._placement, error.reason)
            raise UserError(Mistake(message, hint=hint)) from error

    def render(self, question: str, reasoning: str, answer: str, system: str | None = None) -> Rendered:
        """Render one trace.

        Args:
            question: the user's message.
            reasoning: the reasoning of the trace; may be empty.
            answer: the answer of the trace.
            system: the system prompt; None for none.

        Raises:
            RenderError: when the template fails, or its assistant turn is not whole (see `text.turns`).
        """
        before = [{"role": "system", "content": system}] if system is not None else []
        before.append({"role": "user", "content": question})
        item = self.conversation(before, assistant_message(reasoning, answer, self._placement))
        # White space at the start of the body is the body's where the template keeps it.
        body = reasoning if reasoning.strip() else answer
        leading = body[: len(body) - len(body.lstrip())]
        kept = item.text[: item.body_start].endswith(leading)
        return replace(item, body_start=item.body_start - len(leading)) if leading and kept else item

    def conversation(self, before: Sequence[Message], last: Message, tools: Sequence[Any] | None = None) -> Rendered:
        """Render a conversation whose last message is the assistant's.

        Args:
            before: the messages before the last one.
            last: the assistant's message, with its reasoning in think tags or as `reasoning_content`.
            tools: the function schemas of the tools.

        Raises:
            RenderError: when the template fails, or its assistant turn is not whole.
        """
        turn = rendered_turn(self.template, before, last, tools)
        return self._tokenize(turn.text, turn.start, turn.end, turn.body - turn.start)

    def check_mask(self, rendered: Rendered) -> None:
        """Check that the supervised tokens are what the template writes for the assistant's turn, and nothing else.

        Raises:
            RenderError: when they are not, because a token lies across the start of the turn or characters are lost.
        """
        decoded = self.tokenizer.decode(
            rendered.ids[rendered.first : rendered.stop].tolist(), clean_up_tokenization_spaces=False
        )
        if decoded != rendered.text:
            at = next((n for n, (a, b) in enumerate(zip(decoded, rendered.text, strict=False)) if a != b), 0)
            detail = (
                f"the supervised tokens are {decoded[at : at + 20]!r} where the turn is {rendered.text[at : at + 20]!r}"
            )
            raise RenderError("mask_not_exact", detail)

    def _tokenize(self, whole: str, start: int, end: int, body: int) -> Rendered:
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
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


def assistant_message(reasoning: str, answer: str, placement: Literal["inline", "field"]) -> Mapping[str, str]:
    """Return the assistant's message with its reasoning in think tags (inline) or as `reasoning_content` (field)."""
    if reasoning and placement == "field":
        return {"role": "assistant", "content": answer, "reasoning_content": reasoning}
    content = f"<think>\n{reasoning}\n</think>\n\n{answer}" if reasoning else answer
    return {"role": "assistant", "content": content}
