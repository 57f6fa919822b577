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

    def names(self) -> frozenset[str]:
        """Return the names of all symbols in the tree, variables and constants."""
        own = frozenset((self.name,)) if self.op == "sym" else frozenset[str]()
        return own.union(*(arg.names() for arg in self.args))


_COMMANDS = FUNCTIONS | GREEK | ACCENTS | {"frac", "binom", "sqrt", "lfloor", "lceil", "infty"}
_SINGLE_ARGUMENT = FUNCTIONS - {"min", "max", "gcd", "lcm", "det"}


def parse_expression(text: str) -> Node:
    """Parse normalised text into a tree.

    Raises:
        UnparsedError: when the text is outside the grammar, nested too deeply or too long.
    """
    parser = _Parser(tokenize(text))
    if not parser.tokens:
        raise UnparsedError("empty expression")
    node = parser.sum()
    if parser.at != len(parser.tokens):
        raise UnparsedError(f"unexpected {parser.tokens[parser.at][1]!r}")
    return node


class _Parser:
    """The rules of the grammar, one method each.

    `at` is the index of the next token, `depth` the level of nesting, and `bars` the number of open `|`.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        """Return the kind and text of a token ahead, `end` after the last one."""
        index = self.at + ahead
        return self.tokens[index][:2] if index < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        """Return the next token and move past it."""
        token = self.peek()
        self.at += 1
        return token

    def expect(self, op: str) -> None:
        """Move past an operator, which must be next."""
        if self.take() != ("op", op):
            raise UnparsedError(f"expected {op!r}")

    def sum(self) -> Node:
        """Parse products with plus and minus signs between them."""
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
        """Parse factors with a multiplication sign, a slash or nothing between them."""
        node = self.unary()
        while True:
            kind, text = self.peek()
            if (kind, text) in (("op", "*"), ("op", "/"), ("cmd", "times"), ("cmd", "cdot")):
                self.take()
                node = Node("div" if text == "/" else "mul", (node, self.unary()))
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
        """Parse a power with any number of signs before it."""
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
        """Parse an atom with its exponent."""
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
        """Parse the factorial and degree signs after `node`."""
        while self.peek() in (("op", "!"), ("op", "°")):
            sign = self.take()[1]
            node = Node("fn", (node,), name="factorial" if sign == "!" else "degrees")
        return node

    def starts_factor(self) -> bool:
        """Return whether the next token can begin a factor."""
        kind, text = self.peek()
        if kind == "cmd":
            return text not in ("times", "cdot", "rfloor", "rceil", "rangle", "right", "pm", "mp") and text in _COMMANDS
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
        """Parse a sum between two brackets."""
        self.expect(opening)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.expect(closing)
        return node

    def atom(self) -> Node:
        """Parse a number, a symbol, a command, a group or an absolute value."""
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
        """Parse what follows a command such as `\\sqrt`."""
        if name in ("frac", "binom"):
            return self.fraction(name)
        if name == "sqrt":
            index = self.group("[", "]") if self.peek() == ("op", "[") else None
            inner = self.argument()
            return Node("fn", (inner,), name="sqrt") if index is None else Node("fn", (inner, index), name="root")
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

    def fraction(self, name: str) -> Node:
        """Parse the two arguments of `frac` or `binom`, which can be single digits."""
        above = self.argument()
        kind, text = self.peek()
        if kind == "num" and not text and name == "frac":
            raise UnparsedError("fraction without denominator")
        if kind == "num" and "." not in text:
            if len(text) > 1:
                self.tokens[self.at : self.at + 1] = [("num", text[0], False), ("num", text[1:], False)]
            self.tokens[self.at - 1] = ("cmd", name, False)
        arguments = (above, self.argument())
        return Node("div", arguments) if name == "frac" else Node("fn", arguments, name="binom")

    def accented(self, name: str) -> Node:
        """Parse the letters under an accent as one symbol."""
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
        """Parse a function with its base, its exponent and its arguments."""
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
        """Parse arguments in brackets, or one product without them: `sin 2x`."""
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
