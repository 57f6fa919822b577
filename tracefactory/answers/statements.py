"""Find the part of a statement that is its value: after its verb, its last formula, its result, its only number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracefactory.answers.formulas import FORMULA, complete, formulas, inside_formula
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.sentences import FENCE, Span, bare, is_formula, is_value
from tracefactory.answers.shapes import PATTERNS, Shape, fits

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
_BOLD = re.compile(r"(?<![\w*])\*\*([^*\n]+)\*\*(?![\w*])")
_SUBORDINATE = re.compile(r"\b(?:if|when|whenever|where|after|because|since|given|before|while|once|than)\b", re.I)
_BOUND = re.compile(
    r"\b(?:at\s+least|at\s+most|more\s+than|less\s+than|fewer\s+than|greater\s+than|up\s+to|not|never|no\s+more\s+than|between)"
    r"\s*\$?\s*$|至少$|至多$|不是$|不$|(?:≠|≥|≤|[<>]|\\(?:ne|neq|le|ge|leq|geq))\s*$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(r"\s*(?:or\s+(?:more|less|fewer|above|below|greater)|以上|以下)", re.IGNORECASE)
_REASON = re.compile(
    r"\s*(?:,\s+(?:and\s+)?not\b|,?\s+(?:because|since|so that|"
    r"which(?!\s+(?:equals|is|makes|means|gives|leaves|yields|rounds|comes))|where|after|when|per our|"
    r"achieved|attained|reached)\b|\s*\((?:when|at|since|because|with|where)\b|，?因为|，所以).*$",
    re.DOTALL | re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.\\^_{])[-+−]?\s?(?:[$€£¥]\s?)?(?:\d{1,2}:\d{2}(?:\s*[apAP]\.?[mM]\b\.?)?"
    r"|\d{1,3}(?:,\d{3}){1,40}(?:\.\d+)?|\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?|\.\d+)(?:\s*/\s*\d+)?"
    r"(?:\s*(?:%|percent\b|[$€£¥]|°|m²|m³|cm²|cm\b|km\b|kg\b)|[mgshLlVAWNJK](?![\w]))?(?![\w^_{]|\.\d|\s?[,.]\d|\s*,\s*\\infty)"
)
_SEVERAL_CLAUSES = re.compile(r"\b(?:so|then|but|and|while|than)\b|[;；]", re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:of|for|from|in|at|after|by|over|during|between|on|when|if|per|every|with|out|within|before|until|to)\b",
    re.IGNORECASE,
)
_NUMBER_ZH = re.compile(r"[-−]?(?<!\d)\d+(?:,\d{3}){0,40}(?:\.\d+)?(?:/\d+)?%?(?=[\u4e00-\u9fff])")
_LEADING = re.compile(
    r"\s*\**(\d+(?:,\d{3})*(?:\.\d+)?|(?:One|Two|Three|Four|Five|Six|Seven|Eight|Nine|Ten|Eleven|Twelve)\b)(?=\s+[a-z]{3,}\s+[a-z]+)"
)
_ALIGNED = re.compile(
    r"&?\s*=\s*(?!.*=)([^=\\&]*(?:\\(?!\\|end)[^=\\&]*)*?)\s*(?:\\\\)?\s*\\end\{(?:align|gather|split)", re.DOTALL
)
_NUMERIC = re.compile(
    r"\d|\\|[πθ√²³∞]|[a-zA-Z)][-+*/^(]|[-+*/^]\s*[a-zA-Z(]|[一二三四五六七八九十百千]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|zero)\b"
    r"|\b\w+(?:teen|ty)\b",
    re.IGNORECASE,
)
_WORKED = re.compile(r"(?=[^=]*[-+*/×÷])[-\d\s.,+*/×÷()]+=\s*([^=]+)")
"""A calculation with its result, `5 + 7 = 12 birds`."""
_EQUALS = re.compile(r"(?<![<>!=:\\])[=≡](?![=>])|\\equiv(?![a-zA-Z])")
_NEXT_EQUATION = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|iff|quad|qquad|text)(?![a-zA-Z])|[⇒⟹,;]")
_ASSIGNED = re.compile(r"\s*\(?\\?[A-Za-z](?:_\{?\w+\}?)?'?(?:\s*,\s*[A-Za-z])*\)?(?:\([\w\s,]*\))?\s*=")
"""The left side of `x = 5`, `f(x) = 2x` or `(x, y) = (1, 2)`, up to its equals sign."""
_SYMBOL = re.compile(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*")
_ROUNDED = re.compile(
    r"\bround(?:s|ed|ing)?\s+(?:(?:it|that|this|up|down|off)\s+)*to\s+(?:the\s+nearest\s+\w+\s+(?:is|as)\s+)?"
    r"([$€£¥]?\d[\d,]*(?:\.\d+)?)",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"^\s*[-+*/×÷]\s*\$?\d|\b(?:so|thus|therefore|hence|meaning|which\s+(?:is|means|gives|makes|rounds))\b[^.\d]{0,600}+\d[\d,.]*",
    re.IGNORECASE,
)
"""After a result, a calculation or clause that goes on to another number."""
_UNIT_WORDS = re.compile(
    r"\s*(?:%|percent\b|(?!(?:of|to|in|on|for|at|by|per|and|or|from|with|is|are|was|left|each|more|as|that|a|an|the|total)\b)"
    r"[a-z]+\b(?:/[a-z]+)?)",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\b(?:(?:there\s+(?:is|are|were|will\s+be)|we\s+have|giving(?:\s+us)?)\s+(?:(?:exactly|only|a\s+total(?:\s+number)?\s+of)\s+)?"
    r"|a\s+total\s+of\s+)\$?(\d[\d,]*)\$?(?=\s+[a-z])",
    re.IGNORECASE,
)
"""The number that a sentence counts: `there are $8$ such pairs $(a, b)$`."""
_AFTER_RESULT = re.compile(
    r"\s*(?:\\pmod\b|\(\s*\\?(?:bmod|mod)\b|\\(?:q?quad)\b|\\\\(?=\s*(?:\\end|$))|\\end\{(?:align|gather|split|equation)|[.,;]\s*$)"
)
"""What may stand behind a result in a formula: the modulus, a row's end, punctuation."""
_RESULT_BEFORE = re.compile(r"=\s*[$€£¥]?\s?(-?\d[\d,]*(?:\.\d+)?)")
_WORDS_FIRST = re.compile(r"\s*(?:(?:at|to|us|of|in|the|that|just|by|on|from)\s+)+(?=\$|\\\(|\\\[)", re.IGNORECASE)
_ABOUT = re.compile(r"\s*(?:about|approximately|roughly|around|≈|\$?\\approx)", re.IGNORECASE)
_AT_END = re.compile(r"\s*(?:[A-Za-z°]+\s*){0,2}[\W_]*")
_JOINS = re.compile(r"\s*(?:,|;|,?\s*(?:and|or)|和|或)\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")


