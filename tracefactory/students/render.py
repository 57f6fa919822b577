"""Render a trace with the student's chat template, as in training, and find its supervised tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal
from unicodedata import normalize

import numpy as np

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.token_scores import Ints
from tracefactory.serving.encoding import Ranges, control_tokens_of, encode, ranges_of_texts
from tracefactory.students.remedies import remedy
from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError
from tracefactory.text.turns import AssistantTurn, rendered_turn

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
        self._tokenized = lru_cache(maxsize=16)(self._tokenize)  # views of one trace have texts in common

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
        """Render one trace to score it; a control token that somebody wrote into one of its texts is text.

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
        last = assistant_message(reasoning, answer, self._placement)
        turn = rendered_turn(self.template, before, last)
        plain: Ranges = ()
        # Think tags are refused in reasoning and answer, and are text in the question.
        if any(map(self.control_token_in, (reasoning, answer))) or any(
            self.control_token_in(one["content"]) or "think>" in one["content"] for one in before
        ):
            plain = ranges_of_texts(self.template, [*before, last], generate=False)
        item = self._tokenized(turn.text, turn.start, turn.end, turn.body - turn.start, tuple(plain))
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
        return self.tokens_of(rendered_turn(self.template, before, last, tools))

    def tokens_of(self, turn: AssistantTurn) -> Rendered:
        """Return the tokens of a conversation in which the assistant's last turn was found.

        Raises:
            RenderError: when the turn has no token.
        """
        return self._tokenized(turn.text, turn.start, turn.end, turn.body - turn.start, ())

    def check_mask(self, rendered: Rendered) -> None:
        """Check that the supervised tokens are what the template writes for the assistant's turn, and nothing else.

        Raises:
            RenderError: when they are not, because a token lies across the start of the turn or characters are lost.
        """
        self.check_text(rendered.ids, rendered.first, rendered.stop, rendered.text)

    def check_text(self, ids: Ints, first: int, stop: int, text: str) -> None:
        """Check that tokens [first, stop) spell a text.

        Some tokenizers bring characters into a normal form (NFC), or drop a space where a decoded text begins; neither
        is a difference.

        Raises:
            RenderError: when they spell another one.
        """
        decoded = self.decode(ids[first:stop])
        if decoded == text:
            return
        whole, before = self.decode(ids[:stop]), self.decode(ids[:first])
        if whole.startswith(before):
            decoded = whole[len(before) :]
        decoded, text = (normalize("NFC", one) for one in (decoded, text))
        if decoded != text:
            pairs = enumerate(zip(decoded, text, strict=False))
            at = next((n for n, (one, other) in pairs if one != other), min(len(decoded), len(text)))
            detail = f"the supervised tokens are {decoded[at : at + 20]!r} where the turn is {text[at : at + 20]!r}"
            raise RenderError("mask_not_exact", detail)

    def control_token_in(self, text: str) -> str | None:
        """Return a control token of the tokenizer that a text spells; think tags are none. None for no control token.

        Args:
            text: what a person, a tool or a model wrote.
        """
        found = self._controls.search(text)
        return None if found is None else found.group()

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The control tokens of the tokenizer; think tags are none."""
        return frozenset(control_tokens_of(self.tokenizer).values())

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control_tokens))) or r"(?!)")

    def decode(self, ids: Ints) -> str:
        """Return the text of tokens, with control tokens and white space as they are."""
        return str(self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    def _tokenize(self, whole: str, start: int, end: int, body: int, plain: Ranges) -> Rendered:
        found, characters = encode(self.tokenizer, whole, plain, think=True)
        ids = np.asarray(found, dtype=np.int32)
        offsets = np.asarray(characters, dtype=np.int32).reshape(-1, 2)
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
