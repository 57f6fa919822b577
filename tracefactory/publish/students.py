"""The students that a dataset is for: the one that `publish:` names, or those of the stages above."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.publish.control_tokens import TokenCheck
from tracefactory.publish.rendering import check_row, view_fault
from tracefactory.publish.views import VIEWS, Row, Rows, ViewError
from tracefactory.students.render import Renderer
from tracefactory.text.chat_templates import RenderError
from tracefactory.text.control_tokens import ControlTokens, RowMarks


@dataclass(frozen=True)
class StudentCheck:
    """Checks what students are trained on with every row of a dataset; a `strict` check refuses rows, others count.

    `renderers` have the students' chat templates and tokenizers, by the name of the student. With `spelled`, a text may
    spell a control token: the dataset keeps them.
    """

    renderers: Mapping[str, Renderer]
    strict: bool
    spelled: bool = False

    @property
    def tokens(self) -> frozenset[str]:
        """The control tokens of the students for whom rows are refused."""
        own = (one.control_tokens for one in self.renderers.values()) if self.strict else ()
        return frozenset[str]().union(*own)

    def refuse(self, made: Rows) -> Rows:
        """Return the rows of a view without those that a strict check refuses."""
        if not self.strict:
            return made
        found = {row["id"]: next(self._faults(row), None) for row in made.rows}
        refused = {
            row_id: ViewError(fault[1].reason, f"under the chat template of {fault[0]!r}: {fault[1]}")
            for row_id, fault in found.items()
            if fault is not None
        }
        return Rows([row for row in made.rows if row["id"] not in refused], {**made.refused, **refused})

    def count(self, rows: Sequence[Row]) -> Counter[tuple[str, str]]:
        """Return by student and reason how many of the rows are not rendered as meant; none for a strict check."""
        faults = () if self.strict else (fault for row in rows for fault in self._faults(row))
        return Counter((name, error.reason) for name, error in faults)

    def _faults(self, row: Row) -> Iterator[tuple[str, RenderError]]:
        for name, renderer in self.renderers.items():
            try:
                check_row(row, renderer, spelled=self.spelled)
            except RenderError as error:
                yield name, error


def students_of(stage: StageSpec[Any], pipeline: Pipeline) -> tuple[str, ...]:
    """Return the names of the students of a `publish` stage: its own, or those that stages above name."""
    if stage.params.student is not None:
        return (stage.params.student,)
    named = [str(getattr(one.params, "student", "")) for one in pipeline.above(stage)]
    return tuple(dict.fromkeys(name for name in named if name in pipeline.models))


def student_check(stage: StageSpec[Any], pipeline: Pipeline) -> StudentCheck:
    """Return the check of a stage's rows.

    Students whose tokenizer is not at hand are left out, unless the stage itself names one.

    Raises:
        UserError: when the student that the stage names cannot be loaded.
    """
    strict = stage.params.student is not None
    renderers = {}
    for name in students_of(stage, pipeline):
        try:
            renderers[name] = _renderer(name, pipeline)
        except (UserError, ModuleNotFoundError) as error:
            if strict:
                raise UserError(f"stage {stage.id!r}: student {name!r}: {error}") from error
    return StudentCheck(renderers, strict, spelled=stage.params.control_tokens is ControlTokens.KEEP)


def token_check(stage: StageSpec[Any], check: StudentCheck) -> TokenCheck:
    """Return what becomes of control tokens in the texts of a stage's rows.

    Args:
        stage: the publish stage.
        check: the check of its rows; the control tokens of a student that the stage names count too.
    """
    return TokenCheck(stage.params.control_tokens, RowMarks(check.tokens))


def view_mistakes(stage: StageSpec[Any], pipeline: Pipeline, views: Sequence[str]) -> Iterator[Mistake]:
    """Yield a mistake for each view whose rows the chat template of the student that the stage names cannot render.

    Raises:
        UserError: when the student cannot be loaded.
    """
    if stage.params.student is None:
        return
    for student, renderer in student_check(stage, pipeline).renderers.items():
        for name in views:
            fault = view_fault(VIEWS.get(name), renderer)
            if isinstance(fault, RenderError):
                message = f"stage {stage.id!r}: the view {name!r} under the chat template of {student!r}: {fault}"
                yield Mistake(f"{message} ({fault.reason})", stage.file, stage.line, _instead(views, name, renderer))


def unrendered(counted: Mapping[str, Counter[tuple[str, str]]]) -> Iterator[str]:
    """Yield a sentence for each view with rows that would train a student on something else than was meant."""
    for view, reasons in counted.items():
        for (student, reason), rows in reasons.most_common():
            yield (
                f"the view {view}: {rows} rows do not train the student {student!r} on what was meant ({reason}); "
                f"`tracefactory render --student {student} --view {view}` shows one, and `student: {student}` of the "
                "publish stage refuses such rows"
            )


def _renderer(name: str, pipeline: Pipeline) -> Renderer:
    from tracefactory.students.tokens import renderer  # imports torch

    return renderer(pipeline.models[name].require_checkpoint(Environment(root=pipeline.project.root)))


def _instead(views: Sequence[str], broken: str, renderer: Renderer) -> str:
    """Return what to publish instead: the views of the same kind that the template renders."""
    kinds: tuple[tuple[str, ...], ...] = (("sft", "messages", "chat"), ("preference", "ranking"))
    kind = next((names for names in kinds if broken in names), ())
    good = [name for name in kind if name != broken and name in VIEWS and view_fault(VIEWS.get(name), renderer) is None]
    if good:
        return (
            f"publish {' or '.join(good)} instead" if not set(good) & set(views) else f"leave {broken} out of `views:`"
        )
    return "set `chat_template:` of the student to one for training, or leave the view out"
