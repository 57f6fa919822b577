"""Read the answer of a text that announces none: its last sentence or line, a table's last row, or the whole text."""

from __future__ import annotations

import re
from dataclasses import replace

from tracefactory.answers.announce import hedged
from tracefactory.answers.extraction import ENDS, NO_KNOWLEDGE, QUESTIONS, Extraction, extraction, finished, trimmed
from tracefactory.answers.formulas import FORMULA
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.retraction import negates
from tracefactory.answers.sentences import Span, bare, is_value, last_sentences
from tracefactory.answers.shapes import Shape
from tracefactory.answers.statements import value_in
from tracefactory.answers.structured import last_cell

_OPENING = re.compile(r"\s*(?:(?:therefore|thus|so|hence)\s*,?\s+)?\**(yes|no)\**\s*(?=[,.]|$)", re.IGNORECASE)
_MARKED_WORDS = re.compile(r"\$\\text\w*\{([A-Za-z][^{}$]*)\}\$|`([^`\n]+)`")
_NAME_AT_END = re.compile(r"(?:\b(?:is|was|are|on)|['’]s)\s+\**([A-Z][a-z]+(?: [A-Z][a-z]+)?)\**[.。]?\s*$")
_ONLY_FENCE = re.compile(r"```[a-z]*\s*\n([^\n`]+)\n```")
_ANNOUNCES_NOTHING = re.compile(
    r"(?:(?:so|therefore|thus|hence)?,?\s*(?:the|my|our)?\s*(?:final|correct)?\s*(?:answer|result|solution)s?(?:\s+(?:is|are))?|i|i'm.*|i\s.*|"
    r"(?:最终|正确)?答案(?:是|为)?|sorry\b.*)\W*",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:maybe|perhaps|might|possibly|probably|suppose|assum(?:e|ing)|whether|guess|hmm+|let(?:'s|\s+me|\s+us|\s)|try|trying"
    r"|consider|check(?:ing)?|verify|sure|(?:need|want|have|has|needs|wants)\s+to\s+(?:find|compute|calculate|determine|check|show)"
    r"|^\W*we\s+(?:know|are\s+(?:told|given))|^\W*next,?\s+(?:we|i|let)\s+(?:need|will|must|compute|calculate|have\s+to)|(?:we|i)(?:'ll|\s+will)\s+(?:now|find|compute|calculate|determine)|(?:he|she|who|one)\s+(?:claims?|says?)|only\s+if|unless|doubt|e\.g|for\s+instance|please|müssen\s+wir|wir\s+müssen|zuerst|zunächst|d['’]abord|primero|primeiro|dobbiamo|сначала|нужно\s+найти)\b|首先|まず|먼저|可能|也许|如果|假设|假如|是否|是不是|难道|设",
    re.IGNORECASE,
)
"""In a last sentence without a marker: a guess, an attempt or a plan."""
_REFUSAL = re.compile(
    r"\b(?:sorry|unable\s+to|(?:can(?:not|['’]t)|don['’]t|do\s+not|won['’]t)\s+(?:\w+\s+)?(?:answer|help|determine|know|say|solve|confirm|provide|tell|assist)"
    r"|as\s+an\s+ai|not\s+enough\s+information|insufficient\s+information|impossible\s+to\s+(?:say|tell|determine|know)|if\s+you\s+(?:send|provide|give|share|tell|can)|please\s+(?:provide|send|share|give)|leider\s+nicht|kann\s+(?:ich\s+)?nicht|je\s+ne\s+peux\s+pas|désolé|no\s+puedo|lo\s+siento|non\s+posso|mi\s+dispiace|não\s+posso|desculpe|не\s+могу|извините)\b|抱歉|无法|すみません|できません|죄송",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\W*(?:therefore|thus|hence|in\s+(?:conclusion|summary)|finally|consequently|accordingly"
    r"|the\s+(?:final\s+)?(?:result|solution|solutions|answer)\s+(?:is|are))\b|∴|\\therefore|综上|因此|最终",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"[\s>*_#-]*(?:step|schritt|étape|paso|passo|шаг)\s*(\d+)\b|[\s>*_#-]*第\s*([一二三四五六七八九十\d]+)\s*步",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[\s>*_-]*\(?([A-Za-z])\)?[*_]{0,2}[ \t]*[:：][*_]{0,2}[ \t]*(\S[^\n]*)")
_NOTE = re.compile(
    r"\W*(?:note|remark|alternat(?:e|ive)|this\s+can\s+also|for\s+example|to\s+(?:see|check|verify)\b)", re.IGNORECASE
)
_LIST_MARKER = re.compile(r"\s*\(?\d{1,2}[.)]\s*")
_UNEVALUATED = re.compile(r"(?:[-+/×÷=]|\s\*)\s*[.$]*\s*$")
_BEGINS_AGAIN = re.compile(r"\W*(?:wait|hold\s+on|hmm+|let\s+me|let['’]s)\b", re.IGNORECASE)
_LONGEST_NAME = 60
_VALUE_SIGN = re.compile(
    r"\d|\\|[πθ√²³∞]|[-+*/^()=]|(?i:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|teen|ty|zero|none)"
)
_UNEQUAL = re.compile(r"≠|\\neq?(?![a-z])|!=")
_ASSIGNMENT = re.compile(r"\s*+[$*\-]*+\s*+\\?[A-Za-z](?:_\{?\w+\}?)?\s*=[^=\n]+")
_LAST_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n([^`]+?)\n?```\s*\Z")
_WORD_LABEL = re.compile(
    r"[\s*_]*(?:output|prints?|returns?|result|value|name|symbol|formula|day|date|city|word)\s*[*_]*[:：][*_ ]*",
    re.IGNORECASE,
)
_WORDS_AT_END = re.compile(
    r"\b(?:is|are|was|were|be|called|named|returns?|prints?|gives?|outputs?|raises?|yields?)\s+(?:the\s+|an?\s+)?"
    r"([^\s.,;:!?](?:[^\s]|\s(?!(?:and|or|that|which|to|of|not)\b)){0,40}?[^\s.,;:!?]|[^\s.,;:!?])[\s.!]*$",
    re.IGNORECASE,
)
_LINE_OPENS = re.compile(r"(?:[?？:：,，]|\\\\|&)\s*$")


def open_math(body: str) -> bool:
    """Return whether a formula or environment is not closed, so that the text ends inside of it."""
    pairs = ((r"\begin{", r"\end{"), (r"\[", r"\]"), (r"\(", r"\)"))
    return len(re.findall(r"(?<!\\)\$\$", body)) % 2 == 1 or any(
        body.count(first) > body.count(last) for first, last in pairs
    )


def _evaluated(value: str) -> bool:
    """Return whether a value is no calculation that is still to be done, such as `27 + 8` or `3 \\cdot 4`."""
    inner = re.sub(
        r"\\[dt]?frac\s*\{?-?\d+\}?\s*\{?\d+\}?|^\W*-|\\text\w*\{[^{}]*\}|\d\s*/\s*\d+\s*$", "1", strip_markup(value)
    )
    if re.search(r"≈|\\approx|\\(?:sqrt|pi|log|ln|sin|cos|tan|infty|pm|circ|in|e\b)|[πi√∞°,;=<>]|[a-z]{2}\s*$", inner):
        return True
    return re.search(r"\d\s*\)?\s*(?:[-+*/×÷^]|\\(?:cdot|times|div)(?![a-z]))\s*\(?\s*[\d\\(]", inner) is None


def conclusion(body: str, after: int, shape: Shape) -> Extraction | None:
    """Return the value of the last sentence, if that sentence states one and begins at or after `after`."""
    several = _assignments(body) if shape == "parts" else None
    if several is not None and several.start >= after:
        return several
    cell = last_cell(body)
    if cell is not None and cell.start >= after:
        span = trimmed(body, Span(cell.start, cell.end))
        found = extraction(body, span, "table" if cell.labelled or cell.whole else "sentence")
        return found if found.text.strip() and finished(found.text) else None
    for sentence in last_sentences(body, 3):
        if sentence.start < after:
            return None
        text = body[sentence.start : sentence.end].strip()
        if (_NOTE.match(text) and not re.search(r"\bso\b", text)) or _is_aside(text):
            continue
        return _concluded(body, sentence, shape)
    return None


def _assignments(body: str) -> Extraction | None:
    """Return the assignments on the last lines, `x = 1` and `y = 2`, as one answer; None for fewer than two."""
    end = len(body.rstrip())
    lines: list[Span] = []
    while end > 0:
        start = body.rfind("\n", 0, end) + 1
        if not _ASSIGNMENT.fullmatch(body, start, end) or not is_value(body[start:end]):
            break
        lines.insert(0, Span(start, end))
        end = start - 1
    names = {body[one.start : one.end].split("=")[0].strip(" $*-") for one in lines}
    if len(lines) < 2 or len(names) < len(lines):
        return None
    whole = extraction(body, Span(lines[0].start, lines[-1].end), "last_line")
    return replace(whole, parts=tuple(strip_markup(body[one.start : one.end]) for one in lines))


def _concluded(body: str, sentence: Span, shape: Shape) -> Extraction | None:
    text = body[sentence.start : sentence.end]
    words = FORMULA.sub(" ", text)
    if (
        _LINE_OPENS.search(text)
        or _UNEVALUATED.search(text)
        or _BEGINS_AGAIN.match(text)
        or _LIST_MARKER.fullmatch(text)
    ):
        return None
    if _DOUBT.search(words) or _REFUSAL.search(body):
        return None
    label = _LABEL.fullmatch(text.strip())
    if label is not None and is_value(label[2].strip("*_ ")):
        start = sentence.start + text.index(label[1])
        return extraction(body, trimmed(body, Span(start, sentence.end)), "label")
    if shape == "words":
        found = _words(body, sentence)
    elif shape == "option":
        found = _alone(body, sentence) if re.fullmatch(r"\W*[A-J]\W*", text) else None
    else:
        found = value_in(body, sentence, lenient=False, shape=shape) or _name(body, sentence)
    if found is None or (shape in ("number", "any") and not _evaluated(body[found.start : found.end])):
        return None
    if QUESTIONS.search(body[found.end : sentence.end]):
        return None
    comma = max(body.rfind(sign, sentence.start, found.start) for sign in ",;:")
    clause = body[max(sentence.start, comma + 1) : found.end]
    if negates(FORMULA.sub(" ", clause[-200:])) or (
        shape == "number" and _UNEQUAL.search(body, found.start, found.end)
    ):
        return None
    span = trimmed(body, found)
    ends = not re.search(r"\w", body[span.end :]) or body.rstrip().endswith(ENDS)
    if not finished(body[span.start : span.end]) or not (ends or _without_stops(body, sentence)):
        return None
    return extraction(body, span, _form(body, sentence, span))


def _form(body: str, sentence: Span, span: Span) -> str:
    """Return the form of a conclusion: the last line alone, a sentence that says it concludes, or any sentence."""
    text = body[sentence.start : sentence.end]
    if not re.search(r"\w", body[sentence.start : span.start] + body[span.end : sentence.end]):
        if not body[: sentence.start].strip():
            return "whole"
        return "last_line" if _VALUE_SIGN.search(text) or not is_value(strip_markup(text)) else "sentence"
    line = body.rfind("\n", 0, sentence.end - 1) + 1
    step = _STEP.match(body, min(line, sentence.start))
    if step is not None and (step[1] or step[2]) in ("1", "一"):
        return "step"
    return "concluded" if _CONCLUDES.match(text) else "sentence"


def _words(body: str, sentence: Span) -> Span | None:
    """Return the words of a last sentence that are alone on their line, in a code block, at its end, or marked."""
    fence = _LAST_FENCE.search(body)
    if fence is not None and fence.start() <= sentence.start:
        return Span(*fence.span(1))
    at_end = _WORDS_AT_END.search(body, sentence.start, sentence.end)
    if at_end is not None and "\\text" not in at_end[1]:
        return _alone(body, sentence) or Span(*at_end.span(1))
    return _alone(body, sentence) or _name(body, sentence)


def _alone(body: str, sentence: Span) -> Span | None:
    """Return a short last line of its own, without being a sentence."""
    text = body[sentence.start : sentence.end].strip()
    label = _WORD_LABEL.match(body, sentence.start, sentence.end)
    if label is not None and len(text) <= _LONGEST_NAME:
        return Span(label.end(), sentence.end)
    before = body[: sentence.start]
    if len(text) > _LONGEST_NAME or (before.strip() and not before.rstrip(" \t*_").endswith("\n")):
        return None
    return None if text.endswith((".", "!", "?")) and len(text.split()) > 3 else sentence


def _is_aside(sentence: str) -> bool:
    return sentence.startswith("(") and sentence.rstrip(".").endswith(")") and " " in sentence


def _without_stops(body: str, sentence: Span) -> bool:
    """Return whether a text has a line for each step, whose last one needs no full stop."""
    return "\n" in body[: sentence.start]


def _name(body: str, sentence: Span) -> Span | None:
    """Return yes or no at the start of a sentence, a name at its end, or its only words in a formula or code marks."""
    place = (body, sentence.start, sentence.end)
    marked = list(_MARKED_WORDS.finditer(*place))
    texts = [match for match in marked if match[1]]
    word = (
        (texts[0] if len(texts) == 1 else None)
        or _OPENING.match(*place)
        or _NAME_AT_END.search(*place)
        or (marked[0] if len(marked) == 1 else None)
    )
    if word is None:
        return None
    return Span(*next(word.span(index) for index in range(1, word.re.groups + 1) if word[index] is not None))


def lone_value(body: str, shape: Shape) -> Extraction | None:
    """Return a short text that is only a value, such as `42` or `x = 3`, or a name."""
    stripped = body.strip()
    fence = _ONLY_FENCE.fullmatch(stripped)
    if fence and is_value(fence[1]):
        start = body.index(stripped) + fence.start(1)
        return extraction(body, Span(start, start + len(fence[1])), "whole")
    if (
        not stripped
        or len(stripped) > 60
        or "\n" in stripped
        or stripped.count("=") > 1
        or re.search(r"[^*]\*$", stripped)
        or stripped.rstrip("*").endswith(tuple("=+-/<>(,?:？："))
        or hedged(stripped)
        or not re.search(r"\w", re.sub(r"\\[a-zA-Z]+", "", stripped))
        or _ANNOUNCES_NOTHING.fullmatch(stripped.strip("*_# "))
        or NO_KNOWLEDGE.fullmatch(stripped)
        or negates(stripped)
        or _UNEQUAL.search(stripped)
    ):
        return None
    if shape in ("number", "expression") and not (is_value(stripped) and _VALUE_SIGN.search(stripped)):
        return None
    if not is_value(stripped) and len(re.findall(r"[\u4e00-\u9fff]{2}|[^\s\u4e00-\u9fff]+", stripped)) > 4:
        return None
    span = trimmed(body, bare(body, Span(0, len(body))))
    return extraction(body, span, "sentence" if re.search(r"[-+*/×÷][^=]{0,60}=", stripped) else "whole")
