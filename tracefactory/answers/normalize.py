"""Normalise mathematical answers: Unicode, LaTeX and plain text become one small LaTeX-like language.

Commands that affect the meaning are kept (braces, fractions, units as words); those that affect only the layout are
removed (`\\left`, `\\,`, `\\dfrac`).
"""

from __future__ import annotations

import re
from string import ascii_letters

MAX_CHARS = 4000
"""Longer answers are compared only as strings; answers to checkable questions are shorter."""

_VULGAR = {
    "½": (1, 2),
    "⅓": (1, 3),
    "⅔": (2, 3),
    "¼": (1, 4),
    "¾": (3, 4),
    "⅕": (1, 5),
    "⅖": (2, 5),
    "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6),
    "⅚": (5, 6),
    "⅛": (1, 8),
    "⅜": (3, 8),
    "⅝": (5, 8),
    "⅞": (7, 8),
}
_UNICODE = {
    **dict.fromkeys("−–—‐‑﹣－", "-"),
    **dict.fromkeys("\xa0\u2009\u202f\u2002\u2003\u3000\u2005\u2006\u2007\u2008\u200a", " "),
    **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060\u2061\u2062", ""),
    **{chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)},
    "×": r" \times ",
    "·": r" \cdot ",
    "⋅": r" \cdot ",
    "∙": r" \cdot ",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "±": r" \pm ",
    "∓": r" \mp ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≦": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∠": r"\angle ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "″": "''",
    "º": "°",
    "˚": "°",
    "￥": "¥",
    "￡": "£",
    "℃": "°C",
    "℉": "°F",
    "、": ",",
    "。": ".",
    "【": "[",
    "】": "]",
    "…": "...",
    "∘": "°",
    "→": r"\to ",
}
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϵ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Pi",
            "Sigma",
            "Phi",
            "Psi",
            "Omega",
            "phi",
            "epsilon",
        ],
        strict=True,
    )
)
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ", "0123456789+-nix", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_TABLE = str.maketrans({**_UNICODE, **{letter: rf"\{name} " for letter, name in _GREEK.items()}})
_SUPER_RUN = re.compile(f"[{''.join(_SUPER)}]+")
_SUB_RUN = re.compile(f"[{''.join(_SUB)}]+")
_VULGAR_RUN = re.compile(f"([0-9]?)\\s?([{''.join(_VULGAR)}])")
_UNICODE_ROOT = re.compile(r"([√∛∜])\s*(\([^()]*\)|\{[^{}]*\}|[0-9]+(?:\.[0-9]+)?|[A-Za-z])")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_SPACING = re.compile(
    r"\\[,;:!> ]|~|\\(?:quad|qquad|thinspace|enspace|medspace|thickspace|negthinspace|displaystyle|textstyle|"
    r"scriptstyle|limits|nolimits|hfill|hline|left(?![a-z])|right(?![a-z])|middle|[bB]igg?[lrm]?(?![a-z]))(?![a-zA-Z])\.?"
)
_INVISIBLE = re.compile(r"\\(?:hspace|vspace|phantom|label|tag)\*?\s*\{[^{}]*\}")
_WORDS_IN = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|md)?|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox|hbox|operatorname\*?|"
    r"emph|bold|boldsymbol|bm|rm|textcolor\{[a-z]+\}|color\{[a-z]+\}|underline|uline)\s*\{([^{}]*)\}"
)
_SAME = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "gt": ">",
    "lt": "<",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "varnothing": "emptyset",
    "backslash": "setminus",
    "smallsetminus": "setminus",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "dbinom": "binom",
    "tbinom": "binom",
    "dots": "...",
    "ldots": "...",
    "cdots": "...",
    "lang": "langle",
    "rang": "rangle",
    "colon": ":",
    "degree": "°",
    "degrees": "°",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "land": " and ",
    "wedge": " and ",
    "lor": " or ",
    "vee": " or ",
    "infin": "infty",
    "arctg": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "div": "/",
    "approxeq": "approx",
    "lnot": "neg",
    "ast": "*",
    "textdegree": "°",
    "euro": "€",
    "pounds": "£",
    "yen": "¥",
    "percent": "%",
    "overrightarrow": "vec",
    "exp": "exp",
}
_REPLACEMENTS = {name: rf"\{new} " if new.isalpha() else new for name, new in _SAME.items()}
_ESCAPED_TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|left|right|text|boxed|pi|cdot|times|infty|cup|pm|circ|mathrm|mathbf|overline|begin|end|leq?|"
    r"geq?|quad|in|theta|alpha|angle|binom|mathbb)(?![a-zA-Z]))"
)
"""LaTeX that was escaped twice in a JSON or Python string: `\\\\frac` for `\\frac`."""
_SAME_COMMAND = re.compile(r"\\(" + "|".join(sorted(_SAME, key=len, reverse=True)) + r")(?![a-zA-Z])")
_LOST_BACKSLASH = re.compile(r"(?<![\\a-zA-Z])(d?frac\{|sqrt\{|boxed\{)")
_OPENING_QUOTE = re.compile(r"\*\*|__|`+|\"|'")
_MOST_LAYERS = 16
"""How many layers of markup are removed from an answer."""
_LONG_SPACE = re.compile(r"\s{3,}")
_OUTER_MATH = re.compile(r"\\[()\[\]]")
DOLLAR = "USD "
"""The replacement of a currency dollar sign, a name in the table of units."""


