"""What the fake model answers: a pure function of the request and the script, never of attempts, time or load.

The fake solves integer arithmetic ("What is 4 + 3 - 2?"); to any other question it answers with a number that is always
the same for that question. How often it is wrong, how it writes and where it puts its reasoning are scripted.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen
from tracefactory.text.reasoning import opens_thinking

Rate = Field(default=0.0, ge=0, le=1)


class FakeScript(Frozen):
    """How a fake model behaves. Rates are probabilities, decided by hashes, so that every run is the same.

    Answers: `accuracy` is the share of right answers; `style` decides how long an answer is (`auto`: long unless the
    prompt asks for a brief or direct answer); `reasoning` is where the reasoning of long answers goes (`prefilled`:
    inline, as if the chat template had opened the tag); `rate_truncate`, `rate_empty` and `rate_refuse` spoil answers
    for good: the same request always gets the same answer. `reply` is said to every request instead of an answer of its
    own, as a judge would. `seed` gives another model of the same kind.

    Faults: `rate_429`, `rate_500`, `rate_drop` (the connection closes in the middle of the body) and `rate_hang`
    (silence for `hang_s` seconds, then the answer) spoil single attempts; a request meets at most `max_faults` of them.
    `retry_after_s` goes with a 429. `latency_s` is the median of a lognormal with the shape `latency_sigma`.
    """

    accuracy: float = Field(default=1.0, ge=0, le=1)
    style: Literal["auto", "long", "short"] = "auto"
    reasoning: Literal["reasoning_content", "reasoning", "inline", "prefilled"] = "inline"
    rate_truncate: float = Rate
    rate_empty: float = Rate
    rate_refuse: float = Rate
    reply: str | None = None
    seed: int = 0
    rate_429: float = Rate
    rate_500: float = Rate
    rate_drop: float = Rate
    rate_hang: float = Rate
    max_faults: int = Field(default=3, ge=0)
    retry_after_s: float = Field(default=0.0, ge=0)
    hang_s: float = Field(default=5.0, ge=0)
    latency_s: float = Field(default=0.0, ge=0)
    latency_sigma: float = Field(default=0.0, ge=0)

    @classmethod
    def load(cls, text_or_file: str) -> FakeScript:
        """Read a script from a JSON object, or from a file that holds one.

        Raises:
            UserError: when the file is missing, or for what a script cannot say.
        """
        try:
            is_text = text_or_file.lstrip().startswith("{")
            return cls.model_validate_json(text_or_file if is_text else Path(text_or_file).read_bytes())
        except (OSError, ValidationError) as error:
            raise UserError(f"no script of the fake model: {error}") from error

    def identity(self) -> dict[str, Any]:
        """Return the part that decides answers: no faults, no latency."""
        return self.model_dump(
            include={"accuracy", "style", "reasoning", "rate_truncate", "rate_empty", "rate_refuse", "reply", "seed"}
        )


@dataclass(frozen=True)
class Answer:
    """What the fake says: the message as the protocol carries it, why it ended, and its size in tokens."""

    message: dict[str, str | None]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def logprobs(said: Answer) -> list[dict[str, Any]]:
    """Return the log-probability of every token of an answer, as the protocol has it: the same for the same text.

    A separate reasoning comes first, between the tags that a server's parser takes off.
    """
    apart = said.message.get("reasoning_content") or said.message.get("reasoning")
    texts = ["<think>\n", *pieces(apart), "\n</think>\n\n"] if apart else []
    texts += pieces(said.message.get("content") or "")
    return [
        {"token": text, "bytes": list(text.encode()), "logprob": -3.0 * chance("p", place, text), "top_logprobs": []}
        for place, text in enumerate(texts)
    ]


def chance(*parts: Any) -> float:
    """Return a number in [0, 1) that looks random and is always the same for the same JSON data."""
    return int(digest(list(parts))[:13], 16) / 16.0**13


def pieces(text: str) -> list[str]:
    """Split a text into the fake's tokens: words and signs, each with the white space before it; nothing is lost."""
    return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)


def answer(body: Mapping[str, Any], script: FakeScript) -> Answer:
    """Return the answer to a chat request body."""
    messages: Sequence[Mapping[str, Any]] = body["messages"]
    key = digest({"seed": script.seed, "body": {name: body[name] for name in body if name not in _NOT_DECIDING}})
    prompt_tokens = sum(len(pieces(str(message.get("content") or ""))) for message in messages)
    if chance("refuse", key) < script.rate_refuse:
        return Answer({"content": None, "refusal": "I cannot help with that."}, "stop", prompt_tokens, 7)
    if chance("empty", key) < script.rate_empty:
        return Answer({"content": ""}, "stop", prompt_tokens, 0)
    reasoning, final = _write(messages, key, script)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if chance("truncate", key) < script.rate_truncate:
        half = len(pieces(reasoning + final)) // 2
        limit = half if limit is None else min(limit, half)
    reasoning_cut, final_cut, whole, used = _cut(reasoning, final, limit)
    message = _deliver(messages, reasoning_cut, final_cut, script, thought=bool(reasoning), whole=whole)
    content, stopped = _stop_at(message.get("content") or "", body.get("stop"))
    reason = "stop" if whole or stopped else "length"
    return Answer({**message, "content": content}, reason, prompt_tokens, used)


