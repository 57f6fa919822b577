"""Find the spans that must not be split: LaTeX, fenced code and inline code, in one pass over their delimiters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Maximum lengths of spans, in characters. An unclosed delimiter (in a truncated or looping trace) must not protect the
# rest of the text, so the opener of a longer span is ignored. Only an unclosed code fence extends to the end.
MAX_INLINE = 1_000
MAX_DISPLAY = 6_000

_TOKEN = re.compile(
    r"(?P<skip>\\\\|\\\$|\\`)"
    r"|(?P<fence>^[ \t]*+(?:`{3,}[^\n`]*+$|~{3,}[^\n]*+$))"
    r"|(?P<blank>\n[ \t\r]*+\n)"
    r"|(?P<open>\\\[|\\\(|\\begin\{)"
    r"|(?P<close>\\\]|\\\)|\\end\{)"
    r"|(?P<dollars>\$\$?)"
    r"|(?P<tick>`++)",
    re.MULTILINE,
)
_CLOSER = {"\\[": "\\]", "\\(": "\\)", "\\begin{": "\\end{"}
_INLINE = ("\\(", "$", "`")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) that must not be split; `block` is true for displays and fenced code."""

    start: int
    end: int
    block: bool


@dataclass
class _Scanner:
    """The state of the search: the spans so far, and the open delimiter, if any, with its position and depth.

    White-space rules for `$` are pandoc's `tex_math_dollars`.
    """

    text: str
    spans: list[Span] = field(default_factory=list)
    mode: str = ""
    start: int = 0
    depth: int = 0
    own_line: bool = False

    def open(self, mode: str, start: int) -> None:
        """Start a span of the kind `mode`."""
        line = self.text.rfind("\n", max(0, start - 80), start) + 1
        self.mode, self.start, self.depth = mode, start, 1
        self.own_line = not self.text[line:start].strip() if line or start < 80 else False

    def close(self, end: int) -> None:
        """End the open span."""
        block = not self.mode.startswith(_INLINE) or self.mode == "$$"
        self.spans.append(Span(self.start, end, block))
        self.mode = ""

    def fence(self, token: re.Match[str]) -> None:
        """Handle the opening or closing line of fenced code."""
        line = token.group().strip()
        if self.mode.startswith(("fence`", "fence~")):
            marker = self.mode.removeprefix("fence")
            if line.startswith(marker) and not line.strip(marker[0]):
                self.mode = "fence"
                self.close(token.end())
        else:
            self.open("fence" + line[0] * (len(line) - len(line.lstrip(line[0]))), token.start())

    def opener(self, token: re.Match[str]) -> None:
        r"""Handle `\(`, `\[` and `\begin{`."""
        if self.mode == "\\begin{" == token.group():
            self.depth += 1
        elif self.mode in ("", token.group()):  # the same opener twice: ignore the first one
            self.open(token.group(), token.start())

    def closer(self, token: re.Match[str]) -> None:
        r"""Handle `\)`, `\]` and `\end{`."""
        if _CLOSER.get(self.mode) != token.group():
            return
        self.depth -= 1
        if self.depth == 0:
            end = token.end()
            if self.mode == "\\begin{":
                brace = self.text.find("}", end, end + 40)
                end = brace + 1 if brace >= 0 else end
            self.close(end)

    def dollars(self, token: re.Match[str]) -> None:
        """Handle `$` and `$$`."""
        value, end = token.group(), token.end()
        if self.mode == value == "$$":
            self.close(end)
        elif value == "$$" and self.mode in ("", "$"):
            self.open("$$", token.start())
        elif value == "$" and self.mode in ("", "$"):
            after, before = self.text[end : end + 1], self.text[token.start() - 1 : token.start()]
            if self.mode and not before.isspace() and not after.isdigit():
                self.close(end)
            elif after.strip():
                self.open("$", token.start())

    def tick(self, token: re.Match[str]) -> None:
        """Handle the backticks of inline code."""
        if self.mode == token.group() and "\n" not in self.text[self.start : token.start()]:
            self.close(token.end())
        elif not self.mode or self.mode.startswith("`"):
            self.open(token.group(), token.start())


def protected(text: str) -> list[Span]:
    """Return the spans of LaTeX, inline code and fenced code, in order and disjoint, in time linear in the text."""
    scan = _Scanner(text)
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "fence":
            scan.fence(token)
            continue
        if scan.mode.startswith("fence") or kind == "skip":
            continue
        limit = MAX_INLINE if scan.mode.startswith(_INLINE) and scan.mode != "$$" else MAX_DISPLAY
        if scan.mode and token.start() - scan.start > limit:
            scan.mode = ""
        if kind == "blank":  # ends inline spans, as in TeX, except a display whose `$$` is alone on its line
            if scan.mode.startswith(_INLINE) and not (scan.mode == "$$" and scan.own_line):
                scan.mode = ""
        elif kind == "open":
            scan.opener(token)
        elif kind == "close":
            scan.closer(token)
        elif kind == "dollars":
            scan.dollars(token)
        else:
            scan.tick(token)
    if scan.mode.startswith("fence"):
        scan.close(len(text))
    return scan.spans
