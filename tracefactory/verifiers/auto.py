"""Select the verifier by the gold answer, for problems that do not name one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.shapes import Shape
from tracefactory.core.rows import Verdict
from tracefactory.verification.base import Verifier, VerifyTask, verifier
from tracefactory.verifiers.choice import OPTIONS, ChoiceParams, ChoiceVerifier, by_content, options_in
from tracefactory.verifiers.math import MathVerifier, MathVerifierParams

_OPTION_GOLD = re.compile(r"\(?[A-J]\)?|[A-J][).:].*", re.DOTALL)


class AutoParams(MathVerifierParams):
    """The parameters of `math`, and the options of `choice`."""

    options: tuple[str, ...] = Field(default=(), description=OPTIONS)


@verifier
class AutoVerifier(Verifier):
    """`choice` when the gold answer is an option letter and there are options to choose from, else `math`."""

    name = "auto"
    version = f"2+math{MathVerifier.version}+choice{ChoiceVerifier.version}"
    changes: ClassVar[Mapping[str, str]] = {version: MathVerifier.changes["3"]}
    Params = AutoParams

    def looks_like(self, task: VerifyTask) -> Shape:
        """Return the shape of the gold answer, or that of an option."""
        chooses = _OPTION_GOLD.fullmatch((task.problem.answer or "").strip()) is not None
        return "option" if chooses else MathVerifier().looks_like(task)

    def quick(self, task: VerifyTask, params: AutoParams) -> Verdict | None:
        """Return the verdict of `choice` or `math`, None when computer algebra is needed."""
        task = _by_letter(task, params)
        gold = (task.problem.answer or "").strip()
        listed = bool(params.options or options_in(task.problem.question))
        if _OPTION_GOLD.fullmatch(gold) and (listed or len(gold.strip("()")) == 1):
            return ChoiceVerifier().quick(task, _for_choice(params))
        return MathVerifier().quick(task, params)

    def full(self, task: VerifyTask, params: AutoParams) -> Verdict:
        """Return the verdict of `math` with computer algebra."""
        return MathVerifier().full(task, params)

    def prepare(self) -> None:
        """Import the computer algebra."""
        MathVerifier().prepare()


def _for_choice(params: AutoParams) -> ChoiceParams:
    return ChoiceParams.model_validate(params.model_dump(include=set(ChoiceParams.model_fields)))


def _by_letter(task: VerifyTask, params: AutoParams) -> VerifyTask:
    """Return the task with the letter of an option as gold answer, if its gold answer is the text of that option."""
    gold = (task.problem.answer or "").strip()
    options = params.options or options_in(task.problem.question)
    if len(options) < 2 or not gold or _OPTION_GOLD.fullmatch(gold):
        return task
    letter = by_content(gold, options)
    if not letter:
        return task
    return task.model_copy(update={"problem": task.problem.model_copy(update={"answer": "".join(letter)})})
