"""What a trace is to the student that will learn from it: token scores under the student, and measures over them.

Only `open_student` needs the `student` extra (torch, transformers); the measures, the tables and the selection are
pure and run wherever stored scores are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError

if TYPE_CHECKING:
    from tracefactory.serving.client import ChatClient
    from tracefactory.students.served import ServedStudent
    from tracefactory.students.student import Student

__all__ = ["Checkpoint", "check_template", "open_served", "open_student"]


def check_template(spec: Checkpoint) -> None:
    """Check, with the tokenizer alone, that the student's chat template keeps the reasoning.

    Raises:
        UserError: when it drops it, with what to do, or when the `student` extra is missing.
    """
    try:
        from tracefactory.serving.loading import load_tokenizer
        from tracefactory.students.render import Renderer
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    Renderer(load_tokenizer(spec), spec.reasoning).check()


def open_student(spec: Checkpoint) -> Student:
    """Load the student and check that its chat template keeps the reasoning.

    Raises:
        UserError: when the `student` extra is not installed, the checkpoint cannot be loaded or does not fit scoring,
            or its chat template drops what it should be trained on.
    """
    try:
        from tracefactory.students.student import Student
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    student = Student(spec)
    student.check_template()
    return student


def open_served(spec: Checkpoint, client: ChatClient, max_tokens: int | None) -> ServedStudent:
    """Return a student that vLLM serves, with the tokenizer of `spec`; its chat template is checked likewise.

    Raises:
        UserError: when the `student` extra is not installed, or the tokenizer or its template does not do.
    """
    try:
        from tracefactory.students.served import ServedStudent
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    student = ServedStudent(spec, client, max_tokens)
    student.check_template()
    return student


def _no_extra(error: ModuleNotFoundError) -> UserError:
    return UserError(f"scoring under a student needs {error.name}: pip install 'tracefactory[student]'")
