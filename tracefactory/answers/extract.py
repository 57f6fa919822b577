"""Extract the answer that a completion states, with its position; numbers in passing are not answers.

An answer is stated by a box (`\\boxed{}`), by a phrase that announces it ("the final answer is", "####", "答案是") or
by a concluding last sentence. The last statement counts. In a truncated or looping text, a statement that the text then
questions does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tracefactory.answers.announce import announcements, hedged
from tracefactory.answers.boxes import Box, adjacent_boxes, find_boxes
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.sentences import Span, bare, is_formula, is_value, last_sentences, value_in

_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|end|return|end_of_text|end_of_solution)\|>|</s>|<｜end▁of▁sentence｜>"
)
_THINK = re.compile(
    r"(?P<open><(?:think|thinking|thought|reasoning|seed:think|Begin_of_Draft)>|<\|begin_of_thought\|>|◁think▷|\[THINK\]"
    r"|<\|channel\|>analysis<\|message\|>)"
    r"|</(?:think|thinking|thought|reasoning|seed:think)>|<End_of_Draft>|<\|end_of_thought\|>|◁/think▷|\[/THINK\]"
    r"|(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>",
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
_OPENING = re.compile(r"\s*(?:(?:therefore|thus|so|hence)\s*,?\s+)?\**(yes|no)\**\s*(?=[,.]|$)", re.IGNORECASE)
_NAME_AT_END = re.compile(r"\b(?:is|was|are|on)\s+\**([A-Z][a-z]+(?: [A-Z][a-z]+)?)\**[.。]?\s*$")
_LABELLED = re.compile(r"\W*[A-Za-z][A-Za-z ]*=.*=?\s*-?[$€£¥]?\d[\d,.]*(?:\s*[^\W\d]+)?\W*")
_ROW = re.compile(
    r"\|(?:[^|\n]*\b(?:answer|total|result|final|sum)\b[^|\n]*|[^|\n]*(?:答案|合计|总|结果)[^|\n]*)\|(?:[^|\n]*\|)+",
    re.IGNORECASE,
)
_ONLY_FENCE = re.compile(r"```[a-z]*\s*\n([^\n`]+)\n```")
_ANNOUNCES_NOTHING = re.compile(
    r"(?:(?:so|therefore|thus|hence)?,?\s*(?:the|my|our)?\s*(?:final|correct)?\s*(?:answer|result|solution)s?(?:\s+(?:is|are))?|i|i'm.*|i\s.*|"
    r"(?:最终|正确)?答案(?:是|为)?|sorry\b.*)\W*",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$[^$]*\$|\\\(.*?\\\)")
_LOOP_WINDOW, _LOOP_UNIT, _LOOP_TIMES = 3000, 30, 5
_TERMINAL = tuple(".!?。！？}])$`*\"'>)）】”")


@dataclass(frozen=True)
class Extraction:
    """An extracted answer: its text, the [start, end) range of that text, and how it was stated.

    `boxes` are all boxes up to the chosen one; the last `adjacent` of them are next to each other. `parts` are the
    contents of several boxes that form one answer.
    """

    text: str
    start: int
    end: int
    how: str
    boxes: tuple[Box, ...] = ()
    adjacent: int = 1
    parts: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The value to compare: the text, or the contents of several boxes as a list."""
        return ", ".join(self.parts) or self.text


@dataclass(frozen=True)
class Completion:
    """A completion split into reasoning and answer; `open` means that the thinking was not closed."""

    reasoning: str
    answer: str
    open: bool


def split_thinking(text: str) -> Completion:
    """Split a completion at the last end of thinking."""
    first_open = last_open = last_close = None
    for match in _THINK.finditer(text):
        if match["open"]:
            first_open, last_open = first_open or match, match
        else:
            last_close = match
    if last_close is not None and (last_open is None or last_open.start() < last_close.start()):
        start = first_open.end() if first_open else 0
        return Completion(text[start : last_close.start()], text[last_close.end() :], open=False)
    if last_open is not None:
        return Completion(text[last_open.end() :], text[: last_open.start()] if last_close else "", open=True)
    return Completion("", text, open=False)


def loops(text: str) -> bool:
    """Return whether the text ends in a loop: its last characters occur many times shortly before."""
    tail = text.rstrip()[-_LOOP_WINDOW:]
    unit = tail[-_LOOP_UNIT:]
    if len(unit) < _LOOP_UNIT or len(set(unit)) < 3:
        return False
    return tail.count(unit) >= _LOOP_TIMES


def extract(text: str, *, cut_off: bool = False) -> Extraction | None:
    """Return the answer that `text` states, None when it states none.

    Args:
        text: the completion after its thinking.
        cut_off: whether the completion reached the length limit, or its thinking was not closed.

    Returns:
        The last statement of an answer, or the value of the last sentence, or the whole text when it is only a value.
    """
    body = _body(text)
    stated = _last_statement(body, cut_off)
    unfinished = cut_off or loops(body)
    open_ended = unfinished or not body.rstrip().endswith(_TERMINAL)
    if stated is not None and open_ended and _RETRACTS.search(body[stated.end :]):
        return None
    if stated is not None and stated.how != "mentioned":
        return stated
    if unfinished or body.count("```") % 2:
        return stated or (_lone_value(body) if not cut_off else None)
    return _conclusion(body, open_ended=open_ended) or stated or _lone_value(body)


def extract_bare(text: str) -> Extraction:
    """Return the answer in a text that is an answer, possibly with words around it; the whole text when in doubt."""
    body = _body(text)
    stated = _last_statement(body, cut_off=False)
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
    span = _trimmed(body, found or everything, spoken=False)
    return _extraction(body, span, "whole" if found is None else "value")