def value_in(text: str, span: Span, *, lenient: bool, shape: Shape = "any") -> Span | None:
    """Return the part of a statement that is its value.

    Args:
        text: the text.
        span: the range of the statement.
        lenient: whether a statement without mathematics is a value, and the last number is accepted. Otherwise the
            value must be mathematics, and it must follow a verb or be the whole statement.
        shape: what the answer looks like; a part of that shape goes before the others.

    Returns:
        The range of the value, None when there is none.
    """
    first = None
    for found in _with_right_sides(text, _values(text, span, lenient=lenient, shape=shape), shape):
        piece = strip_markup(text[found.start : found.end])
        if not complete(piece) and not (lenient and _WORD.search(piece)):
            continue
        if shape == "any" or fits(piece, shape):
            return found
        first = first or found
    return first


def _with_right_sides(text: str, spans: Iterator[Span], shape: Shape) -> Iterator[Span]:
    """Yield the right side of a chain of equations before the chain, where the answer is a single value."""
    for span in spans:
        if shape in ("number", "expression", "parts") and _EQUALS.search(text, span.start, span.end):
            right = _right_side(text, _inner(text, span))
            if right is not None:
                yield right
        yield span


def _inner(text: str, span: Span) -> Span:
    """Return the content of a formula without its delimiters; other ranges as they are."""
    start = span.start + len(text[span.start : span.end]) - len(text[span.start : span.end].lstrip())
    match = FORMULA.match(text, start, span.end)
    if match is None or re.search(r"\w", text[match.end() : span.end]):
        return span
    return Span(*next(formulas(text, start, span.end), (span.start, span.end)))


