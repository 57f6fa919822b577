"""Find phrases that announce an answer, in several languages, and the statements they announce.

A strong phrase ("final answer:", "####", a heading, an `<answer>` tag) always announces an answer. A weak phrase ("the
answer is", "... is the answer") can be part of a question, a guess or a sub-problem, so its clause is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tracefactory.answers.retraction import CORRECTS, denied, instead
from tracefactory.answers.sentences import Span, bare, is_value, statement_end

_MARK = r"(?:\s*(?:\*\*|__|\*))?"
_STRONG = re.compile(
    r"(?P<tag><(?:final[_-]?answer|answer|result)(?:\s[^<>\n]{0,80})?>|\[(?:FINAL[_ ])?ANSWER\])"
    r"|(?P<heading>^[ \t]*(?:\#{1,6}[ \t]*)?(?:\*\*[ \t]*)?(?:✅[ \t]*)?(?:(?:the|my)[ \t]+)?"
    r"(?:final[ \t]+(?:answer|result)|answer|最终答案|答案)"
    rf"s?[ \t]*:?{_MARK}[ \t]*:?[ \t]*$)"
    r"|(?P<hashes>(?:^|(?<=\s))[ \t]*####(?!#))"
    rf"|(?:\b(?:the|my|our)\s+)?\bfinal\s+(?:answer|result)s?\b(?:\s+to\s[^.:\n]{{1,80}}?(?=\s+(?:is|are)\b|\s*:))?"
    rf"(?:\s+(?:is|are))?(?:\s+(?:therefore|thus|then|indeed|simply|just))?{_MARK}\s*(?:[:：=→]|->)?"
    rf"|\b(?:answers?|ans)\b(?:\s*\([^()\n]{{1,20}}\))?{_MARK}\s*(?:[:：→]|=|->|(?=\$|\\\(|\\\[))(?![:=])"
    r"|^[ \t]*[*_]{0,2}A[*_]{0,2}[ \t]*[:：](?=[^\n]{1,60}\n?\Z)"
    r"|^[ \t>*_]*(?:final[ \t]+)?(?:answer|ans)\b\.?[ \t]+(?=[-$€£¥\\(\d])"
    r"|^[ \t]*\W{0,2}(?:final_answer|final_result|result)\W{0,2}[ \t]*[:：]"
    r"|\b(?:choose|pick|select|go\s+with)\s+(?:(?:option|answer|choice)\s+)?(?=\(?[A-J]\)?(?![\w'’]))"
    r"|\b(?:choice|option|pick|selection)\s*[:：](?=\W*[A-J]\b(?!['’]))"
    r"|\b(?:respuesta|respuesta\s+final|risposta|resposta|réponse|antwort|ergebnis|lösung|ответ)\b"
    rf"(?:\s+(?:finale?\b))?(?:\s+(?:est|es|è|é|ist|lautet)\b)?{_MARK}\s*[:：]?"
    rf"|(?:最终|正确|最后)?(?:答案|结果)\s*{_MARK}\s*(?:应该|应|就)?(?:是|为|等于|:|：)+"
    r"|\b(?:résultat|resultado|risultato|результат|solución|soluzione|solução|решение|output)\s*[:：]"
    r"|(?:^|\n|(?<=[。！？.]))\s*答\s*[:：]|(?:答え|答)は|정답[은:]|답[은:]",
    re.IGNORECASE | re.MULTILINE,
)
_WEAK = re.compile(
    r"\b(?:answers?|option|choice)(?P<of>\s+(?:to|for|of)\s[^.\n]{1,60}?)?"
    r"\s+(?:is|are|(?P<past>was|were)|(?:would|must|should|will|has\s+to)\s+be|equals?|comes\s+out\s+to(?:\s+be)?|turns\s+out\s+to\s+be|=)"
    r"(?:\s+(?:therefore|thus|then|indeed|simply|just|hence|also|exactly|clearly|obviously|option|choice))*"
    r"(?!\w)"
    r"|(?:应|故|因此|所以)?\s*(?:应)?选(?:择|项)?\s*(?:是|为)?\s*[:：]?(?=\s*[（(]?[A-Ha-h]\b|\s*[（(]?[A-H][）)。，,\s])",
    re.IGNORECASE,
)
_REVERSE = re.compile(
    r"\s+(?:is|are|as)\s+(?:therefore\s+|thus\s+|hence\s+|indeed\s+)?(?:(?:the|our|my)\s+(?:\w+\s+)?(?:answers?|choice|option|solution)\b(?!\s+(?:to|for|of)\b)"
    r"|(?P<only_option>correct|right)(?=[\s.,;!]|$))",
    re.IGNORECASE,
)
_LAST_VALUE = re.compile(
    r"(?:\*\*(?P<bold>[^*\n]{1,120})\*\*|\$(?P<math>[^$\n]{1,120})\$|\\\((?P<paren>.{1,120}?)\\\)|(?P<option>\(?[A-J]\)?)"
    r"|(?P<number>[-−]?[$€£¥]?\d[\d,]{0,40}(?:\.\d{1,40})?(?:/\d{1,40})?%?(?:\s+[a-z]{1,40})?))$"
)
"""The value before `is the answer`; its clause has at most 120 characters."""
_NUMBERED = re.compile(r"\s*(?:(?:step|part|case)\b|\d+[.)]\s)", re.IGNORECASE)
_SO = re.compile(r"\b(?:so|hence|thus|therefore)\s+(?:the\s+)?\W*$", re.IGNORECASE)
_LONGEST_LINE = 600
_MAX_ANNOUNCEMENTS = 60
"""How many announcements are checked, counted from the end of the text."""
_HEDGE = re.compile(
    r"\b(?:some|one|many|most|people|you|others?|students?)\s+(?:(?:may|might|could|would|will)\s+)?(?:think|say|believe|claim|argue)\b"
    r"|\b(?:maybe|perhaps|might|could|possibly|impossible|doubt|unlikely|unclear|neither|nor|e\.g|if|suppose|assuming|assume|would|whether|unless|guess|not|supposed|"
    r"expected|claims?|says?|let|let's|hmm|next|(?:need|needs|want|have)\s+to\s+(?:find|compute|calculate|determine|check|show)|try|trying|consider|check|checking|verify|sure)\b|n't\b|可能|也许|如果|假设|假如|是否|是不是|难道|不是|设",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Announcement:
    """A phrase, from `start` to `end`, and the range of the statement that it announces."""

    start: int
    end: int
    statement: Span
    strong: bool


def announcements(body: str, start: int, *, after_box: bool) -> Iterator[Announcement]:
    """Yield announcements, last first.

    Args:
        body: the text.
        start: the position from which to search.
        after_box: whether a boxed answer precedes, so that weak phrases about other questions do not count.
    """
    found = [(match, True) for pattern in (_STRONG, CORRECTS) for match in pattern.finditer(body, start)]
    found += [(match, False) for match in _WEAK.finditer(body, start)]
    found += [(match, False) for match in _REVERSE.finditer(body, start)]
    for match, strong in sorted(found, key=lambda pair: (pair[0].end(), pair[1]), reverse=True)[:_MAX_ANNOUNCEMENTS]:
        one = _strong(body, match) if strong else _weak(body, match, after_box=after_box)
        if one is not None:
            yield one


def hedged(text: str) -> bool:
    """Return whether a clause is a guess, an assumption, a negation or an attempt, and not a statement."""
    return _HEDGE.search(text) is not None


def _strong(body: str, match: re.Match[str]) -> Announcement | None:
    end = match.end()
    if match.re is CORRECTS:
        return _affirmed(body, match.start(), end, strong=True)
    if match["tag"]:
        name = re.sub(r"[^\w\- ].*|\s.*", "", match["tag"][1:].lower())
        close = body.lower().find(f"{match['tag'][0]}/{name}", end)
        return None if close < 0 else Announcement(match.start(), end, Span(end, close), strong=True)
    if match["hashes"] is not None and (_NUMBERED.match(body, end) or not _is_line_value(body, end)):
        return None  # a level 4 heading
    return _affirmed(body, match.start(), end, strong=True)


def _affirmed(body: str, start: int, end: int, *, strong: bool) -> Announcement | None:
    """Return the announcement of what follows `end`; of a denial only what it gives instead, if it does."""
    last = statement_end(body, end)
    if not denied(body, end, last):
        return Announcement(start, end, Span(end, last), strong=strong)
    other = instead(body, end, last)
    return None if other is None else Announcement(start, other, Span(other, last), strong=strong)


def _is_line_value(body: str, start: int) -> bool:
    """Return whether the line after `####` is a value, or one or two words at the end of the text."""
    piece = body[start : start + _LONGEST_LINE].lstrip(" \t")
    line = piece.split("\n", 1)[0]
    span = bare(line, Span(0, len(line)))
    if is_value(line[span.start : span.end]):
        return True
    return 0 < len(line.split()) <= 2 and ":" not in line and line.strip() == piece.strip()


def _weak(body: str, match: re.Match[str], *, after_box: bool) -> Announcement | None:
    groups = match.groupdict()
    if "only_option" in groups:
        return _reverse(body, match, only_option=groups["only_option"] is not None)
    if after_box and (groups.get("past") or groups.get("of")):
        return None  # "where the answer to the smaller case was 3"
    if hedged(body[clause_start(body, match.start()) : match.start()]):
        return None
    return _affirmed(body, match.start(), match.end(), strong=False)


def _reverse(body: str, match: re.Match[str], *, only_option: bool) -> Announcement | None:
    """Parse `3 is the answer`, `I get 3 as the answer`, `(B) is correct`."""
    start = clause_start(body, match.start())
    value = _LAST_VALUE.search(body, start, match.start())
    if value is None or hedged(body[start : match.start()]):
        return None
    name = value.lastgroup or ""
    if only_option and re.fullmatch(r"\(?[A-J]\)?", value[name]) is None and not _SO.search(body, start, value.start()):
        return None
    return Announcement(match.start(), match.end(), Span(*value.span(name)), strong=False)


def clause_start(body: str, position: int) -> int:
    """Return the start of the sentence that contains `position`, at most 120 characters before it."""
    start = max(body.rfind(sign, max(0, position - 120), position) for sign in ".!?\n。！？;；")
    return max(start + 1, position - 120)