def extract_whole(text: str) -> Extraction:
    """Return a text, without its markup, as the answer."""
    return _extraction(text, _trimmed(text, Span(0, len(text)), spoken=False), "whole")


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


def _extraction(body: str, span: Span, how: str) -> Extraction:
    return Extraction(body[span.start : span.end], span.start, span.end, how)


def _body(text: str) -> str:
    match = _CONTROL.search(text)
    return text[: match.start()] if match and match.start() else text


def _last_statement(body: str, cut_off: bool) -> Extraction | None:
    boxes = find_boxes(body)
    if cut_off and boxes and not boxes[-1].closed:
        boxes = boxes[:-1]
    announced = _last_announced(body, boxes, cut_off)
    if boxes and (announced is None or boxes[-1].end >= announced.end - 1):
        return _boxed(body, boxes)
    return announced


def _boxed(body: str, boxes: list[Box]) -> Extraction:
    last = boxes[-1]
    inner = body[last.inner_start : last.inner_end]
    start = last.inner_start + len(inner) - len(inner.lstrip())
    span = Span(start, start + len(inner.strip()))
    if _SENTENCE_INSIDE.search(last.text):
        span = _trimmed(body, value_in(body, span, lenient=False) or span)
    found = _extraction(body, span, "boxed")
    return replace(found, boxes=tuple(boxes), adjacent=len(adjacent_boxes(body, boxes)))


def _last_announced(body: str, boxes: list[Box], cut_off: bool) -> Extraction | None:
    after = boxes[-1].end if boxes else 0
    for one in announcements(body, max(0, after - 200), after_box=bool(boxes)):
        if one.end <= after or (cut_off and one.statement.end >= len(body.rstrip())):
            continue
        found = value_in(body, one.statement, lenient=not boxes)
        if found is None:
            continue
        span = _trimmed(body, found)
        value = body[span.start : span.end]
        if not value or _NOT_AN_ANSWER.match(value) or (boxes and not re.search(r"[\d\\]|^\W*[A-H]\W*$", value)):
            continue
        if not one.strong and len(value.split()) > _NAME_WORDS and not re.search(r"[\d\\]", value):
            continue  # "the answer is hidden in the second equation"
        direct = is_value(value) or len(value.split()) <= _NAME_WORDS or len(body) - span.end < _NEAR_END
        return _extraction(body, span, "announced" if direct else "mentioned")
    return None


def _conclusion(body: str, *, open_ended: bool) -> Extraction | None:
    """Return the value of the last sentence, if that sentence states one.

    In an `open_ended` text, without final punctuation, the sentence must be a conclusion and end with the value.
    """
    for sentence in last_sentences(body, 1):
        text = body[sentence.start : sentence.end]
        if _RETRACTS.search(text) or text.rstrip().endswith(("?", "？", ":", "：")) or hedged(_FORMULA.sub(" ", text)):
            return None
        row = _ROW.fullmatch(text.strip())
        if row is not None:  # the last cell of a table row
            close = body.rindex("|", sentence.start, sentence.end)
            sentence = Span(body.rindex("|", sentence.start, close) + 1, close)
        found = value_in(body, sentence, lenient=False)
        if found is None:  # yes or no at the start, or a name at the end: `The day is Tuesday.`
            place = (body, sentence.start, sentence.end)
            word = _OPENING.match(*place) or _NAME_AT_END.search(*place)
            if word is None:
                return None
            found = Span(*word.span(1))
        span = _trimmed(body, found)
        ends = not re.search(r"\w", body[span.end :])
        if open_ended and row is None and not (ends and (_STATES.search(text) or _is_equation(text))):
            return None
        return _extraction(body, span, "conclusion")
    return None


def _is_equation(text: str) -> bool:
    if _LABELLED.fullmatch(text.strip()) and not re.search(r"[-+*/×^]\s*[\d.]+\W*$", text):
        return True
    return re.fullmatch(r"\W*\\?[A-Za-z]\w*\s*=[^=]*[\w)}$\]]", text.strip()) is not None and is_value(text)


def _lone_value(body: str) -> Extraction | None:
    """Return a short text that is only a value, such as `42` or `x = 3`, or a name."""
    stripped = body.strip()
    fence = _ONLY_FENCE.fullmatch(stripped)
    if fence and is_value(fence[1]):
        start = body.index(stripped) + fence.start(1)
        return _extraction(body, Span(start, start + len(fence[1])), "whole")
    if (
        not stripped
        or len(stripped) > 60
        or "\n" in stripped
        or stripped.count("=") > 1
        or re.search(r"[^*]\*$", stripped)
        or stripped.rstrip("*").endswith(tuple("=+-/<>(,?:？："))
        or hedged(stripped)
        or not re.search(r"\w", re.sub(r"\\[a-zA-Z]+", "", stripped))
        or _ANNOUNCES_NOTHING.fullmatch(stripped)
    ):
        return None
    if not is_value(stripped) and len(re.findall(r"[\u4e00-\u9fff]{2}|[^\s\u4e00-\u9fff]+", stripped)) > 4:
        return None
    span = bare(body, Span(0, len(body)))
    return _extraction(body, _trimmed(body, span), "whole")


def _trimmed(body: str, span: Span, *, spoken: bool = True) -> Span:
    """Shrink a range as `strip_markup` would. In a `spoken` sentence, `3!` is 3 with an exclamation mark."""
    span = bare(body, span)
    text = body[span.start : span.end]
    inner = strip_markup(text)
    if spoken and re.fullmatch(r"\d+!", text.strip()):
        inner = inner[:-1]
    delimited = _DELIMITED.fullmatch(inner)
    if delimited:
        inner = next(group for group in delimited.groups() if group is not None).strip()
    at = text.find(inner)
    if not inner or at < 0:
        return span
    return Span(span.start + at, span.start + at + len(inner))
