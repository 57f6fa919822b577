"""The answers of the fake model, a pure function of the request and the script (not of attempts, time or load).

The fake model solves integer arithmetic ("What is 4 + 3 - 2?"); any other question gets a number that is fixed for that
question. The error rate, the style and the place of the reasoning are scripted.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import time
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


def _rate(description: str) -> Any:
    return Field(default=0.0, ge=0, le=1, description=description)


class BatchScript(Frozen):
    """The behaviour of the batch APIs of a fake model: by default every batch is completed, its results in no order."""

    delay_s: float = Field(default=0.1, ge=0, description="Seconds until a batch has ended.")
    unfinished: float = _rate("Share of lines without an answer at the end, which the batch then counts as expired.")
    failing: float = _rate("Share of lines that fail with status 500.")
    refused: float = _rate("Share of lines that fail with status 400.")
    malformed: int = Field(default=0, ge=0, description="Answered lines that are cut off in the results.")
    missing: int = Field(default=0, ge=0, description="Answered lines that are missing in the results.")
    empty_error_file: bool = Field(default=True, description='Without failed lines, the id of their file is "".')
    late_output: int = Field(default=0, ge=0, description="Looks at an ended batch that do not show its output yet.")
    refuse_creates: int = Field(default=0, ge=0, description="Creates that get status 429.")
    lose_creates: int = Field(default=0, ge=0, description="Creates that work, and whose response is lost.")
    fail_creates: int = Field(default=0, ge=0, description="Creates that get status 500 and do not work.")
    listed_after_s: float = Field(default=0.0, ge=0, description="Seconds until a batch is listed.")
    results_expired: bool = Field(default=False, description="Whether results are gone.")
    broken_downloads: int = Field(default=0, ge=0, description="Downloads of results that break off in the middle.")
    miscounted: int = Field(default=0, description="Added to the number of answered lines that the batch counts.")
    misfailed: int = Field(default=0, description="Added to the number of failed lines that the batch counts.")
    misbilled: int = Field(default=0, description="Added to the tokens of completions that the batch counts.")
    most_enqueued: int = Field(default=0, ge=0, description="A larger batch fails as a whole; 0: none does.")
    refused_line: int = Field(
        default=0, ge=0, description="The number of a line for which the first batch fails; 0: none."
    )
    forbidden: bool = Field(default=False, description="Whether creates get status 403.")
    stuck: bool = Field(default=False, description="Whether batches wait until they are cancelled.")
    dialect: Literal["openai", "together", "novita"] = Field(
        default="openai", description="Whose copy of OpenAI's batch API is spoken."
    )


class FakeScript(Frozen):
    """The behaviour of a fake model. Rates are probabilities; hashes decide, so that runs are reproducible.

    `rate_truncate`, `rate_empty` and `rate_refuse` are permanent: the same request always gets the same answer. Faults
    (`rate_429` and the rates after it) affect single attempts.
    """

    accuracy: float = Field(default=1.0, ge=0, le=1, description="Share of correct answers.")
    style: Literal["auto", "long", "short"] = Field(
        default="auto", description="How long answers are; auto: long unless the prompt asks for a brief one."
    )
    reasoning: Literal["reasoning_content", "reasoning", "inline", "prefilled"] = Field(
        default="inline",
        description="Where reasoning of long answers is returned; prefilled: inline, the template opened the tag.",
    )
    rate_truncate: float = _rate("Share of answers that are cut off.")
    rate_empty: float = _rate("Share of answers that are empty.")
    rate_refuse: float = _rate("Share of requests that are refused.")
    reply: str | None = Field(default=None, description="A fixed reply to every request, for example a judge's.")
    replies: dict[str, str] = Field(
        default_factory=dict,
        description="Fixed replies by a text that the last message of the user contains; the first one that fits.",
    )
    seed: int = Field(default=0, description="A different seed gives a different model with the same behaviour.")
    rate_429: float = _rate("Share of attempts that get status 429.")
    rate_500: float = _rate("Share of attempts that get status 500.")
    rate_drop: float = _rate("Share of attempts whose connection closes in the middle of the body.")
    rate_hang: float = _rate("Share of attempts whose response is delayed by `hang_s` seconds.")
    max_faults: int = Field(default=3, ge=0, description="Maximum faults per request.")
    retry_after_s: float = Field(default=0.0, ge=0, description="Seconds in the Retry-After of a 429.")
    hang_s: float = Field(default=5.0, ge=0, description="Delay of an attempt that hangs, in seconds.")
    rate_stall: float = _rate("Share of streamed attempts that fall silent after half of the text.")
    limit: float = Field(default=0.0, ge=0, description="Requests per second that get an answer, others a 429; 0: all.")
    burst: float = Field(default=1.0, ge=1, description="Requests that may come at once under `limit`.")
    outage: dict[str, int] = Field(
        default_factory=dict,
        description="An outage: `after` answers, the next `requests` requests get the HTTP `status`, e.g. "
        "{after: 88, requests: 1, status: 403}.",
    )
    processed_logprobs: bool = Field(
        default=False, description="Whether log-probabilities are those after the temperature, not the model's own."
    )
    filtered: str | None = Field(default=None, description="Requests with this text get a 400, content_filter.")
    context: int = Field(default=0, ge=0, description="Tokens of the longest prompt; longer ones get a 400. 0: any.")
    token_s: float = Field(default=0.0, ge=0, description="Seconds between two tokens of a streamed answer.")
    latency_s: float = Field(default=0.0, ge=0, description="Median latency in seconds, of a lognormal.")
    latency_sigma: float = Field(default=0.0, ge=0, description="Shape of that lognormal.")
    batch: BatchScript = Field(default_factory=BatchScript, description="How its batch APIs behave.")

    @classmethod
    def load(cls, text_or_file: str) -> FakeScript:
        """Read a script from a JSON object, or from a file that holds one.

        Raises:
            UserError: when the file is missing or the script is invalid.
        """
        try:
            is_text = text_or_file.lstrip().startswith("{")
            return cls.model_validate_json(text_or_file if is_text else Path(text_or_file).read_bytes())
        except (OSError, ValidationError) as error:
            raise UserError(f"invalid script for the fake model: {error}") from error

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide answers, without faults and latency."""
        fields = {"accuracy", "style", "reasoning", "rate_truncate", "rate_empty", "rate_refuse", "reply", "seed"}
        return self.model_dump(include=fields | ({"replies"} if self.replies else set()))


