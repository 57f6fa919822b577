r"""Control tokens that a text spells: the marks of chat templates, such as `<|im_end|>`.

Trainers and servers call a tokenizer on the rendered conversation, and a mark inside of a message becomes the real
token there: it ends the turn in the middle of an answer, or begins one that nobody wrote. A mark in other letters
(`[inst]`), with other characters inside of it (a zero-width space), or in two parts is ordinary text to a tokenizer,
so it is none here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from tracefactory.core.rows import Row, Trace

THINK_TAGS = frozenset({"<think>", "</think>"})
_COMMON: Mapping[str, tuple[str, ...]] = {
    "<": (
        r"\|[A-Za-z_]\w*\|>",  # ChatML, Llama 3, Phi, GLM, harmony of GPT-OSS, and most others
        r"｜[\w▁ ]{1,40}｜>",  # DeepSeek, with bars of full width
        r"(?:start|end)_of_turn>|bos>|eos>|pad>|unk>",  # Gemma up to 3
        r"\|(?:turn|channel|tool|tool_call|tool_response)>|(?:turn|channel|tool|tool_call|tool_response)\|>",  # Gemma 4
        r"/?s>|</?SYS>>",  # Llama 2, Mistral
        r"/?tool_(?:call|response)>",  # Qwen, Hermes
        r"sop>|eop>|/?arg_(?:key|value)>",  # GLM
    ),
    "[": (
        r"/?INST\]",  # Llama 2, Mistral
        r"/?(?:AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS|THINK)\]",
        r"(?:TOOL_CALLS|CALL_ID)\]",
        r"\|(?:system|user|assistant|tool|endofturn)\|\]",  # EXAONE
        r"gMASK\]",  # GLM
    ),
    "｜": (r"DSML｜",),  # DeepSeek 3.2
}
"""The marks of common chat templates: what may follow a first character."""


class ControlTokens(StrEnum):
    """What becomes of a row in whose problem, reasoning, answer or turns somebody spelled a control token."""

    DROP = "drop"  # it is not published
    ESCAPE = "escape"  # a backslash is written into the control token, after its first character
    KEEP = "keep"  # it is published as it is, and counted


class Marks:
    r"""Finds and escapes the marks of common chat templates, and the control tokens of tokenizers.

    The escaped form has a backslash after the first character: `<\|im_end|>`. One that is already escaped gets
    another one, so that `unescape` returns every text as it was.

    Args:
        own: control tokens of tokenizers.
        think: whether think tags count. In what an assistant wrote they are refused by themselves, since templates
            split its turns there.
    """

    def __init__(self, own: Iterable[str] = (), *, think: bool = False) -> None:
        names = sorted(({*own} - THINK_TAGS - {""}) | (THINK_TAGS if think else frozenset()), key=len, reverse=True)
        rests = {first: [*forms] for first, forms in _COMMON.items()}
        for name in (one for one in names if len(one) > 1):
            rests.setdefault(name[0], []).append(re.escape(name[1:]))
        after = [(re.escape(first), f"(?:{'|'.join(forms)})") for first, forms in rests.items()]
        alone = [re.escape(name) for name in names if len(name) == 1]  # has no place for a backslash
        self._marks = re.compile("|".join([*(first + forms for first, forms in after), *alone]))
        self._places = re.compile("|".join(rf"{first}\\*(?={forms})" for first, forms in after))
        self._escaped = re.compile("|".join(rf"{first}\\+(?={forms})" for first, forms in after))

    def find(self, text: str) -> str | None:
        """Return the first control token that a text spells; None when it spells none."""
        found = self._marks.search(text)
        return None if found is None else found.group()

    def every(self, text: str) -> frozenset[str]:
        """Return the control tokens that a text spells."""
        return frozenset(found.group() for found in self._marks.finditer(text))

    def escape(self, text: str) -> str:
        r"""Return a text with a backslash after the first character of every control token that it spells."""
        return self._places.sub(lambda found: found.group() + "\\", text)

    def places(self, text: str) -> list[int]:
        """Return the positions in a text before which `escape` writes a backslash, in order."""
        return [found.end() for found in self._places.finditer(text)]

    def unescape(self, text: str) -> str:
        """Return the text that `escape` was given."""
        return self._escaped.sub(lambda found: found.group()[:-1], text)


class RowMarks:
    """The marks that count in rows: think tags do not in what an assistant wrote, where they are refused by themselves.

    Args:
        own: control tokens of the tokenizers of students.
    """

    def __init__(self, own: Iterable[str] = ()) -> None:
        names = frozenset(own)
        self.assistant, self.other = Marks(names), Marks(names, think=True)

    def of(self, role: str) -> Marks:
        """Return the marks in messages of a role."""
        return self.assistant if role == "assistant" else self.other

    def find(self, row: Row) -> tuple[str, str] | None:
        """Return where a problem or a trace spells a control token, and the token; None when it spells none.

        Looked at is what views show to a student: the question, the tools and, of a trace, every turn with its calls,
        the reasoning and the answer.
        """
        problem, turns = (row.problem, row.messages[1:]) if isinstance(row, Trace) else (row, ())
        texts = [("question", self.other, problem.question)]
        for tool in problem.tools:
            texts += [("tools", self.other, one) for one in (tool.name, tool.description, *json_texts(tool.parameters))]
        for number, turn in enumerate(turns, 1):
            called = [one for call in turn.tool_calls for one in (call.name, *json_texts(call.arguments))]
            for part, found in (("reasoning", [turn.reasoning]), ("text", [turn.content]), ("tool calls", called)):
                texts += [(f"{part} of message {number}", self.of(turn.role), one) for one in found]
        spelled = ((part, marks.find(text)) for part, marks, text in texts)
        return next(((part, found) for part, found in spelled if found is not None), None)


def json_texts(text: str) -> Iterator[str]:
    """Yield the keys and texts in a JSON value; the text itself when it is none."""
    try:
        todo = [json.loads(text)]
    except (ValueError, RecursionError):
        yield text
        return
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list):
            todo += value
