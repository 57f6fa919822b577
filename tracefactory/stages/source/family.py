"""`source: <name>`: problems from a registered source, without exact duplicates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from tracefactory.core.columns import Column
from tracefactory.core.decisions import Made, drop
from tracefactory.core.environment import Environment, env_names
from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import ID_DIGITS, Kind, Problem
from tracefactory.core.stage import Facts, Stage, Work
from tracefactory.reading.base import SOURCES, Rejected, Source, normalised_question
from tracefactory.verification.base import VERIFIERS

_ANSWER_DIGITS = 8
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40}|/0*[1-9][0-9]{0,39})?")


class SourceStage(Stage[Any]):
    """Read one source. What cannot be used, and every repeated question, is a dropped row with its reason.

    Of a question that is given with different answers, the first row is kept, because nothing says which one is right;
    the others are counted as `conflicting_answers`, not as duplicates.
    """

    verb, version = "source", "2"
    takes, makes, judges, many_inputs = frozenset({Kind.NONE}), Kind.PROBLEMS, False, False
    work_on = Work.SOURCE

    def __init__(self, name: str, source: Source[Any]) -> None:
        # One operation for every registered source: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = source.Params  # type: ignore[misc]
        self.offline = source.offline  # type: ignore[misc]
        self.source = source

    def uses(self, stage: StageSpec[Any], pipeline: Pipeline) -> Mapping[str, Any]:
        here = Environment(root=pipeline.project.root)
        read = self.source.identity(self.source.located(stage.params, here.environ), here.root)
        return {"versions": {"source": self.source.version}, "read": read, "limit": pipeline.limit}

    def columns(self, stage: StageSpec[Any], pipeline: Pipeline) -> Sequence[Column]:
        named: Mapping[str, str] = getattr(stage.params, "measures", {})
        return [
            Column(name=name, description=f"The field {field} of the source.", about="problem")
            for name, field in named.items()
        ]

    def facts(self, stage: StageSpec[Any], numbers: Mapping[str, float]) -> Facts:
        return Facts(source=self.source.describe(stage.params), revision=getattr(stage.params, "revision", "") or "")

    def check(self, stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
        here = Environment(root=pipeline.project.root)
        # An environment variable that is not set is reported where it is written.
        ready = all(here.environ.get(name) for name in env_names(stage.params))
        located = self.source.located(stage.params, here.environ) if ready else None
        mistakes = [Mistake(text) for text in (self.source.check(located, here.root) if ready else ())]
        unknown = sorted(self.source.verifiers(stage.params) - VERIFIERS.names())
        return mistakes + [Mistake(f"unknown verifier {name!r}", hint=nearest(name, VERIFIERS)) for name in unknown]

    def read(self, stage: StageSpec[Any], pipeline: Pipeline, environment: Environment) -> Iterator[Made]:
        located = self.source.located(stage.params, environment.environ)
        # The id and the answer's digest by 64 bits of the question's: a million of them are 100 MB.
        first: dict[int, str] = {}
        for number, row in enumerate(self.source.read(located, base_dir=environment.root, limit=pipeline.limit)):
            if isinstance(row, Rejected):
                key = digest({"row": number, "content": row.row})[:ID_DIGITS]
                nothing = Problem(id=key, question="", answer=None)
                yield Made(nothing, drop(row.reason, row.detail), rejected=row.row)
                continue
            question = int(digest(normalised_question(row))[:ID_DIGITS], 16)
            answer = digest(_normalised_answer(row))[:_ANSWER_DIGITS]
            if question in first:
                # Identical rows share one id; the row number tells the repeats apart.
                own = digest({"row": number, "problem": row.id})[:ID_DIGITS]
                kept, other = first[question][:ID_DIGITS], first[question][ID_DIGITS:] != answer
                decision = (
                    drop("conflicting_answers", f"{kept} has the same question and another answer than {row.answer!r}")
                    if other
                    else drop("duplicate", f"repeats {kept}")
                )
                yield Made(row.model_copy(update={"id": own}), decision)
            else:
                first[question] = f"{row.id}{answer}"
                yield Made(row)


def _normalised_answer(problem: Problem) -> str:
    """Return the gold answer as it is compared with that of a repeated question: numbers by value."""
    text = " ".join((problem.answer or "").casefold().split())
    return str(Fraction(text)) if _NUMBER.fullmatch(text) else text


def make(name: str) -> SourceStage:
    """Return the operation of one registered source."""
    return SourceStage(name, SOURCES.get(name)())