@dataclass(frozen=True)
class Answer:
    """A completion of the fake model: the message of the protocol, the finish reason and the token counts."""

    message: dict[str, str | None]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    heat: float = 1.0
    """The temperature that its log-probabilities are divided by."""


def logprobs(reply: Answer, likeliest: int = 0) -> list[dict[str, Any]]:
    """Return the log-probability of every token of an answer in the protocol's format; equal texts have equal values.

    `likeliest` is the number of likely tokens of every position, of which there are three. A separate reasoning comes
    first, in the tags that a server's parser removes.
    """
    reasoning = reply.message.get("reasoning_content") or reply.message.get("reasoning")
    texts = ["<think>\n", *pieces(reasoning), "\n</think>\n\n"] if reasoning else []
    texts += pieces(reply.message.get("content") or "")
    found = []
    for place, text in enumerate(texts):
        raw = -3.0 * chance("p", place, text)
        values = {text: raw, " one": raw - 1.5, " two": raw - 4.0}
        if reply.heat != 1.0:
            total = math.log(sum(math.exp(value / reply.heat) for value in values.values()))
            values = {token: value / reply.heat - total for token, value in values.items()}
        entries = [{"token": one, "bytes": list(one.encode()), "logprob": value} for one, value in values.items()]
        found.append({**entries[0], "top_logprobs": entries[:likeliest]})
    return found


def chat_body(key: str, body: Mapping[str, Any], reply: Answer) -> dict[str, Any]:
    """Return an answer in the form of the OpenAI chat protocol."""
    reasoning = reply.message.get("reasoning_content") or reply.message.get("reasoning") or ""
    return {
        "id": f"chatcmpl-{key[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model", "fake"),
        "system_fingerprint": "fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **reply.message},
                "finish_reason": reply.finish_reason,
                "logprobs": {"content": logprobs(reply, body.get("top_logprobs") or 0)}
                if body.get("logprobs")
                else None,
            }
        ],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": len(pieces(reasoning))},
        },
    }


def chance(*parts: Any) -> float:
    """Return a pseudo-random number in [0, 1), derived from JSON data."""
    return int(digest(list(parts))[:13], 16) / 16.0**13


def pieces(text: str) -> list[str]:
    """Split a text into tokens: words and signs, each with the white space before it. Joining them gives the text."""
    return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)


