"""The interface of verifiers: name, version, parameters, a quick part in-process, and a full part in a worker."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field, ValidationError

from tracefactory.answers.extract import extract, extract_bare
from tracefactory.answers.extraction import Extraction
from tracefactory.answers.shapes import Shape
from tracefactory.answers.structured import FIELDS
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Outcome, Problem, Thinking, Verdict

V = TypeVar("V", bound="Verifier")


class VerifyTask(Frozen):
    """One answer to check. `policy` has verifier parameters as a JSON object string; they override the spec."""

    problem: Problem
    answer_text: str
    reasoning: str = ""
    thinking: Thinking = Thinking.CLOSED
    finish_reason: str = "stop"
    policy: str = "{}"

    @property
    def cut_off(self) -> bool:
        """Whether the completion was truncated."""
        return self.finish_reason == "length" or self.thinking is Thinking.OPEN


class ExtractParams(Frozen):
    """Parameters of the extraction of an answer from a text."""

    bare: bool = Field(
        default=False,
        description="The text is the answer itself, possibly with words around it, and not a completion to search.",
    )
    answer_fields: tuple[str, ...] = Field(
        default=FIELDS,
        description="Names of the field with the answer in a completion that is a JSON object, best first.",
    )
    min_confidence: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="An answer that is extracted with less confidence is no answer. 1 is a box or a JSON field, "
        "0.95 an announced answer, 0.8 a last line alone, 0.6 a concluding sentence, 0.4 any other last sentence.",
    )
    min_confidence_incorrect: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="An answer that differs from the gold answer and is extracted with less confidence is unverifiable "
        "(uncertain_answer), because the sentence may be a step of a longer solution.",
    )


class Verifier(ABC):
    """Decides whether an answer is correct.

    A verifier is stateless. Its `version` is increased whenever a verdict could change, and `changes` says for each
    version, in one sentence, which verdicts differ from the version before; `plan` shows it.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    changes: ClassVar[Mapping[str, str]] = {}
    runs_code: ClassVar[bool] = False  # whether it runs programs of models, in the sandbox
    Params: ClassVar[type[Frozen]]

    def looks_like(self, task: VerifyTask) -> Shape:
        """Return what an answer to this task looks like, so that it is found in a sentence without a marker.

        Args:
            task: the answer to check; its problem has the gold answer, if there is one.
        """
        return "any"

    def stated(self, task: VerifyTask, params: ExtractParams) -> Extraction | None:
        """Return the answer that a task's text states, of the kind that this verifier compares.

        Args:
            task: the answer to check.
            params: whether the text is the answer itself, and the smallest confidence.

        Returns:
            The answer, None when the text states none.
        """
        return stated_answer(task, params, self.looks_like(task))

    @abstractmethod
    def quick(self, task: VerifyTask, params: Any) -> Verdict | None:
        """Return a verdict without code that can hang.

        Args:
            task: the answer to check.
            params: the verifier's parameters, an instance of `Params`.

        Returns:
            The verdict, None when `full` is needed.
        """

    def full(self, task: VerifyTask, params: Any) -> Verdict:
        """Return a verdict; this runs in a process that is killed at the deadline.

        Args:
            task: the answer to check.
            params: the verifier's parameters, an instance of `Params`.
        """
        raise TypeError(f"{self.name} has no full part")

    def prepare(self) -> None:  # noqa: B027  # most need nothing
        """Import what `full` needs; this time does not count toward a task's deadline."""

    def seconds_needed(self, params: Any) -> float:
        """Return the time that `full` needs, if that can be more than the pool's deadline."""
        return 0.0

    def verdict(
        self,
        outcome: Outcome,
        method: str,
        extraction: Extraction | None = None,
        detail: str | None = None,
        log: str | None = None,
    ) -> Verdict:
        """Return a verdict of this verifier.

        Args:
            outcome: the outcome.
            method: the rule that decided, as a snake_case word.
            extraction: the answer that was compared, None when there is none.
            detail: a note for a person; it is published, so it has no text of a program.
            log: what a program wrote; it is shown to a person who verifies one answer, neither stored nor published.
        """
        return Verdict(
            outcome=outcome,
            extracted=None if extraction is None else extraction.text,
            span_start=None if extraction is None else extraction.start,
            span_end=None if extraction is None else extraction.end,
            method=method,
            verifier=self.name,
            version=self.version,
            confidence=None if extraction is None else extraction.confidence,
            detail=detail,
            log=log,
        )

    def compared(
        self, same: bool, method: str, extraction: Extraction, params: ExtractParams, detail: str | None = None
    ) -> Verdict:
        """Return the verdict of a comparison; a doubtful extraction that differs is unverifiable.

        Args:
            same: whether the extracted answer equals the gold answer.
            method: the rule that decided, as a snake_case word.
            extraction: the answer that was compared.
            params: the smallest confidence of an incorrect answer.
            detail: a note for a person.
        """
        if not same and extraction.confidence < params.min_confidence_incorrect:
            return self.verdict(Outcome.UNVERIFIABLE, "uncertain_answer", extraction, detail)
        return self.verdict(Outcome.CORRECT if same else Outcome.INCORRECT, method, extraction, detail)


