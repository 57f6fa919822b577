"""Tokenise normalised mathematics."""

from __future__ import annotations

import re

from tracefactory.maths.vocabulary import FUNCTIONS, PROSE

MAX_TOKENS = 1500


class UnparsedError(ValueError):
    """The text is not an expression of the grammar."""


_WORDS = {
    "pi": "pi",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
}

_TOKEN = re.compile(
    r"(?P<num>\d+(?:\.\d+)?(?:[eE][+-]?\d+(?![\d.]))?|\.\d+(?:[eE][+-]?\d+)?)|\\(?P<cmd>[a-zA-Z]+)|(?P<word>[a-zA-Z]+'*)"
    r"|(?P<esc>\\[{}|])|(?P<op>[-+*/^_!(){}\[\]|,=°'])|(?P<space>\s+)"
)

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")

Token = tuple[str, str, bool]  # kind, text, preceded by a space


def tokenize(text: str) -> list[Token]:
    """Split normalised mathematics into tokens.

    Raises:
        UnparsedError: for a sign or word outside the grammar, and for more than `MAX_TOKENS` tokens.
    """
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UnparsedError(f"unexpected {text[position]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space":
            spaced = True
            continue
        if kind == "word":
            tokens.extend(_word(match["word"], spaced))
        elif kind == "esc":
            tokens.append(("op", {"\\{": "(", "\\}": ")", "\\|": "|"}[match[0]], spaced))
        else:
            tokens.append((kind, match[kind], spaced))
        spaced = False
        if len(tokens) > MAX_TOKENS:
            raise UnparsedError(f"more than {MAX_TOKENS} tokens")
    return tokens


def _word(word: str, spaced: bool) -> list[Token]:
    bare = word.rstrip("'")
    if bare in FUNCTIONS or bare in _WORDS:
        return [("cmd", _WORDS.get(bare, bare), spaced)]
    if bare.lower() in PROSE:
        raise UnparsedError(f"unknown word {word!r}")
    if len(bare) > 3:
        for name in sorted(FUNCTIONS | _WORDS.keys(), key=len, reverse=True):  # 2sqrt, xsin
            if len(name) > 2 and bare.endswith(name) and len(bare) - len(name) <= 2:
                return [*_word(bare[: -len(name)], spaced), ("cmd", _WORDS.get(name, name), False)]
        raise UnparsedError(f"unknown word {word!r}")
    letters: list[Token] = [("sym", letter, spaced and index == 0) for index, letter in enumerate(bare)]
    primes = word[len(bare) :]
    if primes:
        letters[-1] = ("sym", letters[-1][1] + primes, letters[-1][2])
    return letters