def _values(text: str, span: Span, *, lenient: bool, shape: Shape) -> Iterator[Span]:
    """Yield the parts of a statement that can be its value, best first."""
    fence = FENCE.match(text, span.start, span.end)
    if fence:
        span = Span(fence.start(1), fence.end(1))
    calculated = _CALCULATED.search(text, span.start, span.end)
    if calculated:
        yield Span(*calculated.span(1))
    span = _without_reason(text, span)
    bold = [match for match in _BOLD.finditer(text, span.start, span.end) if is_value(match[1])]
    if len(bold) == 1:
        yield bare(text, Span(*bold[0].span(1)))
    counted = _COUNTED.search(text, span.start, span.end)
    computed = next(_equated(text, span), None) if counted is not None else None
    if counted is not None and computed is None and not _subordinate(text[span.start : counted.start()]):
        yield Span(*counted.span(1))
    span = bare(text, span)
    piece = text[span.start : span.end]
    if not re.search(r"\w", re.sub(r"\\(?:boxed|fbox)(?![a-zA-Z])", "", piece)):
        return
    rows = _ALIGNED.search(piece)
    if rows and is_value(rows[1]):
        yield Span(span.start + rows.start(1), span.start + rows.end(1))
    subject = len(piece.split()) > 5 and "=" not in piece and _direct(text, span) is None
    leading = _leading_number(text, span) if subject else None
    if leading is not None:
        yield leading
    if is_value(piece) or (lenient and is_formula(piece)):
        worked = _WORKED.fullmatch(piece)
        yield Span(span.start + worked.start(1), span.end) if worked and is_value(worked[1]) else span
        if "=" not in piece:
            return  # `3 or 5` is neither 3 nor 5
    words = len(re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]", re.sub(r"\\[a-zA-Z]+", "", piece)))
    if lenient and words <= 3 and not re.search(r"\d|\$|\\\(|\\\[", piece):
        yield span
    if shape in PATTERNS:
        if shape == "parts" and FORMULA.search(text, span.start, span.end):
            yield from _joined_formulas(text, span)
            yield from _parts_of_sentence(text, span, lenient=lenient)
        found = [match for match in PATTERNS[shape].finditer(text, span.start, span.end) if re.search(r"\d", match[0])]
        yield from (Span(*match.span()) for match in reversed(found))
        yield from _joined_formulas(text, span)
    yield from _parts_of_sentence(text, span, lenient=lenient)
    if lenient and len(piece) <= 300 and not re.search(r"\d", piece):
        yield span


def _parts_of_sentence(text: str, span: Span, *, lenient: bool) -> Iterator[Span]:
    """Yield the values in a sentence: after its verb, its last formula, its last result or its only number."""
    yield from _equated(text, span)
    computed = [
        found for found in _last_formula(text, span) if "=" in text[max(span.start, found.start - 3) : found.end]
    ]
    after = sorted(_values_after(_COPULA, text, span), key=lambda found: _ABOUT.match(text, found.start) is not None)
    yield from (found for found in after if not computed or found.end > computed[0].end)
    yield from computed
    yield from after
    yield from _last_formula(text, span)
    for find in (_direct, _computed_before, _main_number):
        found = find(text, span)
        if found is not None:
            yield found
    yield from _values_after(_PREPOSITION, text, span)
    for number in (_last_number(text, span, lenient=lenient), _number_at_end(text, span)):
        if number is not None:
            yield number


def _without_reason(text: str, span: Span) -> Span:
    """Remove a reason after the value: `(B) because ...`, `12, since ...`."""
    piece = text[span.start : span.end]
    reason = _REASON.search(piece)
    if reason is None or not reason.start():
        return span
    head = piece[: reason.start()]
    if next(_values_after(_COPULA, text, Span(span.start, span.start + reason.start())), None):
        return Span(span.start, span.start + reason.start())
    if re.fullmatch(r"\W*[A-J]\W*", head) or is_value(head.strip(" *:")):
        return Span(span.start, span.start + reason.start())
    if re.search(r"\d", head) and not re.search(r"\d\D*$", piece[reason.start() :]):
        return Span(span.start, span.start + reason.start())
    return span


def _subordinate(text: str) -> bool:
    """Return whether the last clause of a text is a condition, a reason or a time."""
    return _SUBORDINATE.search(text, 1 + max(text.rfind(sign) for sign in ",.;")) is not None


def _values_after(words: re.Pattern[str], text: str, span: Span) -> Iterator[Span]:
    """Yield the text after the `words` (verbs or prepositions) in a statement, last first, where it is mathematics."""
    for match in reversed(list(words.finditer(text, span.start, span.end))):
        rest = Span(match.end(), span.end)
        if _WORDS_FIRST.match(text, rest.start, rest.end):
            continue
        if inside_formula(text, span.start, span.end, match.start()):
            continue
        piece = text[rest.start : rest.end]
        if _NUMERIC.search(piece) and is_value(piece):
            yield rest


