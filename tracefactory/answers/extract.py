"""Extract the answer that a completion states, with its position and a confidence; numbers in passing are not answers.

What makes a text an answer, surest first: a field of a JSON object that is the whole completion or its end, a box
(`\\boxed{}`), a phrase that announces it ("the final answer is", "####", "答案是"), a label (`A: 18`), the last line
when it is the value alone, and a concluding last sentence. The last statement that is not retracted counts, anywhere in
the text; a sentence without a marker counts only at the end. Each form has a confidence (`CONFIDENCE`). In a truncated
or looping text, a statement that the text then questions does not count, and a sentence without a marker never does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tracefactory.answers.announce import announcements
from tracefactory.answers.boxes import Box, adjacent_boxes, find_boxes
from tracefactory.answers.conclusion import conclusion, lone_value, open_math
from tracefactory.answers.extraction import ENDS, NO_KNOWLEDGE, QUESTIONS, Extraction, extraction, finished, trimmed
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.retraction import retracted
from tracefactory.answers.runs import Shortened, shorten
from tracefactory.answers.sentences import Span, bare, is_formula, is_value, last_sentences
from tracefactory.answers.shapes import Shape
from tracefactory.answers.statements import value_in
from tracefactory.answers.structured import FIELDS, ends_in_object, json_field

_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|end|return|end_of_text|end_of_solution)\|>|</s>|<｜end▁of▁sentence｜>"
)
_NOT_AN_ANSWER = re.compile(
    r"^(?:(?:indeed|also|still|clearly|then|thus|definitely|really)\s+)*"
    r"(?:correct|right|wrong|incorrect|as follows|the same|not|supposed|"
    r"expected|unknown|"
    r"consistent|in the form|given|obtained|found|unique|based|to be|in terms|going|likely|probably|maybe|perhaps|"
    r"straightforward|verified|confirmed)\b",
    re.IGNORECASE,
)
_LONG = 200
"""A bare answer with more characters is searched from its last sentence backwards."""
_NAME_WORDS = 4
_NEAR_END = 200
"""An announced phrase with a number counts as the conclusion within this many characters from the end."""
_STATES = re.compile(
    r"\b(?:therefore|thus|hence|so|finally|in\s+(?:total|conclusion)|(?:the|my|our)\s+[\w\s'-]{1,60}?\s(?:is|are|was|equals)|"
    r"we\s+(?:get|have|obtain|find|conclude)|there\s+(?:is|are)|(?:he|she|it|they|i)\s+\w+|(?:solutions?|results?|total|output|a)\s*(?:\*\*)?\s*[:：=])"
    r"|∴|=>|\\therefore|⇒|所以|因此|综上|一共|共有|得",
    re.IGNORECASE,
)
_SENTENCE_INSIDE = re.compile(r"\\text\s*\{[^{}]*\b(?:is|are|answer)\b[^{}]*\}", re.IGNORECASE)
_NOT_BEFORE = re.compile(
    r"\b(?:not|cannot|never|nicht|pas)\s+(?:be\s+|equal\s+(?:to\s+)?)?\W*$|n['’]t\s+(?:be\s+)?\W*$", re.IGNORECASE
)
_LOOP_WINDOW, _LOOP_UNIT, _LOOP_TIMES = 3000, 30, 5


def loops(text: str) -> bool:
    """Return whether the text ends in a loop: its last characters occur many times shortly before."""
    tail = text.rstrip()[-_LOOP_WINDOW:]
    unit = tail[-_LOOP_UNIT:]
    if len(unit) < _LOOP_UNIT or len(set(unit)) < 3:
        return False
    return tail.count(unit) >= _LOOP_TIMES


def extract(
    text: str, *, cut_off: bool = False, shape: Shape = "any", fields: Sequence[str] = FIELDS
) -> Extraction | None:
    """Return the answer that `text` states, None when it states none.

    Args:
        text: the completion after its thinking.
        cut_off: whether the completion reached the length limit, or its thinking was not closed.
        shape: what the answer looks like, which decides between the parts of a concluding sentence.
        fields: names of the field with the answer in a JSON object, best first.

    Returns:
        The last statement of an answer that is not retracted, or the value of the last sentence, or the whole text
        when it is only a value.
    """
    short = shorten(_body(text))
    found = _extract(short.text, cut_off, shape, fields)
    return found if found is None or not short.cuts else _placed(text, short, found)


def _placed(text: str, short: Shortened, found: Extraction) -> Extraction:
    """Return an extraction from a shortened text with its places in the whole text."""

    def place(start: int, end: int) -> tuple[int, int]:
        return short.place(start), short.place(end - 1) + 1 if end > start else short.place(start)

    start, end = place(found.start, found.end)
    boxes = []
    for box in found.boxes:
        outer, inner = place(box.start, box.end), place(box.inner_start, box.inner_end)
        boxes.append(replace(box, start=outer[0], end=outer[1], inner_start=inner[0], inner_end=inner[1]))
    whole = text[start:end]
    decoded = found.decoded or (found.text if whole != found.text else "")
    return replace(found, text=whole, start=start, end=end, boxes=tuple(boxes), decoded=decoded)


def _extract(body: str, cut_off: bool, shape: Shape, fields: Sequence[str]) -> Extraction | None:
    unfinished = cut_off or loops(body)
    if not unfinished and ends_in_object(body):
        return _field(body, shape, fields)
    stated = _last_statement(body, cut_off, shape)
    open_ended = unfinished or not body.rstrip().endswith(ENDS)
    if stated is not None and open_ended and QUESTIONS.search(body[stated.end :]):
        return None
    after = None if stated is None else retracted(body, stated.end)
    if after is not None:
        stated = None
    if stated is not None and stated.how != "mentioned":
        return stated
    if unfinished or body.count("```") % 2:
        return stated or (lone_value(body, shape) if not cut_off else None)
    if open_math(body):
        return stated
    return conclusion(body, after or 0, shape) or stated or (None if after else lone_value(body, shape))


def _field(body: str, shape: Shape, fields: Sequence[str]) -> Extraction | None:
    """Return the answer field of a JSON object; the answer that its text states, if it is a longer text."""
    found = json_field(body, fields)
    if found is None:
        return None
    if len(found.value) > _LONG or "\n" in found.value.strip():
        inner = extract(found.value, shape=shape, fields=fields)
        if inner is None:
            return None
        return replace(inner, start=found.start, end=found.end, text=body[found.start : found.end], decoded=inner.value)
    value = found.value
    if "boxed" in value:
        boxes = find_boxes(found.value)
        value = boxes[-1].text if boxes else found.value
    return replace(extraction(body, Span(found.start, found.end), "field"), decoded=value.strip())


def extract_bare(text: str) -> Extraction:
    """Return the answer in a text that is an answer, possibly with words around it; the whole text when in doubt."""
    short = shorten(_body(text))
    found = _extract_bare(short.text)
    return found if not short.cuts else _placed(text, short, found)


def _extract_bare(body: str) -> Extraction:
    stated = _field(body, "any", FIELDS) or _last_statement(body, cut_off=False, shape="any")
    if stated is not None:
        return stated
    everything = Span(0, len(body))
    found = None
    if len(body) > _LONG and not is_formula(body):
        for sentence in last_sentences(body, 3):
            found = value_in(body, sentence, lenient=True)
            if found is not None:
                break
    elif not _may_be_words(body):
        found = value_in(body, everything, lenient=True)
    span = trimmed(body, found or everything, spoken=False)
    return extraction(body, span, "whole" if found is None else "value")


def extract_whole(text: str) -> Extraction:
    """Return a text, without its markup, as the answer."""
    return extraction(text, trimmed(text, Span(0, len(text)), spoken=False), "whole")


def _may_be_words(body: str) -> bool:
    """Return whether a short answer is a phrase that contains a number, such as `Vendor 2`, and not a sentence."""
    if len(body.split()) > 4 or re.search(r"\$|\\[(\[]", body) or _STATES.search(body):
        return False
    return not is_value(strip_markup(body))


def extract_several(text: str, stated: Extraction, count: int | None = None) -> Extraction | None:
    """Return several boxes as one answer.

    Args:
        text: the completion after its thinking.
        stated: the answer that `extract` found in it.
        count: the number of boxes to take from the end; None takes those next to the last one.

    Returns:
        The boxes as one answer, None when there is only one (or only one content), or fewer than `count`.
    """
    group = stated.boxes[-(count or stated.adjacent) :]
    if len(group) < (count or 2) or len({box.text.strip() for box in group}) < 2:
        return None
    start, end = group[0].start, group[-1].end
    return Extraction(text[start:end], start, end, "boxes", parts=tuple(box.text.strip() for box in group))


def _body(text: str) -> str:
    match = _CONTROL.search(text)
    return text[: match.start()] if match and match.start() else text


def _last_statement(body: str, cut_off: bool, shape: Shape) -> Extraction | None:
    boxes = find_boxes(body)
    if cut_off and boxes and not boxes[-1].closed:
        boxes = boxes[:-1]
    announced = _last_announced(body, boxes, cut_off, shape)
    if boxes and (announced is None or boxes[-1].end >= announced.end - 1):
        return _boxed(body, boxes, shape)
    return announced


def _boxed(body: str, boxes: list[Box], shape: Shape) -> Extraction | None:
    last = boxes[-1]
    inner = body[last.inner_start : last.inner_end]
    start = last.inner_start + len(inner) - len(inner.lstrip())
    span = Span(start, start + len(inner.strip()))
    if _SENTENCE_INSIDE.search(last.text):
        span = trimmed(body, value_in(body, span, lenient=False, shape=shape) or span)
    found = extraction(body, span, "boxed")
    before = body[max(0, last.start - 40) : last.start]
    if not finished(found.text) or _NOT_BEFORE.search(before) or NO_KNOWLEDGE.fullmatch(strip_markup(found.text)):
        return None
    return replace(found, boxes=tuple(boxes), adjacent=len(adjacent_boxes(body, boxes)))


def _last_announced(body: str, boxes: list[Box], cut_off: bool, shape: Shape) -> Extraction | None:
    after = boxes[-1].end if boxes else 0
    for one in announcements(body, max(0, after - 200), after_box=bool(boxes)):
        if one.end <= after or (cut_off and one.statement.end >= len(body.rstrip())):
            continue
        if shape in ("words", "option"):
            found: Span | None = bare(body, one.statement)
        else:
            found = value_in(body, one.statement, lenient=not boxes, shape=shape)
        if found is None:
            continue
        span = trimmed(body, found)
        value = body[span.start : span.end]
        if not value or _NOT_AN_ANSWER.match(value) or (boxes and not re.search(r"[\d\\]|^\W*[A-H]\W*$", value)):
            continue
        if not one.strong and len(value.split()) > _NAME_WORDS and not re.search(r"[\d\\]", value):
            continue  # "the answer is hidden in the second equation"
        if (shape != "option" and not finished(value)) or NO_KNOWLEDGE.fullmatch(strip_markup(value)):
            continue
        direct = is_value(value) or len(value.split()) <= _NAME_WORDS or len(body) - span.end < _NEAR_END
        how = "mentioned" if not direct else "announced" if one.strong else "weakly_announced"
        return extraction(body, span, how)
    return None
