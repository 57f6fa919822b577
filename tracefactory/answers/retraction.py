"""Find where a text takes back or corrects an answer that it stated, in ten languages.

A retraction says that what precedes is wrong ("that is wrong", "das ist falsch", "不对"). A correction announces the
value that replaces it ("Actually, it should be 6", "**Correction:** 20"). A negation says what the answer is not.
"""

from __future__ import annotations

import re

_EN = (
    r"\b(?:correct(?:ion|ed)(?:\s+(?:answer|value|result))?|erratum|edit|update)\b\W{0,4}[:：]",
    r"\b(?:actually|rather|oops|sorry|wait|no|hmm)\b[\s,.:;—–-]*(?:no\b[\s,.:;—–-]*)?(?:actually\b[\s,]*)?"
    r"(?:it|that|this|(?:the|my)\s+(?:final\s+)?(?:answer|value|result|number|total))(?:'s|\s+(?:should(?:\s+have)?\s+be(?:en)?|must\s+be|is|equals))"
    r"(?:\s+(?:actually|really|in\s+fact))?\b",
    r"\b(?:it|that|this|(?:the|my)\s+(?:final\s+)?(?:answer|value|result|number|total))\s+should\s+(?:actually\s+|instead\s+|rather\s+|really\s+)?"
    r"(?:be|read|have\s+been)\b",
    r"\bthe\s+(?:correct|right|actual|true|real|corrected|revised)\s+(?:\w+\s+)?(?:answer|value|result|number|total|count|sum|figure|amount|price|cost)"
    r"\s+(?:is|should\s+be|equals)\b",
    r"\bI\s+meant(?:\s+to\s+(?:say|write))?\b",
    r"\bmake\s+that\b",
    r"\b(?:chang(?:e|ing)|revis(?:e|ing)|updat(?:e|ing))\s+(?:my|the)\s+(?:final\s+)?answer\s+to\b",
)
_DE = (
    r"\b(?:korrektur|berichtigung)\b\W{0,4}[:：]",
    r"\b(?:eigentlich|tatsächlich|richtig|korrekt)\s+(?:ist|sind|wären?|lautet)\b(?:\s+(?:es|die\s+antwort|das\s+ergebnis)\b)?",
    r"\b(?:es|die\s+antwort|das\s+ergebnis)\s+(?:sollte|müsste|muss)\b(?:\s+(?:eigentlich|stattdessen|richtig))?",
    r"\b(?:die|das)\s+(?:richtige|korrekte|tatsächliche)\s+(?:antwort|ergebnis|wert|zahl)\s+(?:ist|lautet|beträgt)\b",
    r"\bder\s+(?:richtige|korrekte)\s+wert\s+(?:ist|lautet|beträgt)\b",
)
_FR = (
    r"\b(?:correction|rectification)\b\W{0,4}[:：]",
    r"\b(?:en\s+fait|en\s+réalité)\b[\s,]*(?:c['’]est|ce\s+(?:devrait|doit)\s+être|la\s+réponse\s+(?:est|devrait\s+être)|il\s+s['’]agit\s+de|cela\s+(?:fait|donne))",
    r"\b(?:la|le)\s+(?:bonne|vraie|bon|vrai)\s+(?:réponse|valeur|résultat)\s+est\b",
    r"\b(?:la\s+réponse|la\s+valeur|le\s+résultat)\s+(?:correcte?|exacte?)\s+est\b",
    r"\b(?:cela|ça|ce)\s+devrait\s+être\b",
)
_ES = (
    r"\bcorrección\b\W{0,4}[:：]",
    r"\b(?:en\s+realidad|de\s+hecho)\b[\s,]*(?:es|son|debería\s+ser|la\s+respuesta\s+es|el\s+resultado\s+es)\b",
    r"\b(?:la\s+respuesta|el\s+valor|el\s+resultado)\s+correct[ao]\s+es\b",
    r"\bdebería\s+ser\b",
)
_IT = (
    r"\bcorrezione\b\W{0,4}[:：]",
    r"\b(?:in\s+realtà|anzi)\b[\s,]*(?:è|sono|dovrebbe\s+essere|la\s+risposta\s+è|il\s+risultato\s+è)(?!\w)",
    r"\b(?:la\s+risposta|il\s+valore|il\s+risultato)\s+(?:corrett[ao]|giust[ao])\s+è(?!\w)",
    r"\bdovrebbe\s+essere\b",
)
_PT = (
    r"\b(?:correção|retificação)\b\W{0,4}[:：]",
    r"\bna\s+(?:verdade|realidade)\b[\s,]*(?:é|são|deveria\s+ser|a\s+resposta\s+é|o\s+resultado\s+é)(?!\w)",
    r"\b(?:a\s+resposta|o\s+valor|o\s+resultado)\s+(?:corret[ao]|cert[ao])\s+é(?!\w)",
    r"\bdeveria\s+ser\b",
)
_RU = (
    r"\b(?:исправление|поправка|уточнение)\b\W{0,4}[:：]",
    r"\bна\s+самом\s+деле\b[\s,]*(?:(?:это|ответ|должно\s+быть|получается|равно)\b)?\s*[—–:-]?",
    r"\bправильн(?:ый|ое)\s+(?:ответ|значение)\b\s*(?:[—–:-]|это\b|равно\b|равен\b)?",
    r"\bдолжно\s+быть\b",
)
_ZH = (
    r"(?:更正|纠正|修正|订正)(?:后|为|一下|[:：，,])+",
    r"(?:其实|实际上|正确(?:的?答案|的?值|的?结果|的)?)(?:应该|应当|应|就)?(?:是|为|等于)",
    r"应该(?:是|为)|应为",
)
_JA = (r"訂正(?:すると|します|[:：、])+", r"(?:正しくは|実際は|実際には|正解は|正しい(?:答え|値)は)、?")
_KO = (r"(?:정정|수정)(?:하면|합니다)?\s*[:：,]", r"(?:사실은|실제로는)", r"(?:정답|올바른\s*(?:답|값))[은는]")

