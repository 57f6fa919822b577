"""Find references to text that was cut: "as computed above" with nothing above, "from (2)" without a (2); also Chinese.

The rules are conservative: a reference is valid when its labels and numbers all occur above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tracefactory.pruning.base import PruneItem, PruneResult
from tracefactory.text.steps.sentences import sentence_starts

_MADE = "(?:step|result|calculation|computation|equation|formula|analysis|approach|attempt|argument)"
_BACK = re.compile(
    r"\b(?:above|earlier|previously|aforementioned)\b"
    r"|\bas (?:we |i )?(?:already |just |have )*(?:computed|calculated|found|shown|derived|noted|mentioned|seen|saw)\b"
    r"|\b(?:as|same|had|found|got|did|thought|said|saw|mentioned|used|computed|calculated|discussed) before\b"
    r"|\b(?:we|i) (?:already|previously) (?:know|have)\b"
    r"|\b(?:we|i) (?:already |previously |have |had )*"
    r"(?:computed|calculated|found|showed|derived|established|obtained)\b(?! that\b)"
    rf"|\b(?:the|that|my|our) (?:previous|preceding|prior|last) {_MADE}s?\b"
    r"|如上|上述|上面|上文|前面|前文|(?:之前|刚才)(?:的|已|我们|算|求|得|推)|由上|[前上]一步|已经(?:算|求|得|推|证)",
    re.IGNORECASE,
)
# Words that refer to the text directly above; the other words can refer to text further up.
_NEAR = re.compile(
    rf"\b(?:above|aforementioned)\b|\b(?:previous|preceding|last) {_MADE}s?\b"
    r"|如上|上述|上面|由上|[前上]一步",
    re.IGNORECASE,
)
# "above the line" and "above 10" are places, not references to the text.
_PLACE = re.compile(
    r"\b(?:above or below|below or above)\b"
    r"|\babove (?:the (?:line|[xy]-axis|axis|plane|ground|diagonal|horizontal|base|surface|sea|water|horizon)|average"
    r"|zero|\$?\d)|\bearlier than\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"\b(?P<kind>equations?|eqn?s?\.?|step|case|lemma|claim|formula|theorem|method|approach)[ ~]*"
    r"\(?(?P<number>\d{1,3}|(?-i:[IV]{1,4}|X))\b\)?"
    r"|(?P<zh>步骤|式子?|方程|公式|情况|情形|引理|方法|第)\s*"
    r"[（(]?(?P<zh_number>\d{1,3}|[一二三四五六七八九十]{1,2})[）)]?(?:步|式|种情况)?"
    r"|\\tag\{(?P<tag>\d{1,3})\}"
    r"|(?:\b(?:from|using|by|in|into|of|and|with)|[由从将把和])\s*[（(](?P<from>\d{1,2})[）)](?![\w(/^*+-])"
    r"|(?<![\w)])[（(](?P<end>\d{1,2})[）)][ \t$\\\].,;:]*$",
    re.IGNORECASE | re.MULTILINE,
)
_EQUATIONS = ("equation", "equations", "eq", "eqn", "eqs", "eqns", "formula", "式", "式子", "方程", "公式")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_BEFORE_HEAD = re.compile(
    r"(?:[^.!?\n]{0,40}[:：])?[\s*_#>-]*(?:(?:then|next|now|so|and|okay|alternatively)\b[,\s]*)*\Z", re.IGNORECASE
)
_AFTER_HEAD = re.compile(r"[*_ \t]*(?:[:：.、)—-]|\n|\Z)")
QUOTE = 120  # characters of a sentence that are quoted

Label = tuple[str, str]


@dataclass
class _Seen:
    """The labels and numbers of a part of the text."""

    labels: set[Label] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        self.labels.update(label for label, _ in _labels(text))
        self.numbers.update(_numbers(text))


def dangling(item: PruneItem, result: PruneResult) -> str | None:
    """Return the first sentence that refers to text that was cut, quoted with the reason, or None.

    A sentence is dangling when steps above it were cut, and it names a label (step, case, equation), or refers back
    with a number, that occurs in the cut text and nowhere above it. It is also dangling when it refers back without
    either, the step directly above it was cut, and it refers to that step or nothing is left above. The question counts
    as text above.
    """
    above, cut = _Seen(), _Seen()
    above.add(item.trace.problem.question)
    kept, gap, has_text = set(result.kept), False, False
    for step in item.steps:
        text = item.step(step.index)
        if step.index not in kept:
            cut.add(text)
            gap = True
            continue
        fault = _fault(text, above, cut, gap=gap, first=not has_text)
        if fault:
            return fault
        gap, has_text = False, True
    for text in (result.added, result.answer_text):
        fault = _fault(text, above, cut, gap=gap and not has_text, first=True)
        if fault:
            return fault
        has_text = has_text or bool(text.strip())
    return None


def _fault(text: str, above: _Seen, cut: _Seen, *, gap: bool, first: bool) -> str | None:
    """Check one part of the text, and add it to the text above the next part."""
    bounds = [0, *sentence_starts(text, 0, len(text), ()), len(text)]
    for number, (start, end) in enumerate(pairwise(bounds)):
        sentence = text[start:end]
        possible = cut.labels or cut.numbers or gap
        reason = _reason(sentence, above, cut, gap=gap and number == 0, first=first) if possible else None
        if reason:
            return f"{reason}: {' '.join(sentence.split())[:QUOTE]}"
        above.add(sentence)
    return None


def _reason(sentence: str, above: _Seen, cut: _Seen, *, gap: bool, first: bool) -> str | None:
    for label, heads in _labels(sentence):
        if label in cut.labels and label not in above.labels and not heads:
            return f"{' '.join(label)} was cut"
    if not _BACK.search(_PLACE.sub("", sentence)):
        return None
    numbers = set(_numbers(sentence))
    lost = sorted((numbers & cut.numbers) - above.numbers)
    if lost:
        return f"{lost[0]} was cut"
    dangles = gap and (first or _NEAR.search(sentence)) and not numbers & above.numbers
    return "nothing above" if dangles else None


def _labels(text: str) -> Iterator[tuple[Label, bool]]:
    """Yield the labels in a text, and whether they are its heading; all names of equations are one kind."""
    for match in _LABEL.finditer(text):
        kind = (match["kind"] or match["zh"] or "equation").lower().rstrip(".")
        number = match["number"] or match["zh_number"] or match["tag"] or match["from"] or match["end"]
        first = match.start() <= QUOTE and _BEFORE_HEAD.match(text, 0, match.start()) is not None
        heads = first and _AFTER_HEAD.match(text, match.end()) is not None
        yield ("equation" if kind in _EQUATIONS else kind, number.lower()), heads and not match["from"]


def _numbers(text: str) -> Iterator[str]:
    return (match.group().replace(",", "") for match in _NUMBER.finditer(text))
