"""Find the answer a completion states, and where; a number that only passes by is no answer.

An answer is stated by a box (`\\boxed{}`), by a phrase that announces it ("the final answer is", "####", "答案是") or
by a concluding last sentence. The last statement counts. In a text that was cut off or loops, a statement that the
text goes on to question is no conclusion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracefactory.verifiers.boxes import Box, find_boxes, joined
from tracefactory.verifiers.normalize import strip_markup
from tracefactory.verifiers.sentences import Span, is_formula, is_value, last_sentences, statement_end, value_in

_CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end|return|end_of_text)\|>|</s>|<｜end▁of▁sentence｜>")
_THINK = re.compile(
    r"<(?P<open>think|thinking|thought|reasoning|Begin_of_Draft)>|<(?:/(?P<close>think|thinking|thought|reasoning)|(?P<draft>End_of_Draft))>",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"(?P<strong>(?:the\s+|my\s+|our\s+)?\bfinal\s+(?:answer|result)(?:\s+(?:is|to\s[^.:\n]{1,80}?\bis))?(?:\s*\*\*)?\s*:?"
    r"|^\s*####(?!#)|(?<=\s)####(?!#)"
    r"|\banswer(?:\s*\*\*)?\s*:(?!:)"
    r"|(?:最终|正确|最后)?(?:答案|结果)\s*(?:\*\*)?\s*(?:应该|应|就)?(?:是|为|等于|:|：)+|(?:^|\n)\s*答\s*[:：])"
    r"|(?P<weak>\b(?:answer|option|choice)(?:\s+(?:to|for|of)\s[^.\n]{1,60}?)?\s+(?:is|was|would\s+be|must\s+be|equals|=)"
    r"|(?:应|故|因此|所以)?\s*(?:应)?选(?:择|项)?\s*(?:是|为)?\s*[:：]?(?=\s*[（(]?[A-Ha-h]\b|\s*[（(]?[A-H][）)。，,\s]))",
    re.IGNORECASE | re.MULTILINE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|might|could|possibly|if|suppose|assuming|assume|would|whether|unless|guess|not|supposed|"
    r"expected|claims?|says?)\b|可能|也许|如果|假设|假如|是否|难道|不是",
    re.IGNORECASE,
)
_RETRACTS = re.compile(
    r"\b(?:wait|hold\s+on|hmm+|alternatively|on\s+second\s+thought|but\s+(?:maybe|let|that|is|what|how|then|wait)|"
    r"let\s+me\s+(?:re-?)?(?:check|verify|think|consider|double|try|see|recompute|reconsider)|let's\s+(?:check|verify|re)|"
    r"i\s+made\s+a\s+mistake|that's\s+(?:not|wrong)|which\s+contradicts)\b|不对|等等|等一下|再检查|重新|另外|换一种|让我",
    re.IGNORECASE,
)
_NOT_AN_ANSWER = re.compile(
    r"^(?:(?:indeed|also|still|clearly|then|thus|definitely|really)\s+)*"
    r"(?:correct|right|wrong|incorrect|as follows|the same|not|supposed|"
    r"expected|unknown|"
    r"consistent|in the form|given|obtained|found|unique|based|to be|in terms|going|likely|probably|maybe|perhaps|"
    r"straightforward|verified|confirmed)\b",
    re.IGNORECASE,
)
_DELIMITED = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL)
_LONG = 200
"""A bare answer of more characters is searched from its last sentence backwards."""
_NAME_WORDS = 4
_LOOP_WINDOW, _LOOP_UNIT, _LOOP_TIMES = 3000, 30, 5
_TERMINAL = tuple(".!?。！？}])$`*\"'>)）】”")


@dataclass(frozen=True)
class Extraction:
    """An answer as stated: its text, its [start, end) range, how it was stated, and adjacent boxes read as a list."""

    text: str
    start: int
    end: int
    how: str
    together: Extraction | None = None


@dataclass(frozen=True)
class Completion:
    """A completion split at its thinking: `answer` starts at `offset`; `open` says the thinking never ended."""

    reasoning: str
    answer: str
    open: bool


def split_thinking(text: str) -> Completion:
    """Split a whole completion at the last end of thinking."""
    last_open = last_close = None
    for match in _THINK.finditer(text):
        if match["open"]:
            last_open = match
        else:
            last_close = match
    if last_close is not None and (last_open is None or last_open.start() < last_close.start()):
        start = text.find(">", 0, last_open.end()) + 1 if last_open else 0
        return Completion(text[start : last_close.start()], text[last_close.end() :], open=False)
    if last_open is not None:
        return Completion(text[last_open.end() :], text[: last_open.start()] if last_close else "", open=True)
    return Completion("", text, open=False)


def loops(text: str) -> bool:
    """Whether the text ends in a repetition: its last characters occurred many times just before."""
    tail = text.rstrip()[-_LOOP_WINDOW:]
    unit = tail[-_LOOP_UNIT:]
    if len(unit) < _LOOP_UNIT or len(set(unit)) < 3:
        return False
    return tail.count(unit) >= _LOOP_TIMES


def extract(text: str, *, cut_off: bool = False) -> Extraction | None:
    """Return the answer `text` states, or None when it states none.

    Args:
        text: the completion after its thinking.
        cut_off: whether the server stopped it at a length limit, or its thinking never ended.
    """
    body = _body(text)
    stated = _last_statement(body, cut_off)
    unfinished = cut_off or loops(body) or not body.rstrip().endswith(_TERMINAL)
    if stated is not None:
        rest = body[stated.end :]
        if unfinished and _RETRACTS.search(rest):
            return None
        return stated
    if unfinished:
        return _lone_value(body) if not cut_off else None
    return _conclusion(body) or _lone_value(body)


def extract_bare(text: str) -> Extraction:
    """Return the answer in a text that is an answer, perhaps with words around it; the whole text when in doubt."""
    body = _body(text)
    stated = _last_statement(body, cut_off=False)
    if stated is not None:
        return stated
    whole = Span(0, len(body))
    found = None
    if len(body) > _LONG and not is_formula(body):
        for sentence in last_sentences(body, 3):
            found = value_in(body, sentence, lenient=True)
            if found is not None:
                break
    found = found or value_in(body, whole, lenient=True)
    span = _trimmed(body, found or whole)
    return Extraction(body[span.start : span.end], span.start, span.end, "whole" if found is None else "value")


def _body(text: str) -> str:
    match = _CONTROL.search(text)
    return text[: match.start()] if match and match.start() else text


def _last_statement(body: str, cut_off: bool) -> Extraction | None:
    boxes = find_boxes(body)
    if cut_off and boxes and not boxes[-1].closed:
        boxes = boxes[:-1]
    announced = _last_announced(body, boxes, cut_off)
    if boxes and (announced is None or boxes[-1].end >= announced.end - 1):
        last, group = boxes[-1], joined(body, boxes)
        together = None if group is None else Extraction(group[0], group[1], last.inner_end, "boxes")
        return Extraction(last.text, last.inner_start, last.inner_end, "boxed", together)
    return announced


def _last_announced(body: str, boxes: list[Box], cut_off: bool) -> Extraction | None:
    after = boxes[-1].end if boxes else 0
    matches = [match for match in _ANNOUNCED.finditer(body, max(0, after - 200)) if match.end() > after]
    for match in reversed(matches):
        strong = match["strong"] is not None
        if not strong and _HEDGE.search(body, _clause_start(body, match.start()), match.start()):
            continue
        end = statement_end(body, match.end())
        if cut_off and end >= len(body.rstrip()):
            continue
        found = value_in(body, Span(match.end(), end), lenient=not boxes)
        if found is None:
            continue
        span = _trimmed(body, found)
        value = body[span.start : span.end]
        if not value or _NOT_AN_ANSWER.match(value) or (boxes and not re.search(r"[\d\\]|^\W*[A-H]\W*$", value)):
            continue
        if not strong and len(value.split()) > _NAME_WORDS and not re.search(r"[\d\\]", value):
            continue  # "the answer is hidden in the second equation"
        return Extraction(value, span.start, span.end, "announced")
    return None


def _clause_start(body: str, position: int) -> int:
    start = max(body.rfind(sign, max(0, position - 120), position) for sign in ".!?\n。！？;；")
    return max(start + 1, position - 120)


def _conclusion(body: str) -> Extraction | None:
    """Return the value of the last sentence, if the text ends by stating one."""
    for sentence in last_sentences(body, 1):
        text = body[sentence.start : sentence.end]
        if _HEDGE.search(text) or _RETRACTS.search(text) or text.rstrip().endswith(("?", "？")):
            return None
        found = value_in(body, sentence, lenient=False)
        if found is None:
            return None
        span = _trimmed(body, found)
        return Extraction(body[span.start : span.end], span.start, span.end, "conclusion")
    return None


def _lone_value(body: str) -> Extraction | None:
    """Return a short text that is nothing but a value, such as `42` or `x = 3`."""
    stripped = body.strip()
    if (
        not stripped
        or len(stripped) > 60
        or "\n" in stripped
        or stripped.count("=") > 1
        or stripped.endswith(tuple("=+-*/<>(,"))
    ):
        return None
    if not is_value(stripped) and (
        len(stripped.split()) > 3 or _HEDGE.search(stripped) or stripped.endswith(("?", ":"))
    ):
        return None
    start = body.index(stripped)
    return Extraction(stripped, start, start + len(stripped), "whole")


def _trimmed(body: str, span: Span) -> Span:
    """Shrink a range to what `strip_markup` would leave of it."""
    text = body[span.start : span.end]
    inner = strip_markup(text)
    delimited = _DELIMITED.fullmatch(inner)
    if delimited:
        inner = next(group for group in delimited.groups() if group is not None).strip()
    at = text.find(inner)
    if not inner or at < 0:
        return span
    return Span(span.start + at, span.start + at + len(inner))