READS_MORE = (
    "answers are found in JSON objects, tables, labels of one letter (`A: 18`), on a last line alone and in the last "
    "sentence; the last statement that is not taken back counts; a sentence without a marker is never incorrect; a "
    "number in passing, a cut text and an unfinished value are no answer"
)
"""What version 3 of the verifiers changed in the extraction of answers."""

VERIFIERS: Registry[Verifier] = registry("verifier")
"""Every verifier by name."""


def runs_code(name: str | None) -> bool:
    """Return whether a verifier runs programs of models; without a name it is that of problems that name none."""
    return (name or "auto") in VERIFIERS and VERIFIERS.get(name or "auto").runs_code


_BEST_FIRST = (Outcome.CORRECT, Outcome.VERIFIER_ERROR, Outcome.UNVERIFIABLE, Outcome.INCORRECT)


def per_gold(task: VerifyTask) -> Sequence[VerifyTask]:
    """Return the task once for each gold answer of its problem."""
    problem = task.problem
    if not problem.answers:
        return (task,)
    golds = (problem.answer, *problem.answers)
    each = [problem.model_copy(update={"answer": gold, "answers": ()}) for gold in golds if gold is not None]
    return [task.model_copy(update={"problem": one}) for one in each]


def best_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict for several gold answers: correct for any of them, incorrect only for all of them."""
    return min(verdicts, key=lambda one: _BEST_FIRST.index(one.outcome))


def verifier(kind: type[V]) -> type[V]:
    """Register a class of verifier under its name."""
    VERIFIERS.register(kind.name)(kind())
    return kind


def resolve(task: VerifyTask) -> tuple[Verifier, Frozen]:
    """Return the verifier of a task with its parameters: the problem's spec, overridden by the policy.

    A policy can have parameters of several verifiers, because a stage checks mixed problems; each uses its own.

    Raises:
        UserError: for an unknown verifier or parameter.
    """
    verifier = VERIFIERS.get(task.problem.verifier or "auto")
    fields = verifier.Params.model_fields
    spec, policy = _object(task.problem.spec), _object(task.policy)
    check_policy(policy)
    own = {key: value for key, value in policy.items() if key in fields}
    try:
        return verifier, verifier.Params.model_validate({**spec, **own})
    except ValidationError as error:
        mistakes = []
        for item in error.errors():
            unknown = item["type"] == "extra_forbidden" and item["loc"]
            hint = nearest(str(item["loc"][-1]), fields) if unknown else None
            where = ".".join(map(str, item["loc"]))
            mistakes.append(Mistake(f"verifier {verifier.name!r}: {where}: {item['msg']}", hint=hint))
        raise UserError(mistakes) from None


def check_policy(policy: Mapping[str, Any]) -> None:
    """Check that every policy parameter is one of some verifier.

    Raises:
        UserError: for unknown parameters, with the nearest valid names.
    """
    if not policy:
        return
    known = {field for name in VERIFIERS for field in VERIFIERS.get(name).Params.model_fields}
    unknown = [key for key in policy if key not in known]
    if unknown:
        raise UserError(Mistake(f"unknown verifier parameter {key!r}", hint=nearest(key, known)) for key in unknown)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"verifier parameters are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError("verifier parameters are not a JSON object")
    return value


def stated_answer(task: VerifyTask, params: ExtractParams, shape: Shape = "any") -> Extraction | None:
    """Return the answer that a task's text states, of any kind: a number, a formula, a name, an option, a date.

    Args:
        task: the answer to check.
        params: whether the text is the answer itself, and the smallest confidence.
        shape: what the answer looks like, `any` where nothing is known.

    Returns:
        The answer, None when the text states none.
    """
    if params.bare:
        return extract_bare(task.answer_text) if task.answer_text.strip() else None
    stated = extract(task.answer_text, cut_off=task.cut_off, shape=shape, fields=params.answer_fields)
    return None if stated is None or stated.confidence < params.min_confidence else stated


def whole_or_stated(verifier: Verifier, task: VerifyTask, params: ExtractParams, *, whole: bool) -> Extraction | None:
    """Return the answer that a text states, or the whole text where it is asked for or the text is the answer itself.

    Args:
        verifier: the verifier that compares it.
        task: the answer to check.
        params: whether the text is a bare answer, and the smallest confidence.
        whole: whether to return the whole text in any case.

    Returns:
        The answer, None when there is none.
    """
    text = task.answer_text.strip()
    if text and (whole or params.bare):
        start = task.answer_text.index(text)
        return Extraction(text, start, start + len(text), "whole")
    return None if whole else verifier.stated(task, params)