def _direct(text: str, span: Span) -> Span | None:
    """Return the number directly after the last verb of a main clause: `he is 45 miles away at the end of 4 hours`."""
    for match in reversed(list(_DIRECT.finditer(text, span.start, span.end))):
        if _subordinate(text[span.start : match.start()]) or inside_formula(text, span.start, span.end, match.start()):
            continue
        signed = _NUMBER.match(text, match.end() - 1) if text[match.end() - 1] in "$€£¥" else None
        number = signed or _NUMBER.match(text, match.end())
        if number and not _BOUND_AFTER.match(text, number.end()):
            return Span(*number.span())
    return None


def _last_formula(text: str, span: Span) -> Iterator[Span]:
    """Yield the formulas of a statement as values, last first; of a chain of equations, its right side."""
    found = list(formulas(text, span.start, span.end))
    for start, end in reversed(found):
        piece = text[start:end]
        if len(found) > 1 and (
            _ABOUT.match(piece) or _SYMBOL.fullmatch(piece) or _subordinate(text[span.start : start].rstrip("$ "))
        ):
            continue  # a bare symbol such as $n$, or a condition, and there is another formula
        right = _right_side(text, Span(start, end))
        if right is not None:
            yield right
        if is_value(piece):
            yield Span(start, end)


def _right_side(text: str, span: Span) -> Span | None:
    """Return the right side of the last equation in a formula, or the equation itself when it says `x = 5`."""
    piece = text[span.start : span.end]
    signs = [match.end() for match in _EQUALS.finditer(piece)]
    if not signs:
        return None
    begins = [match.end() for match in _NEXT_EQUATION.finditer(piece, 0, signs[-1])]
    begin = begins[-1] if begins else 0
    right = bare(text, Span(span.start + signs[-1], span.end))
    ending = _AFTER_RESULT.search(text, right.start, right.end)
    if ending is not None:
        right = Span(right.start, ending.start())
    inner = text[right.start : right.end]
    if not is_value(inner) or not complete(inner):
        return None
    named = text[span.start + begin : span.end]
    if sum(sign > begin for sign in signs) == 1 and _ASSIGNED.match(named):
        return bare(text, Span(span.start + begin, right.end))
    return right


def _equated(text: str, span: Span) -> Iterator[Span]:
    """Yield the value after the last equals sign outside of formulas: `30 cans x 16 = 480 cans in 8 hours`."""
    signs = [
        match.end()
        for match in _EQUALS.finditer(text, span.start, span.end)
        if not inside_formula(text, span.start, span.end, match.start())
    ]
    if not signs:
        return
    rest = Span(signs[-1], span.end)
    piece = text[rest.start : rest.end]
    number = _NUMBER.search(text, rest.start, rest.end)
    if "\\" in piece and is_value(piece):
        yield bare(text, rest)
    if number is not None and not text[rest.start : number.start()].strip(" *_~≈"):
        after = Span(number.end(), rest.end)
        rounded = _ROUNDED.search(text, after.start, after.end)
        further = _GOES_ON.search(text, after.start, after.end)
        if rounded is not None:
            yield Span(*rounded.span(1))
        elif further is None:
            unit = _UNIT_WORDS.match(text, after.start, after.end)
            yield Span(number.start(), unit.end() if unit else number.end())
        else:
            later = _NUMBER.search(text, further.start(), after.end)
            if later is not None:
                yield Span(*later.span())
    elif is_value(piece):
        yield bare(text, rest)


def _computed_before(text: str, span: Span) -> Span | None:
    """Return the number that the text before computed last: `8 + 32 = 40. The friends ate 40 slices.`"""
    before = list(_RESULT_BEFORE.finditer(text, max(0, span.start - 400), span.start))
    if not before:
        return None
    value = before[-1][1].replace(",", "")
    for number in _NUMBER.finditer(text, span.start, span.end):
        if re.sub(r"[,$€£¥\s%]", "", number[0]) == value:
            return Span(*number.span())
    return None


def _number_at_end(text: str, span: Span) -> Span | None:
    """Return the number at the end of a sentence, with its unit: `he must have started with just 4.`"""
    for number in reversed(list(_NUMBER.finditer(text, span.start, span.end))):
        if _BOUND.search(text, span.start, number.start()):
            return None
        return Span(*number.span()) if _AT_END.fullmatch(text, number.end(), span.end) else None
    return None


def _joined_formulas(text: str, span: Span) -> Iterator[Span]:
    """Yield adjacent formulas as one value: `$x = 3$ or $x = 5$`, `$2$, $3$ and $4$`."""
    found = list(FORMULA.finditer(text, span.start, span.end))
    last = len(found)
    while last > 0:
        first = last - 1
        while first > 0 and _JOINS.fullmatch(text, found[first - 1].end(), found[first].start()):
            first -= 1
        if last - first > 1:
            yield Span(found[first].start(), found[last - 1].end())
        last = first


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
