"""Find the end of a statement, and the part of it that is a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.reading import read
from tracefactory.answers.relations import is_equation, name_of
from tracefactory.answers.values import (
    Clock,
    Day,
    Interval,
    Matrix,
    Quantity,
    Ratio,
    Region,
    Relation,
    Sequence,
    Text,
    Value,
)

_END = re.compile(r"\n\s*\n|(?<![\d\s])\.(?=\s|$)|(?<=\d)\.(?=\s|$|\*)|[!?](?=\s|$)(?<!\d!)|。|！|？|\n(?=\S)|；")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$*#(∴]|[a-z]\s*=)|(?<=[。！？])|\n+")
_FENCE = re.compile(r"\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(?!\s*\d[\d,.]*\s+[a-z])([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_COPULA = re.compile(
    r"\b(?:is|are|was|were|equals?|equal\s+to|be|becomes?|gives?|gets?|it's|i\.e\.,?|have|has|had|pays?|paid|earns?|earned|"
    r"costs?|needs?|makes?|made|spends?|spent|takes?|yields?|obtain)(?=\W)|=|[:：](?!\d)|是|为|等于|有|共|需要?|得到?|剩下?|选",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(r"\b(?:of|for|as|to)(?=\W)", re.IGNORECASE)
_DIRECT = re.compile(
    r"\b(?:is|are|was|were|equals?|be|gives?|gets?|have|has|had|pays?|paid|earns?|earned|costs?|needs?|makes?|made|"
    r"spends?|spent|takes?|took|receives?|received|saves?|saved|sold|sells?|left|travels?|pay)\s+"
    r"(?:(?:a\s+total\s+of|approximately|about|exactly|only|now|still|then|also|therefore)\s+)*(?:\*\*|\$)?(?=[-\d$€£¥\\])",
    re.IGNORECASE,
)
_CALCULATED = re.compile(r"<<[^<>]*>>\s*(-?[\d.,]*\d)(?!.*<<)", re.DOTALL)
"""A number after a calculator annotation, as in GSM8K (Cobbe et al. 2021)."""
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_LEAD = re.compile(
    r"(?:[}\s:：,，→⇒✅👉✔️🎉∴]|=>|⟹|->|\*+|\\(?:therefore|implies|Rightarrow|quad|qquad)(?![a-zA-Z])|"
    r"(?:therefore|thus|hence|so|then|now|here|finally|consequently|overall|accordingly|and|that\s+is|i\.e\.|in\s+(?:conclusion|summary|total|all)|"
    r"we\s+(?:get|have|obtain|find|conclude|see|know)(?:\s+that)?|(?:this|it|which)\s+(?:gives|means|follows|yields|implies)(?:\s+(?:us|that))*|"
    r"it\s+is|it's|there\s+(?:is|are|were|was|will\s+be)|simply|just|indeed)(?![\w'])|"
    r"综上所述|综上|因此|所以|于是|从而|最终|即|故|则|得)+",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"(?:[\s,，;✅✓✔️🎉😊☑*]|(?<=\s)[a-z]{0,3}\.{2,}|,?\s*(?:as\s+(?:required|desired|needed|claimed|expected|"
    r"stated|requested|the\s+(?:final\s+)?answer)|"
    r"(?:in\s+total|altogether|in\s+all|overall|respectively)(?=\W*$)\.?|as\s+(?:was\s+)?to\s+be\s+(?:shown|proved)|です|"
    r"입니다|QED|∎|□|■|\\(?:blacksquare|square|Box|qed)))+$",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\s+\((?![^()]*\bbase\b)[^()$\\]*[A-Za-z]{2,}[^()$\\]* [^()$\\]*\)$")
_SUBORDINATE = re.compile(
    r"\b(?:if|when|whenever|where|after|because|since|given|before|while|once|than)\b[^,.;]*$", re.I
)
_BOUND = re.compile(
    r"\b(?:at\s+least|at\s+most|more\s+than|less\s+than|fewer\s+than|greater\s+than|up\s+to|not|never|no\s+more\s+than|between)"
    r"\s*\$?\s*$|至少$|至多$|不是$|不$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(r"\s*(?:or\s+(?:more|less|fewer|above|below|greater)|以上|以下)", re.IGNORECASE)
_REASON = re.compile(
    r"\s*(?:,?\s+(?:because|since|so that|which(?!\s+(?:equals|is|gives|makes))|where|after|when|per our|"
    r"achieved|attained|reached)\b|\s*\((?:when|at|since|because|with|where)\b|，?因为|，所以).*$",
    re.DOTALL | re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.\\^_{])[-+−]?\s?(?:[$€£¥]\s?)?(?:\d{1,2}:\d{2}(?:\s*[apAP]\.?[mM]\b\.?)?"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?|\.\d+)(?:\s*/\s*\d+)?"
    r"(?:\s*(?:%|percent\b|[$€£¥]|°|m²|m³|cm²|cm\b|km\b|kg\b))?(?![\w^_{])"
)
_SEVERAL_CLAUSES = re.compile(r"\b(?:so|then|but|and|while|than|thus)\b|[;；]", re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:of|for|from|in|at|after|by|over|during|between|on|when|if|per|every|with|out|within|before|until|to)\b",
    re.IGNORECASE,
)
_NUMBER_ZH = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?(?=[\u4e00-\u9fff])")
_ENGLISH = re.compile(
    r"\b(?!(?:sin|cos|tan|log|exp|max|min|sqrt)\b)[A-Za-z]{3,} +[A-Za-z]{2,}|"
    r"\b(?:therefore|thus|hence|answer|solution)\b",
    re.I,
)
_LEADING = re.compile(
    r"\s*\**(\d+(?:,\d{3})*(?:\.\d+)?|(?:One|Two|Three|Four|Five|Six|Seven|Eight|Nine|Ten|Eleven|Twelve)\b)(?=\s+[a-z]{3,}\s+[a-z]+)"
)
_ALIGNED = re.compile(
    r"&?\s*=\s*(?!.*=)([^=\\&]*(?:\\(?!\\|end)[^=\\&]*)*?)\s*(?:\\\\)?\s*\\end\{(?:align|gather|split)", re.DOTALL
)
_NUMERIC = re.compile(
    r"\d|\\|[一二三四五六七八九十百千]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|zero)\b"
    r"|\b\w+(?:teen|ty)\b",
    re.IGNORECASE,
)
_NOT_A_SENTENCE = re.compile(
    r"(?:I hope (?:it|this) is correct|I hope this helps|Let me know.*|"
    r"[-*_=#\s]+|\\(?:end|begin)\{\w+\*?\}|\\\]|\$\$)[.!]?",
    re.IGNORECASE,
)
_LONGEST_TAIL = 120
_WORKED = re.compile(r"(?=[^=]*[-+*/×÷])[-\d\s.,+*/×÷()]+=\s*([^=]+)")
"""A calculation with its result, `5 + 7 = 12 birds`."""
_MAX_STATEMENT = 600


@dataclass(frozen=True)
class Span:
    """A [start, end) range of characters."""

    start: int
    end: int


def statement_end(text: str, start: int) -> int:
    """Return the end of the statement at `start`: the end of its sentence or line, never inside a formula."""
    fence = _FENCE.match(text, start)
    if fence:
        return fence.end()
    position = start
    while position < len(text) and (text[position].isspace() or text[position] in "*:"):
        position += 1
    for math in _MATH.finditer(text, position, position + _MAX_STATEMENT):
        end = _END.search(text, position)
        if end is None or end.start() < math.start():
            break
        position = math.end()
    end = _END.search(text, position)
    return min(end.start() if end else len(text), start + _MAX_STATEMENT)


def last_sentences(text: str, count: int) -> list[Span]:
    """Return the last sentences, last first, without closing courtesies such as "I hope this helps".

    Args:
        text: the text.
        count: the number of sentences.
    """
    spans: list[Span] = []
    end = len(text)
    tail = max(0, len(text) - 4000)
    starts = [tail, *(match.end() for match in _SENTENCE.finditer(text, tail))]
    for start in reversed(starts):
        piece = text[start:end].strip()
        if piece and not _NOT_A_SENTENCE.fullmatch(piece):
            spans.append(Span(start, end))
            if len(spans) == count:
                break
        end = start
    return spans


def value_in(text: str, span: Span, *, lenient: bool) -> Span | None:
    """Return the part of a statement that is its value.

    Args:
        text: the text.
        span: the range of the statement.
        lenient: whether a statement without mathematics is a value, and the last number is accepted. Otherwise the
            value must be mathematics, and it must follow a verb or be the whole statement.

    Returns:
        The range of the value, None when there is none.
    """
    fence = _FENCE.match(text, span.start, span.end)
    if fence:
        span = Span(fence.start(1), fence.end(1))
    calculated = _CALCULATED.search(text, span.start, span.end)
    if calculated:
        return Span(*calculated.span(1))
    span = _without_reason(text, span)
    bold = [match for match in _BOLD.finditer(text, span.start, span.end) if is_value(match[1])]
    if len(bold) == 1:
        return bare(text, Span(*bold[0].span(1)))
    span = bare(text, span)
    piece = text[span.start : span.end]
    if not re.search(r"\w", re.sub(r"\\(?:boxed|fbox)(?![a-zA-Z])", "", piece)):
        return None
    rows = _ALIGNED.search(piece)
    if rows and is_value(rows[1]):
        return Span(span.start + rows.start(1), span.start + rows.end(1))
    leading = _leading_number(text, span) if len(piece.split()) > 5 else None
    if leading is not None:
        return leading
    if is_value(piece) or (lenient and is_formula(piece)):
        worked = _WORKED.fullmatch(piece)
        return Span(span.start + worked.start(1), span.end) if worked and is_value(worked[1]) else span
    words = len(re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", re.sub(r"\\[a-zA-Z]+", "", piece)))
    if lenient and words <= 3 and not re.search(r"\d|\$|\\\(|\\\[", piece):
        return span
    after_preposition = partial(_value_after, _PREPOSITION)
    for find in (partial(_value_after, _COPULA), _last_math, _direct, _main_number, after_preposition):  # best first
        found = find(text, span)
        if found is not None:
            return found
    found = _last_number(text, span, lenient=lenient)
    if found is None and lenient and len(piece) <= 300 and not re.search(r"\d", piece):
        return span
    return found


def bare(text: str, span: Span) -> Span:
    """Return a range without the connectives, emphasis and remarks in brackets before and after its value.

    Args:
        text: the text.
        span: the range.
    """
    start, end = span.start, span.end
    lead = _LEAD.match(text, start, end)
    if lead and lead.end() < end:
        start = lead.end()
    tail = _TAIL.search(text, max(start + 1, end - _LONGEST_TAIL), end)
    if tail:
        end = tail.start()
    aside = _ASIDE.search(text, max(start + 1, end - _LONGEST_TAIL), end)
    if aside and is_value(text[start : aside.start()]):
        end = aside.start()
    return Span(start, end)


def _without_reason(text: str, span: Span) -> Span:
    """Remove a reason after the value: `(B) because ...`, `12, since ...`."""
    piece = text[span.start : span.end]
    reason = _REASON.search(piece)
    if reason is None or not reason.start():
        return span
    head = piece[: reason.start()]
    if len(head.strip()) <= 4 or _value_after(_COPULA, text, Span(span.start, span.start + reason.start())):
        return Span(span.start, span.start + reason.start())
    if re.fullmatch(r"\W*[A-J]\W*", head) or is_value(head.strip(" *:")):
        return Span(span.start, span.start + reason.start())
    if re.search(r"\d", head) and not re.search(r"\d\D*$", piece[reason.start() :]):
        return Span(span.start, span.start + reason.start())
    return span


def is_formula(piece: str) -> bool:
    """Return whether a text has only signs and symbols and no words; its parts are then no answers by themselves."""
    return not re.search(
        r"[A-Za-z]{3,}|[\u4e00-\u9fff]|[=:]", re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+", "", piece)
    )


def is_value(piece: str) -> bool:
    """Return whether a text is mathematics and not words."""
    if len(piece) > 400:
        return False
    stripped = strip_markup(piece)
    if not stripped:
        return False
    reading = read(stripped)
    return bool(reading.values) and _mathematical(reading.values[0], stripped)


def _mathematical(value: Value, source: str) -> bool:
    match value:
        case Text():
            return False
        case Quantity():
            if value.node is None and value.unit is None:
                return (
                    not re.search(r"[\u4e00-\u9fff]", source)
                    and bool(re.search(r"\\(?:frac|int|sum|sqrt|begin|lim|prod|log)|\d", source))
                    and not re.search(r"[A-Za-z]{3,} [A-Za-z]{2,}", source)
                )
            return True
        case Sequence():
            return not value.items or all(_mathematical(item, source) for item in value.items)
        case Relation():
            if name_of(value) == "words":
                return False  # "the total = 12": only the right side is a value
            labelled = is_equation(value) and name_of(value) is not None
            return not any(
                isinstance(term, Text) or _ENGLISH.search(re.sub(r"\\[a-zA-Z]+", "", source))
                for term, source in list(zip(value.terms, value.sources, strict=True))[1 if labelled else 0 :]
            )
        case Interval() | Region() | Matrix() | Clock() | Day() | Ratio():
            return True


def _value_after(words: re.Pattern[str], text: str, span: Span) -> Span | None:
    """Return the text after the last of the `words` (verbs or prepositions) in a statement, if it is mathematics."""
    for match in reversed(list(words.finditer(text, span.start, span.end))):
        rest = Span(match.end(), span.end)
        if _inside_math(text, span, match.start()):
            continue
        piece = text[rest.start : rest.end]
        if _NUMERIC.search(piece) and is_value(piece):
            return rest
    return None


def _direct(text: str, span: Span) -> Span | None:
    """Return the number directly after the last verb of a main clause: `he is 45 miles away at the end of 4 hours`."""
    for match in reversed(list(_DIRECT.finditer(text, span.start, span.end))):
        if _SUBORDINATE.search(text[span.start : match.start()]) or _inside_math(text, span, match.start()):
            continue
        signed = _NUMBER.match(text, match.end() - 1) if text[match.end() - 1] in "$€£¥" else None
        number = signed or _NUMBER.match(text, match.end())
        if number and not _BOUND_AFTER.match(text, number.end()):
            return Span(*number.span())
    return None


def _inside_math(text: str, span: Span, position: int) -> bool:
    return any(math.start() < position < math.end() for math in _MATH.finditer(text, span.start, span.end))


def _last_math(text: str, span: Span) -> Span | None:
    found = list(_MATH.finditer(text, span.start, span.end))
    for match in reversed(found):
        inner = next(index for index in range(1, 5) if match[index] is not None)
        piece = match[inner]
        if re.fullmatch(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*", piece) and len(found) > 1:
            continue  # a bare symbol such as $n$, and there is another formula
        start, end = match.span(inner)
        if "=" in piece and not re.search(r"\\[lg]e|[<>]", piece):
            last = piece.rindex("=") + 1
            if (
                re.search(r"\S", piece[last:])
                and is_value(piece[last:])
                and not re.match(r"\s*[A-Za-z(][\w,()]*\s*=", piece)
            ):
                return Span(start + last, end)
        if is_value(piece):
            return Span(start, end)
    return None


def _main_number(text: str, span: Span) -> Span | None:
    """Return the first number of a single clause whose other numbers are in prepositional phrases after it."""
    numbers = list(_NUMBER.finditer(text, span.start, span.end))
    if len(numbers) < 2 or _SEVERAL_CLAUSES.search(text[span.start : span.end]):
        return None
    first, second = numbers[:2]
    before = text[span.start : first.start()]
    if len(before.split()) < 2 or _BOUND.search(before) or _PHRASE.search(" ".join(before.split()[-1:])):
        return None
    return Span(*first.span()) if _PHRASE.search(text, first.end(), second.start()) else None


def _leading_number(text: str, span: Span) -> Span | None:
    """Return the number at the start of a sentence, in its subject: `16 people think that horse 12 will win`."""
    match = _LEADING.match(text, span.start, span.end)
    if match is None or re.search(r"\bthan\b", text[match.end() : span.end]):
        return None
    return Span(match.start(1), match.end(1))


def _last_number(text: str, span: Span, *, lenient: bool) -> Span | None:
    numbers = list(_NUMBER.finditer(text, span.start, span.end)) or list(
        _NUMBER_ZH.finditer(text, span.start, span.end)
    )
    if not numbers or (not lenient and len(numbers) > 1):
        return None
    last = numbers[-1]
    if _BOUND.search(text, span.start, last.start()) or _BOUND_AFTER.match(text, last.end()):
        return None  # "at least 5" is not 5
    return Span(last.start(), last.end())
