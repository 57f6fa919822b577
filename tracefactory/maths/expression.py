"""A recursive-descent parser for mathematical expressions in LaTeX or plain text.

It covers closed forms (numbers, variables, arithmetic, powers, roots, the elementary functions, binomials,
factorials, absolute values, floors) and raises `UnparsedError` for everything else, so that no text is parsed in part.
Depth and length are bounded, so parsing is linear and terminates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tracefactory.maths.tokens import Token, UnparsedError, tokenize
from tracefactory.maths.vocabulary import ACCENTS, FUNCTIONS, GREEK

MAX_DEPTH = 60


@dataclass(frozen=True)
class Node:
    """A node of the tree: `op` with its arguments; `value` of a number, `name` of a symbol or function."""

    op: str  # num sym add mul div pow neg fn
    args: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


_SINGLE_ARGUMENT = FUNCTIONS - {"min", "max", "gcd", "lcm", "det"}


def parse_expression(text: str) -> Node:
    """Parse normalised text into a tree.

    Raises:
        UnparsedError: when the text is outside the grammar, nested too deeply or too long.
    """
    return _Parser(tokenize(text)).parse()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    def parse(self) -> Node:
        if not self.tokens:
            raise UnparsedError("empty expression")
        node = self.sum()
        if self.at != len(self.tokens):
            raise UnparsedError(f"unexpected {self.tokens[self.at][1]!r}")
        return node

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        index = self.at + ahead
        return self.tokens[index][:2] if index < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, op: str) -> None:
        if self.take() != ("op", op):
            raise UnparsedError(f"expected {op!r}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnparsedError("nested too deeply")
        node = self.product()
        while self.peek() in (("op", "+"), ("op", "-")):
            sign = self.take()[1]
            right = self.product()
            node = Node("add", (node, right if sign == "+" else Node("neg", (right,))))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.unary()
        while True:
            kind, text = self.peek()
            if (kind, text) in (("op", "*"), ("cmd", "times"), ("cmd", "cdot")):
                self.take()
                node = Node("mul", (node, self.unary()))
            elif (kind, text) == ("op", "/"):
                self.take()
                node = Node("div", (node, self.unary()))
            elif self.starts_factor():
                node = self.juxtaposed(node)
            else:
                return node

    def juxtaposed(self, left: Node) -> Node:
        """Parse a factor next to the last one; an integer before a fraction is a mixed number."""
        start = self.at
        right = self.power()
        if left.op == "num" and left.value.denominator == 1 and self.tokens[start - 1][0] == "num":
            is_frac = self.tokens[start][1] == "frac" and right.op == "div"
            if is_frac and all(arg.op == "num" for arg in right.args) and right.args[1].value:
                part = right.args[0].value / right.args[1].value
                if part.denominator > 1 and 0 < part < 1:
                    return Node("num", value=left.value + part)
            if right.op == "num" and self.tokens[start][0] == "num":
                return self.mixed(left, right)
        if right.op == "num" and self.tokens[start][0] == "num":
            raise UnparsedError("number directly after a factor")
        return Node("mul", (left, right))

    def mixed(self, whole: Node, numerator: Node) -> Node:
        """Parse `2 1/3`."""
        if self.peek() == ("op", "/") and self.peek(1)[0] == "num":
            self.take()
            denominator = Fraction(self.take()[1])
            if denominator and numerator.value < denominator and self.peek() != ("op", "/"):
                return Node("num", value=whole.value + numerator.value / denominator)
        raise UnparsedError("two adjacent numbers")

    def unary(self) -> Node:
        if self.peek() in (("op", "-"), ("op", "+")):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise UnparsedError("nested too deeply")
            sign = self.take()[1]
            inner = self.unary()
            # -2 1/3 and -x y: the sign belongs to the whole product
            while self.starts_factor():
                inner = self.juxtaposed(inner)
            self.depth -= 1
            return Node("neg", (inner,)) if sign == "-" else inner
        return self.power()

    def power(self) -> Node:
        node = self.postfix(self.atom())
        if self.peek() == ("op", "^"):
            self.take()
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise UnparsedError("nested too deeply")
            node = self.postfix(Node("pow", (node, self.argument())))
            self.depth -= 1
            if self.peek() == ("op", "^"):
                raise UnparsedError("ambiguous nested powers")
        return node

    def postfix(self, node: Node) -> Node:
        while self.peek() in (("op", "!"), ("op", "°")):
            sign = self.take()[1]
            if sign == "!":
                node = Node("fn", (node,), name="factorial")
            else:
                node = Node("fn", (node,), name="degrees")
        return node

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind == "cmd":
            return text not in ("times", "cdot", "rfloor", "rceil", "rangle", "right", "pm", "mp") and _known(text)
        if kind == "op":
            return text in "({[" or (text == "|" and self.bars == 0)
        return kind in ("num", "sym")

    def argument(self) -> Node:
        """Parse the argument of a command or an exponent: a group, or a single digit, letter or command."""
        kind, text = self.peek()
        if (kind, text) == ("op", "{"):
            return self.group("{", "}")
        if (kind, text) == ("op", "("):
            return self.group("(", ")")
        if kind == "num":
            if self.at and self.tokens[self.at - 1][1] in ("frac", "binom") and "." not in text:
                self.tokens[self.at] = ("num", text[1:], False)  # \frac12: one digit each
                if len(text) == 1:
                    self.at += 1
                return Node("num", value=Fraction(text[0]))
            self.take()
            return Node("num", value=Fraction(text))
        if (kind, text) in (("op", "-"), ("op", "+")):
            self.take()
            inner = self.argument()
            return Node("neg", (inner,)) if text == "-" else inner
        return self.atom()

    def group(self, opening: str, closing: str) -> Node:
        self.expect(opening)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.expect(closing)
        return node

    def atom(self) -> Node:
        kind, text = self.take()
        if kind == "num":
            return Node("num", value=Fraction(text))
        if kind == "sym":
            if text == "C" and self.peek() == ("op", "("):
                return self.choose()
            return Node("sym", name=self.subscripted(text))
        if kind == "cmd":
            return self.command(text)
        if kind == "op" and text in "({[":
            self.at -= 1
            return self.group(text, {"(": ")", "{": "}", "[": "]"}[text])
        if kind == "op" and text == "|":
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.expect("|")
            return Node("fn", (node,), name="abs")
        raise UnparsedError(f"unexpected {text!r}" if text else "unexpected end")

    def choose(self) -> Node:
        """Parse C(n, k) as a binomial; C(x) is C times x."""
        start = self.at
        self.expect("(")
        above = self.sum()
        if self.peek() == ("op", ","):
            self.take()
            below = self.sum()
            self.expect(")")
            return Node("fn", (above, below), name="binom")
        self.at = start
        return Node("sym", name="C")

    def command(self, name: str) -> Node:
        if name == "frac":
            above = self.argument()
            if self.peek() == ("num", ""):
                raise UnparsedError("fraction without denominator")
            self.mark("frac")
            return Node("div", (above, self.argument()))
        if name == "binom":
            above = self.argument()
            self.mark("binom")
            return Node("fn", (above, self.argument()), name="binom")
        if name == "sqrt":
            return self.root()
        if name in ("lfloor", "lceil"):
            node = self.sum()
            if self.take() != ("cmd", "r" + name[1:]):
                raise UnparsedError("unclosed floor or ceiling")
            return Node("fn", (node,), name="floor" if name == "lfloor" else "ceil")
        if name in FUNCTIONS:
            return self.function(name)
        if name in ACCENTS:
            return self.accented(name)
        if name in GREEK or name == "infty":
            return Node("sym", name=self.subscripted("\\" + name if name not in ("pi", "infty") else name))
        raise UnparsedError(f"unknown command {name!r}")

    def mark(self, command: str) -> None:
        """Mark the next argument as belonging to `command`, whose arguments can be single digits."""
        kind, text = self.peek()
        if kind == "num" and "." not in text:
            if len(text) > 1:
                self.tokens[self.at : self.at + 1] = [("num", text[0], False), ("num", text[1:], False)]
            self.tokens[self.at - 1] = ("cmd", command, False)

    def root(self) -> Node:
        index: Node | None = None
        if self.peek() == ("op", "["):
            index = self.group("[", "]")
        inner = self.argument()
        if index is None:
            return Node("fn", (inner,), name="sqrt")
        return Node("fn", (inner, index), name="root")

    def accented(self, name: str) -> Node:
        parts = []
        if self.peek() == ("op", "{"):
            self.take()
            while self.peek() != ("op", "}"):
                kind, text = self.take()
                if kind not in ("sym", "num"):
                    raise UnparsedError(f"accent over {text!r}")
                parts.append(text)
            self.take()
        else:
            kind, text = self.take()
            if kind != "sym":
                raise UnparsedError(f"accent over {text!r}")
            parts.append(text)
        if name in ("overline", "bar", "dot") and all(part[0].isdigit() for part in parts):
            raise UnparsedError("repeating decimal")
        return Node("sym", name=self.subscripted(f"{name}:{''.join(parts)}"))

    def subscripted(self, name: str) -> str:
        """Return the symbol's name with its subscripts."""
        while self.peek() == ("op", "_"):
            self.take()
            kind, text = self.take()
            if (kind, text) == ("op", "{"):
                inner: list[str] = []
                while self.peek() != ("op", "}"):
                    kind, text = self.take()
                    if kind == "end":
                        raise UnparsedError("unclosed subscript")
                    inner.append(text)
                self.take()
                text = "".join(inner)
            elif kind == "end":
                raise UnparsedError("unclosed subscript")
            elif kind == "num" and len(text) > 1:  # x_12 is x_1 2 in LaTeX
                self.at -= 1
                self.tokens[self.at] = ("num", text[1:], False)
                text = text[0]
            name += "_" + text
        return name

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self.peek() in (("op", "_"), ("op", "^")):
            if self.take()[1] == "_":
                base = self.argument()
            else:
                exponent = self.argument()
        arguments = self.arguments(name)
        if name == "log" and base is not None:
            node = Node("fn", (*arguments, base), name="log_base")
        elif base is not None:
            raise UnparsedError(f"{name} with a subscript")
        else:
            node = Node("fn", arguments, name=name)
        if exponent is None:
            return node
        if (
            exponent.op == "neg"
            and exponent.args[0] == Node("num", value=Fraction(1))
            and name in ("sin", "cos", "tan")
        ):
            return Node("fn", arguments, name="arc" + name)
        return Node("pow", (node, exponent))

    def arguments(self, name: str) -> tuple[Node, ...]:
        opening = self.peek()
        if opening in (("op", "("), ("op", "{"), ("op", "[")):
            self.take()
            bars, self.bars = self.bars, 0
            found = [self.sum()]
            while self.peek() == ("op", ","):
                self.take()
                found.append(self.sum())
            self.bars = bars
            self.expect({"(": ")", "{": "}", "[": "]"}[opening[1]])
            if len(found) > 1 and name in _SINGLE_ARGUMENT:
                raise UnparsedError(f"{name} with several arguments")
            return tuple(found)
        node = self.unary()
        while self.starts_factor() and not (self.peek()[0] == "cmd" and self.peek()[1] in FUNCTIONS):
            if self.peek() in (("op", "("), ("op", "[")):
                break
            node = Node("mul", (node, self.power()))
        return (node,)


def _known(command: str) -> bool:
    return (
        command in FUNCTIONS
        or command in GREEK
        or command in ACCENTS
        or command
        in (
            "frac",
            "binom",
            "sqrt",
            "lfloor",
            "lceil",
            "infty",
        )
    )
