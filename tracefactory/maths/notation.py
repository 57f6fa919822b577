"""How texts write the signs of operations and long numbers: patterns, each with the plain notation for it."""

from __future__ import annotations

import re

OPERATIONS = (
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·∗⋅]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
)
THOUSANDS = (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), "")