def normalize(text: str) -> str:
    """Return the normal form of a text, which is its own normal form. The time is linear in the length."""
    if "\\" not in text and "$" not in text and "{,}" not in text and text.isascii():
        return _plain(text)
    text = _LONG_SPACE.sub("  ", text)  # the patterns below are quadratic in runs of spaces
    text = _VULGAR_RUN.sub(_vulgar, text)
    text = _UNICODE_ROOT.sub(lambda m: _ROOTS[m[1]] + "{" + m[2].strip("(){}") + "}", text)
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    text = text.translate(_TABLE)
    return _plain(_latex(text))


def _vulgar(match: re.Match[str]) -> str:
    numerator, denominator = _VULGAR[match[2]]
    return rf"{match[1]}\frac{{{numerator}}}{{{denominator}}}"


def _latex(text: str) -> str:
    text = _ESCAPED_TWICE.sub(r"\\", text)
    if r"\\" in text:
        text = text.replace(r"\\", "\x00")  # row breaks, kept apart from `\(` and friends
    text = text.replace("{,}", ",").replace(r"{\,}", r"\,").replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", "&")
    text = re.sub(r"(?<=\d)\s*,\s*\\!\s*(?=\d)", ",", text)
    text = re.sub(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", "", text)  # thin spaces between groups of three digits
    text = re.sub(r"(?<=\d)\{\s\}(?=\d{3}(?!\d))", "", text)
    text = _INVISIBLE.sub("", _SPACING.sub(" ", text))
    for _ in range(4):  # words inside words
        text, changed = _WORDS_IN.subn(r" \1 ", text)
        if not changed:
            break
    text = _SAME_COMMAND.sub(lambda match: _REPLACEMENTS[match[1]], text)
    text = re.sub(r"\\(?:not\s*=|not\\eq)", r"\\ne ", text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\circ(?![a-zA-Z])", "°", text)
    text = re.sub(r"\^\s*\{?\s*°\s*\}?", "°", text)
    return dollars(text).replace("\x00", r"\\")


def dollars(text: str) -> str:
    """Remove math delimiters and replace the other dollar signs by a currency name."""
    text = text.replace(r"\$", "\x02")
    text = _OUTER_MATH.sub(" ", text)
    signs = text.count("$")
    if signs % 2 and not re.search(r"\$\$", text):
        match = re.search(r"\$(?=\s?\d)", text) or re.search(r"(?<=\d)\s?\$", text)
        if match and signs == 1:
            text = text[: match.start()] + "\x02" + text[match.end() :]
    return text.replace("$", " ").replace("\x02", f" {DOLLAR}")


def _plain(text: str) -> str:
    if "frac{" in text or "sqrt{" in text or "boxed{" in text:
        text = _LOST_BACKSLASH.sub(r"\\\1", text)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ").replace("**", "^")
    return " ".join(text.split())


def strip_markup(text: str) -> str:
    """Remove Markdown emphasis, code fences, quotes and a final full stop from a short answer."""
    text = text.strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].lstrip(ascii_letters).strip()
    for _ in range(_MOST_LAYERS):
        previous = text
        text = _without_quotes(text).strip()
        text = re.sub(r"^\*\*|\*\*$", "", text).strip()
        text = re.sub(r"^<(b|strong|i|em|u|p|span)>(.*)</\1>$", r"\2", text, flags=re.DOTALL).strip()
        text = re.sub(r"(?<!\.)[.,;:。，；]$|(?<=\d)!?[。]$", "", text).strip()
        if text == previous:
            break
    return text


def _without_quotes(text: str) -> str:
    """Return a text without one pair of emphasis marks, backticks or quotation marks around it."""
    opening = _OPENING_QUOTE.match(text)
    if opening is None:
        return text
    rest = text[opening.end() :]
    if not rest:
        return "" if opening.end() > 1 and text[0] == "`" else text
    if rest.endswith(("**", "__")):
        return rest[:-2]
    if rest.endswith("`"):
        return rest.rstrip("`")
    return rest[:-1] if rest.endswith(('"', "'")) else text


def squash(text: str) -> str:
    """Return a normalised answer without spaces, braces and backslashes, case-folded, to compare it as a string.

    A space between two digits is kept as a separate character: `1 2` is not `12`.
    """
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)
    return re.sub(r"[\s{}]|\\(?=[a-zA-Z])", "", text).casefold().strip(".,;:")
