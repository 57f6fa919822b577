"""Read chemical formulas, ions and reaction equations in their spellings: `SO₄²⁻`, `SO_4^{2-}` and `\\ce{SO4^2-}`."""

from __future__ import annotations

import re
from functools import lru_cache

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr"
    " Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta"
    " W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr"
)
_ELEMENT = "|".join(sorted(_SYMBOLS.split(), key=len, reverse=True))
_SPECIES = re.compile(rf"(\d*)((?:(?:{_ELEMENT})\d*|[()\[\]]\d*)+)")
_STATE = re.compile(r"\((?:s|l|g|aq)\)$")
_WRAPPED = re.compile(r"\\(?:ce|mathrm|text|rm|mathbf|textbf|texttt)\s*\{|[{}$\s]|\\(?:mathrm|rm)(?![a-zA-Z])|\\[,;!]")
_ARROW = re.compile(r"\s*(?:-+>|→|⟶|=+>?|⇌|<=>|\\(?:to|rightarrow|longrightarrow|rightleftharpoons)(?![a-zA-Z]))\s*")
_CHARGE = re.compile(r"\^\(?(\d*)([+-])(\d*)\)?$")
_SMALL = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LONGEST = 200


@lru_cache(maxsize=4096)
def formula(text: str) -> frozenset[str]:
    """Return the canonical spellings of a chemical formula or reaction; empty for other texts.

    There are two where the digit before a sign can be a subscript or a charge, as in `NH4+` and `Fe3+`.
    """
    if len(text) > _LONGEST or not re.search(r"[A-Z]", text):
        return frozenset()
    text = _RAISED_RUN.sub(lambda match: "^" + "".join(_RAISED[sign] for sign in match[0]), text.translate(_SMALL))
    sides = list(_ARROW.split(text.replace("−", "-").strip(" $.")))
    if len(sides) == 2:
        found = [[_species(one) for one in re.split(r"\s+\+\s+", side)] for side in sides]
        if all(one for side in found for one in side):
            return frozenset([" -> ".join(" + ".join(sorted(min(one) for one in side)) for side in found)])
    return _species(text) if len(sides) == 1 else frozenset()


def _species(text: str) -> frozenset[str]:
    bare = _STATE.sub("", _WRAPPED.sub("", text)).replace("_", "")
    charges: list[tuple[str, str]] = []
    match = _CHARGE.search(bare)
    if match is not None:
        charges = [(bare[: match.start()], (match[1] or match[3] or "1") + match[2])]
    elif bare[-1:] in ("+", "-"):
        digits = re.search(r"(?<!\d)(\d*)([+-])$", bare)
        if digits is not None:
            charges = [(bare[:-1], "1" + digits[2])]
            if digits[1]:
                charges.append((bare[: digits.start()], digits[1] + digits[2]))
    else:
        charges = [(bare, "")]
    return frozenset(f"{body}^{charge}" for body, charge in charges if _is_chemical(body, charge))


def _is_chemical(body: str, charge: str) -> bool:
    match = _SPECIES.fullmatch(body)
    return match is not None and bool(charge or re.search(r"\d|[a-z]|[A-Z].*[A-Z]", match[2]))