def answer(body: Mapping[str, Any], script: FakeScript) -> Answer:
    """Return the answer to a chat request body."""
    messages: Sequence[Mapping[str, Any]] = body["messages"]
    key = digest({"seed": script.seed, "body": {name: body[name] for name in body if name not in _IGNORED_FIELDS}})
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
    heat = float(body.get("temperature", 1.0)) or 1.0 if script.processed_logprobs else 1.0
    return Answer({**message, "content": content}, reason, prompt_tokens, used, heat)


def _write(messages: Sequence[Mapping[str, Any]], key: str, script: FakeScript) -> tuple[str, str]:
    users = [str(message.get("content") or "") for message in messages if message.get("role") == "user"]
    question = users[-1] if users else ""
    fixed = next((reply for part, reply in script.replies.items() if part in question), script.reply)
    if fixed is not None:
        return "", fixed
    expression = find_expression(question)
    value = evaluate(expression) if expression is not None else None
    right = int(chance("answer", question) * 1000) if value is None else value
    wrong_by = 0 if chance("right", key) < script.accuracy else 1 + int(chance("by", key) * 8)
    result = right + wrong_by
    subject = expression if expression is not None and value is not None else "the quantity asked for"
    if _is_long(messages, script):
        return _reasoning(subject, expression, result, wrong_by, key), f"The answer is \\boxed{{{result}}}."
    return "", f"{subject[:1].upper()}{subject[1:]} is {result}. The answer is \\boxed{{{result}}}."


_IGNORED_FIELDS = frozenset({"model", "logprobs", "top_logprobs", "stream", "stream_options"})
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


def _reasoning(subject: str, expression: str | None, result: int, wrong_by: int, key: str) -> str:
    steps = [_OPENINGS[int(chance("opening", key) * len(_OPENINGS))].format(subject)]
    terms = _running_sum(expression) if expression is not None else []
    for number, (before, term, after) in enumerate(terms):
        slip = wrong_by if number == len(terms) - 1 else 0
        link = _LINKS[int(chance("link", key, number) * len(_LINKS))]
        steps.append(f"{link} {before} {'-' if term < 0 else '+'} {abs(term)} = {after + slip}.")
    if not terms:
        steps.append(f"{_LINKS[int(chance('link', key) * len(_LINKS))]} putting what is known together gives {result}.")
    order = sorted(range(len(_DOUBTS)), key=lambda index: chance("doubt", key, index))
    steps += [_DOUBTS[index].format(result) for index in order[: 1 + int(chance("doubts", key) * len(_DOUBTS))]]
    steps.append(f"So the result is {result}.")
    return "\n\n".join(steps)


def _running_sum(expression: str) -> list[tuple[int, int, int]]:
    """Return (before, term, after) for each term of a plain sum after the first; empty for other expressions."""
    if not re.fullmatch(r"[-+]?\s*\d+(\s*[-+]\s*\d+)*", expression):
        return []
    terms = [int(re.sub(r"\s", "", term)) for term in re.findall(r"[-+]?\s*\d+", expression)]
    totals = [sum(terms[: count + 1]) for count in range(len(terms))]
    return list(zip(totals, terms[1:], totals[1:], strict=False))


def _cut(reasoning: str, final: str, limit: int | None) -> tuple[str, str, bool, int]:
    """Return both texts cut to `limit` tokens in total, whether they are complete, and the tokens used."""
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
    # The thinking was closed if any part of the answer was written.
    closing = f"\n</think>\n\n{final}" if whole or final else ""
    return {"content": f"{opening}{reasoning}{closing}"}


def _stop_at(content: str, stop: str | Sequence[str] | None) -> tuple[str, bool]:
    marks = [stop] if isinstance(stop, str) else list(stop or ())
    ends = [position for mark in marks if mark and (position := content.find(mark)) >= 0]
    return (content[: min(ends)], True) if ends else (content, False)


_SEARCHED = 2000  # characters at the end of a question; bounds the time of the pattern
_NUMBER = r"\(*\s*-?\s*\d{1,30}\s*\)*"
_EXPRESSION = re.compile(rf"{_NUMBER}(?:\s*[-+*/×÷]\s*{_NUMBER})+")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def find_expression(text: str) -> str | None:
    """Return the last arithmetic expression of a text (with at least two numbers), or None."""
    found = [match[0].strip() for match in _EXPRESSION.finditer(text[-_SEARCHED:])]
    return found[-1] if found else None


def evaluate(expression: str) -> int | None:
    """Return the value of an arithmetic expression, or None when it is not an integer or not well-formed."""
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
    raise ValueError(f"{type(node).__name__} is not arithmetic")
