"""Answers that are equations: sympy solves them, and the value of the unknown is compared with the gold answer.

The equation-of-thought traces of Mix Thoughts (Zhu et al. 2024, "Distilling Mathematical Reasoning Capabilities into
Small Language Models") have such answers: the model writes the equations, and a solver does the arithmetic.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from pydantic import Field

from tracefactory.answers.extraction import Extraction
from tracefactory.answers.normalize import normalize
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.maths.equations import Equation, symbols_of, values_of
from tracefactory.maths.expression import parse_expression
from tracefactory.maths.tokens import UnparsedError
from tracefactory.maths.vocabulary import FUNCTIONS
from tracefactory.verification.base import Verifier, VerifyTask, verifier
from tracefactory.verifiers.math import gold_reading
from tracefactory.verifiers.numeric import number_in

MOST_EQUATIONS = 64
_BLOCK = re.compile(r"```[^\n`]*+\n(.*?)```", re.DOTALL)
_BREAK = re.compile(r"\n|\\\\|;|\\begin\{[a-z*]+\}|\\end\{[a-z*]+\}")
_NAME = re.compile(r"(?<![\\\w])[A-Za-z]\w+")
_PROSE = re.compile(r"^[^=]*[A-Za-z]\w{0,40}\s++(?=[A-Za-z])")  # the words before the name on the left side
_ASKED = ("answer", "ans", "result")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class EquationParams(Frozen):
    """Which unknown is the answer, and how close its value must be."""

    unknown: str = Field(
        default="", description="Name of the unknown that is asked for; by default answer, ans, result or the only one."
    )
    rel_tol: float = Field(default=1e-9, ge=0, lt=1, description="Largest difference, relative to the gold answer.")


@verifier
class EquationVerifier(Verifier):
    """Solve the equations that an answer states: those in its last code block, or else every line that is one."""

    name = "equation"
    version = "2"
    Params = EquationParams

    def quick(self, task: VerifyTask, params: EquationParams) -> Verdict | None:
        """Return `unverifiable` without a number as gold answer or an equals sign, None when there is one to solve."""
        if number_in(gold_reading(task.problem.answer or "")) is None:
            return self.verdict(Outcome.UNVERIFIABLE, "gold_is_no_number")
        return None if "=" in task.answer_text else self.verdict(Outcome.UNVERIFIABLE, "no_answer")

    def prepare(self) -> None:
        """Import sympy."""
        import sympy  # noqa: F401  # this takes a second, which does not count toward the deadline

    def full(self, task: VerifyTask, params: EquationParams) -> Verdict:
        """Solve the equations and compare every value of the unknown with the gold answer."""
        blocks = list(_BLOCK.finditer(task.answer_text))
        text, start = (blocks[-1][1], blocks[-1].start(1)) if blocks else (task.answer_text, 0)
        shown = Extraction(text.strip(), start, start + len(text), "equations")
        try:
            names, equations = read_equations(text, strict=bool(blocks))
            unknown = _unknown(params.unknown, names, equations)
            values = None if unknown is None else values_of(unknown, equations)
        except UnparsedError as error:
            return self.verdict(Outcome.UNVERIFIABLE, "not_an_equation", shown, str(error)[:200])
        if unknown is None:
            return self.verdict(Outcome.UNVERIFIABLE, "which_unknown", shown)
        if values is None:
            return self.verdict(Outcome.UNVERIFIABLE, "not_determined", shown)
        gold = number_in(gold_reading(task.problem.answer or "")) or Fraction(0)
        close = [abs(value - gold) <= abs(gold) * Fraction(params.rel_tol) for value in values.found]
        detail = ", ".join(str(value) for value in values.found) or "no solution"
        if len(values.found) > 1 and any(close):
            return self.verdict(Outcome.UNVERIFIABLE, "several_solutions", shown, detail)
        if not any(close) and not values.complete:
            return self.verdict(Outcome.UNVERIFIABLE, "not_all_solutions", shown, detail)
        return self.verdict(Outcome.CORRECT if any(close) else Outcome.INCORRECT, "solved", shown, detail)


def read_equations(text: str, *, strict: bool) -> tuple[dict[str, str], list[Equation]]:
    """Read the equations of a text.

    Args:
        text: equations on separate lines, or separated by semicolons or LaTeX line breaks.
        strict: whether every part with an equals sign must be an equation; otherwise other parts are skipped.

    Returns:
        The letter that replaces each name of several letters, and the equations.

    Raises:
        UnparsedError: for too many equations or names, and with `strict` for a part that is not an equation.
    """
    free = [letter for letter in _LETTERS if not re.search(rf"(?<!\w){letter}(?!\w)", text)]
    names: dict[str, str] = {}
    found: list[Equation] = []
    for part in _BREAK.split(text):
        if "=" not in part:
            continue
        if not strict:
            part = _PROSE.sub("", part)
        for name in _NAME.findall(part):
            if name not in names and name not in FUNCTIONS:
                if len(names) == len(free):
                    raise UnparsedError("too many names")
                names[name] = free[len(names)]
        try:
            sides = _NAME.sub(lambda match: names.get(match[0], match[0]), part).split("=")
            found += pairwise([parse_expression(normalize(side.strip(" $&.,"))) for side in sides])  # a = b = c
        except UnparsedError:
            if strict:
                raise
        if len(found) > MOST_EQUATIONS:
            raise UnparsedError(f"more than {MOST_EQUATIONS} equations")
    return names, found


def _unknown(named: str, names: dict[str, str], equations: list[Equation]) -> str | None:
    present = symbols_of(equations)
    wanted = [named] if named else list(_ASKED)
    found = [letter for name in wanted if (letter := names.get(name, name)) in present]
    if found or named:
        return found[0] if found else None
    return next(iter(present)) if len(present) == 1 else None