def _write(messages: Sequence[Mapping[str, Any]], key: str, script: FakeScript) -> tuple[str, str]:
    users = [str(message.get("content") or "") for message in messages if message.get("role") == "user"]
    question = users[-1] if users else ""
    if script.reply is not None:
        return "", script.reply
    found = find_expression(question)
    right = evaluate(found) if found is not None else None
    if right is None:
        right = int(chance("answer", question) * 1000)
    wrong_by = 0 if chance("right", key) < script.accuracy else 1 + int(chance("by", key) * 8)
    said = right + wrong_by
    subject = found if found is not None and evaluate(found) is not None else "the quantity asked for"
    if _is_long(messages, script):
        return _reasoning(subject, found, said, wrong_by, key), f"The answer is \\boxed{{{said}}}."
    return "", f"{subject[:1].upper()}{subject[1:]} is {said}. The answer is \\boxed{{{said}}}."


_NOT_DECIDING = frozenset({"model", "logprobs", "top_logprobs"})
_BRIEF = re.compile(
    r"\b(brief(ly)?|short(ly)?|concise(ly)?|direct(ly)?|at once|only the (final )?answer|one line)\b", re.IGNORECASE
)


def _is_long(messages: Sequence[Mapping[str, Any]], script: FakeScript) -> bool:
    if script.style != "auto":
        return script.style == "long"
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and opens_thinking(str(last.get("content"))):
        return True
    return not any(_BRIEF.search(str(message.get("content") or "")) for message in messages)


_OPENINGS = (
    "I should work out {0} step by step.",
    "Let me take {0} apart and go through it slowly.",
    "The task is to find {0}, so I start from the left.",
    "First I look at {0} as a whole and see what has to be done.",
)
_LINKS = ("Next,", "Then", "After that,", "Going on,", "Now", "With that,")
_DOUBTS = (
    "Wait, I should check that before I go on. Doing it in the other order gives {0} as well.",
    "Hmm, is that right? Undoing the last step leads back to where I was, so {0} holds.",
    "Let me verify: an estimate by rounding lands close to {0}, which fits.",
    "Alternatively, I could group the terms differently, and I still arrive at {0}.",
)


def _reasoning(subject: str, expression: str | None, said: int, wrong_by: int, key: str) -> str:
    steps = [_OPENINGS[int(chance("opening", key) * len(_OPENINGS))].format(subject)]
    terms = _running_sum(expression) if expression is not None else []
    for number, (before, term, after) in enumerate(terms):
        slip = wrong_by if number == len(terms) - 1 else 0
        link = _LINKS[int(chance("link", key, number) * len(_LINKS))]
        steps.append(f"{link} {before} {'-' if term < 0 else '+'} {abs(term)} = {after + slip}.")
    if not terms:
        steps.append(f"{_LINKS[int(chance('link', key) * len(_LINKS))]} putting what is known together gives {said}.")
    order = sorted(range(len(_DOUBTS)), key=lambda index: chance("doubt", key, index))
    steps += [_DOUBTS[index].format(said) for index in order[: 1 + int(chance("doubts", key) * len(_DOUBTS))]]
    steps.append(f"So the result is {said}.")
    return "\n\n".join(steps)


def _running_sum(expression: str) -> list[tuple[int, int, int]]:
    """Return (before, term, after) for each term of a plain sum after the first; nothing for other expressions."""
    if not re.fullmatch(r"[-+]?\s*\d+(\s*[-+]\s*\d+)*", expression):
        return []
    terms = [int(re.sub(r"\s", "", term)) for term in re.findall(r"[-+]?\s*\d+", expression)]
    totals = [sum(terms[: count + 1]) for count in range(len(terms))]
    return list(zip(totals, terms[1:], totals[1:], strict=False))


def _cut(reasoning: str, final: str, limit: int | None) -> tuple[str, str, bool, int]:
    """Return both texts cut to `limit` tokens in all, whether nothing was cut, and the tokens used."""
    first, second = pieces(reasoning), pieces(final)
    total = len(first) + len(second)
    if limit is None or total <= limit:
        return reasoning, final, True, total
    return "".join(first[:limit]), "".join(second[: max(0, limit - len(first))]), False, limit


def _deliver(
    messages: Sequence[Mapping[str, Any]], reasoning: str, final: str, script: FakeScript, *, thought: bool, whole: bool
) -> dict[str, str | None]:
    if not thought:
        return {"content": final}
    if script.reasoning in {"reasoning_content", "reasoning"}:
        return {"content": final, script.reasoning: reasoning}
    last = messages[-1]
    opened = script.reasoning == "prefilled" or (
        last.get("role") == "assistant" and opens_thinking(str(last.get("content")))
    )
    opening = "" if opened else "<think>\n"
    # The thinking was closed if any of the answer was still said.
    closing = f"\n</think>\n\n{final}" if whole or final else ""
    return {"content": f"{opening}{reasoning}{closing}"}


def _stop_at(content: str, stop: str | Sequence[str] | None) -> tuple[str, bool]:
    marks = [stop] if isinstance(stop, str) else list(stop or ())
    ends = [position for mark in marks if mark and (position := content.find(mark)) >= 0]
    return (content[: min(ends)], True) if ends else (content, False)


_SEARCHED = 2000  # characters at the end of a question; bounds what the pattern may cost
_NUMBER = r"\(*\s*-?\s*\d{1,30}\s*\)*"
_EXPRESSION = re.compile(rf"{_NUMBER}(?:\s*[-+*/×÷]\s*{_NUMBER})+")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def find_expression(text: str) -> str | None:
    """Return the last arithmetic expression of a text (with two numbers at least), or None."""
    found = [match[0].strip() for match in _EXPRESSION.finditer(text[-_SEARCHED:])]
    return found[-1] if found else None


def evaluate(expression: str) -> int | None:
    """Return the value of an arithmetic expression, or None when it is no integer or is not well formed."""
    try:
        value = _value(ast.parse(expression.replace("×", "*").replace("÷", "/"), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return int(value) if value.denominator == 1 else None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"{type(node).__name__} is no arithmetic")
