"""Token scores of traces under a student, and measures computed from them.

Only loading a model or tokenizer needs the `student` extra (torch, transformers); measures work on stored scores.
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
    """Check that the student's chat template keeps the reasoning; only the tokenizer is loaded.

    Raises:
        UserError: when the template drops the reasoning, or the `student` extra is not installed.
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
        UserError: when the `student` extra is not installed, the checkpoint cannot be loaded or scored, or its chat
            template drops part of the trace.
    """
    try:
        from tracefactory.students.student import Student
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    student = Student(spec)
    student.renderer.check()
    return student


def open_served(spec: Checkpoint, client: ChatClient, max_tokens: int | None) -> ServedStudent:
    """Return a student that vLLM serves, with the tokenizer of `spec`, after the check of its chat template.

    Raises:
        UserError: when the `student` extra is not installed, or the tokenizer or its chat template cannot be used.
    """
    try:
        from tracefactory.students.served import ServedStudent
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    student = ServedStudent(spec, client, max_tokens)
    student.renderer.check()
    return student


def _no_extra(error: ModuleNotFoundError) -> UserError:
    return UserError(f"scoring under a student needs {error.name}: pip install 'tracefactory[student]'")