CORRECTS = re.compile("|".join((*_EN, *_DE, *_FR, *_ES, *_IT, *_PT, *_RU, *_ZH, *_JA, *_KO)), re.IGNORECASE)
"""Phrases that announce the value which replaces an answer."""

_RETRACTS = re.compile(
    r"\b(?:that|this|it|the\s+(?:above|previous|former)|(?:my|the)\s+(?:\w+\s+){0,2}(?:answer|result|value|calculation|total|step))(?:['’]s|\s+(?:is|was|looks|seems))\s+"
    r"(?:actually\s+|definitely\s+|clearly\s+|obviously\s+)?(?:wrong|incorrect|mistaken|not\s+(?:right|correct)|an?\s+(?:mistake|error))\b"
    r"(?!\s+(?:to|that|if|unless|answer|option)\b)"
    r"|\b(?:that|this|it)\s+(?:isn['’]t|wasn['’]t|can['’]t\s+be|cannot\s+be)\s+(?:right|correct)\b"
    r"|\bI\s+(?:just\s+)?(?:made|see|found|had|notice|noticed)\s+an?\s+(?:\w+\s+)?(?:mistake|error)\b"
    r"|\b(?:scratch|disregard|strike)\s+(?:that|this|it|the\s+(?:above|previous))\b|\bignore\s+(?:the\s+(?:above|previous)|my\s+previous)\b"
    r"|\bI\s+(?:miscounted|misread|miscalculated|misspoke|was\s+wrong|got\s+(?:that|it)\s+wrong|take\s+that\s+back)\b"
    r"|\bdas\s+stimmt\s+(?:so\s+)?nicht\b|\bdas\s+(?:ist|war)\s+(?:leider\s+)?(?:falsch|nicht\s+(?:richtig|korrekt)|ein\s+fehler)\b|\bich\s+habe\s+(?:mich\s+ver\w+|einen\s+\w*fehler)\b"
    r"|\bc['’](?:est|était)\s+(?:faux|incorrect|une\s+erreur)\b|\bce\s+n['’]est\s+pas\s+(?:correct|juste|exact)\b|\bje\s+me\s+suis\s+tromp"
    r"|\b(?:eso|esto)\s+(?:es|está|era|estaba)\s+(?:incorrecto|mal|equivocado|un\s+error)\b|\bme\s+equivoqué\b|\b(?:eso|esto)\s+no\s+es\s+correcto\b"
    r"|\b(?:questo|ciò|quello)?\s*(?:è|era)\s+(?:sbagliato|errato|un\s+errore)\b|\bmi\s+sono\s+sbagliat|\bho\s+(?:sbagliato|commesso\s+un\s+errore)\b"
    r"|\b(?:isso|isto)\s+(?:está|é|estava)\s+(?:errado|incorreto|um\s+erro)\b|\bcometi\s+um\s+erro\b|\bme\s+enganei\b"
    r"|\b(?:это|что)\s+(?:неверно|неправильно|ошибка|не\s+так)\b|\bя\s+(?:ошиб|допустил)"
    r"|(?:^|[，。！？、；\s])(?:等等|等一下|不|这|上面|刚才|我)?[^，。！？；\nA-J]{0,8}(?:不对|错了|算错|有误|不正确|是错的|是错误的)"
    r"|(?:^|[。、\s])[^。、\nA-J]{0,12}(?:間違い|間違え|誤り|正しくありません|違いました)"
    r"|(?:^|[.。,\s])[^.。,\nA-J]{0,12}(?:틀렸|틀린|잘못(?:되|했|계산)|오류)",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(
    r"[\s*:：]*(?:(?:is|are|was|were|cannot|can['’]?t|could|would|ist|kann|est|es|è|é|não|no|non|n['’]est|ne|не)\s+)?"
    r"(?:not\b|n['’]t\b|never\b|nicht\b|kein|pas\b|no\s+(?:es|son|puede)\b|non\s+(?:è|sono|può)(?!\w)|não\s+(?:é|são|pode)(?!\w)"
    r"|n['’]est\s+pas\b|ne\s+(?:peut|sont)\b|не\b|cannot\b|can['’]t\b|不(?:是|能|可能|会|为|等于)|不)",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^[^\n.。]{0,60}?(?:ではありません|ではない|じゃない|では(?:なく|ない)|이\s*아니|가\s*아니|아닙니다|는\s*아니|은\s*아니|ではなく)",
    re.IGNORECASE,
)
_BUT = re.compile(
    r"[:;,]\s*(?:it|this|that)(?:['’]s|\s+is)\s+(?!not)|\b(?:but(?:\s+rather)?|rather|instead|sondern|mais|sino|bensì|ma|mas|mas\s+sim)\b[\s:,]*|(?<![\w])а\s+|而(?:应该)?是|ではなく、?|じゃなくて?、?|아니라\s*|아니고\s*",
    re.IGNORECASE,
)
_NEGATES = re.compile(
    r"\b(?:cannot|can['’]t|not|never|n['’]t|impossible|kann\s+nicht|nicht|kein\w*|n['’]est|ne\s+\w+\s+pas|pas|no\s+(?:es|puede)|non\s+(?:è|può)"
    r"|não|не|нельзя)(?!\w)|不(?:是|能|可能|会)|不等于|ではない|ではありません|아니|아닙",
    re.IGNORECASE,
)


_SUPPOSED = re.compile(r"\b(?:if|had|would|were|otherwise|suppose|check|wenn|si|se|если)\b|如果|若", re.IGNORECASE)
"""A condition: `had it been 18, that would be wrong` retracts nothing."""


def retracted(body: str, start: int) -> int | None:
    """Return the end of the last phrase after `start` that takes back what precedes, None when there is none."""
    last = None
    for match in _RETRACTS.finditer(body, start):
        clause = body[max(start, *(body.rfind(sign, start, match.start()) for sign in ".!?\n")) : match.start()]
        if not _SUPPOSED.search(clause):
            last = match.end()
    return last


def denied(body: str, start: int, end: int) -> bool:
    """Return whether the statement in a range says what the answer is not: `not 5`, `nicht 5`, `5ではない`."""
    return _DENIED.match(body, start, end) is not None or _DENIED_AFTER.match(body[start:end]) is not None


def instead(body: str, start: int, end: int) -> int | None:
    """Return where the value begins that a denial gives instead (`not 5 but 6`, `5ではなく6`), or None."""
    match = _BUT.search(body, start, end)
    return None if match is None else match.end()


def negates(text: str) -> bool:
    """Return whether a sentence says that something is not so."""
    return _NEGATES.search(text) is not None
