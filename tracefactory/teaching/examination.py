"""Let a trained student answer the questions of a comparison, through the stages of its pipeline.

Every answer is a request of the student's weights, so it is asked for once: the store, the verifiers, kills and resumes
are those of every run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from tracefactory.core.environment import EnvStr
from tracefactory.core.errors import Mistake, RunStopped, UserError
from tracefactory.core.model import CanaryCheck
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Frozen, Outcome, Problem, Trace
from tracefactory.core.teach import Teach
from tracefactory.engine.run import Watch, run_pipeline
from tracefactory.engine.runs import RunOutcome
from tracefactory.teaching.rows import TrainingRow

_SHOWN = 3


class Marks(Frozen):
    """The answers of one student to the questions, counted. A question is asked once or several times.

    Attributes:
        answers: all answers.
        correct, incorrect: those with a verdict.
        no_answer: those that state no answer that could be read; `truncated` says which share of all was cut off.
        not_judged: those that the verifier failed on, which count neither as right nor as wrong.
        truncated: answers that ended at the limit of tokens, whatever their verdict.
        with_answer: share of all answers that state one: the format, apart from whether it is right.
        tokens: mean tokens of an answer, as the server counted them.
    """

    answers: int
    correct: int
    incorrect: int
    no_answer: int
    not_judged: int
    truncated: int
    with_answer: float
    tokens: float


class Examined(Frozen):
    """The answers of one student: their counts, the share of correct ones by question id, and the requests paid."""

    marks: Marks
    scores: Mapping[str, float]
    requests: int = 0


def examination(pipeline: Pipeline, teach: Teach, weights: Path | None, limit: int | None = None) -> Pipeline:
    """Return the pipeline that lets a student answer.

    Args:
        pipeline: the pipeline of the comparison.
        teach: its section `teach:`.
        weights: the file or folder of the trained student; None for the one that was not trained.
        limit: only the first questions of the source.
    """
    # Empty, equal or cut answers of a student are a result, and not the fault of a server.
    told: dict[str, Any] = {"skip_checks": get_args(CanaryCheck)}
    if weights is not None:
        told |= {"model": EnvStr(weights), "revision": ""}
    models = {**pipeline.models, teach.answers: pipeline.models[teach.answers].model_copy(update=told)}
    named = {"name": f"{pipeline.name}-answers", "billed_to": pipeline.billed_to or pipeline.name}
    return pipeline.model_copy(update={**named, "models": models, "limit": limit})


async def examine(pipeline: Pipeline, watch: Watch, without: Collection[str] = ()) -> Examined:
    """Run an examination, and count the verdicts.

    Args:
        pipeline: from `examination`.
        watch: displays the run.
        without: ids of questions that do not count, such as those that choose the learning rates.

    Raises:
        RunStopped: when answers are missing because their requests failed; the same command asks for them again.
    """
    outcome = await run_pipeline(pipeline, watch)
    owed = sum(stage.tally.owed for stage in outcome.stages)
    if owed:
        raise RunStopped(f"{owed:,} answers are missing, because requests failed; the same command asks for them again")
    root = pipeline.project.state_dir
    traces = [
        row for row in outcome.stages[-1].rows(root).rows() if isinstance(row, Trace) and row.problem_id not in without
    ]
    return Examined(marks=_marks(traces), scores=_scores(traces), requests=_paid(outcome))


def leaked(questions: Iterable[Problem], datasets: Mapping[str, Iterable[TrainingRow]]) -> dict[str, list[Problem]]:
    """Return the questions that a student is trained on, by dataset: equal but for case, white space and punctuation.

    Args:
        questions: the questions of the comparison.
        datasets: the rows of each dataset, by its name.
    """
    asked: dict[str, list[Problem]] = {}
    for one in questions:
        asked.setdefault(_plain(one.question), []).append(one)
    trained = {name: {_plain(row.question) for row in rows} for name, rows in datasets.items()}
    found = {
        name: [one for plain in sorted(texts & asked.keys()) for one in asked[plain]] for name, texts in trained.items()
    }
    return {name: problems for name, problems in found.items() if problems}


def refuse_leaks(found: Mapping[str, Sequence[Problem]], questions: int) -> None:
    """Refuse a comparison whose questions are in training rows.

    Args:
        found: these questions by dataset, see `leaked`.
        questions: the number of all questions.

    Raises:
        UserError: when there are any, with their number in each dataset, and some of them.
    """
    mistakes = []
    for name, problems in found.items():
        some = "; ".join(repr(one.question[:80]) for one in problems[:_SHOWN])
        what = f"{name}: {len(problems):,} of the {questions:,} questions are in its training rows ({some})"
        mistakes.append(
            Mistake(what, hint="take other questions, or set `leaks: drop` to leave these out of the count")
        )
    if mistakes:
        raise UserError(mistakes)


def _marks(traces: Collection[Trace]) -> Marks:
    outcomes = [trace.verdict.outcome for trace in traces if trace.verdict is not None]
    stated = [trace for trace in traces if trace.verdict is not None and trace.verdict.extracted is not None]
    return Marks(
        answers=len(traces),
        correct=outcomes.count(Outcome.CORRECT),
        incorrect=outcomes.count(Outcome.INCORRECT),
        no_answer=outcomes.count(Outcome.UNVERIFIABLE),
        not_judged=len(traces) - len(outcomes) + outcomes.count(Outcome.VERIFIER_ERROR),
        truncated=sum(trace.finish_reason == "length" for trace in traces),
        with_answer=len(stated) / len(traces) if traces else 0.0,
        tokens=fmean(trace.completion_tokens for trace in traces) if traces else 0.0,
    )


def _scores(traces: Iterable[Trace]) -> dict[str, float]:
    by_question: dict[str, list[bool]] = {}
    for trace in traces:
        if trace.verdict is not None and trace.verdict.outcome is not Outcome.VERIFIER_ERROR:
            by_question.setdefault(trace.problem_id, []).append(trace.verdict.outcome is Outcome.CORRECT)
    return {question: fmean(correct) for question, correct in sorted(by_question.items())}


def _paid(outcome: RunOutcome) -> int:
    return int(sum(stage.paid.get("requests", 0) for stage in outcome.stages))


def _plain(text: str) -> str:
    """Return a text by its letters, digits and signs of arithmetic alone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[\w+*/=<>^%-]+", folded))
