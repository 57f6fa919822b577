"""What a trace is to the student that will learn from it: token scores under the student, and measures over them.

Only `open_student` needs the `student` extra (torch, transformers); the measures, the tables and the selection are
pure and run wherever stored scores are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracefactory.errors import UserError
from tracefactory.students.spec import StudentSpec

if TYPE_CHECKING:
    from tracefactory.students.student import Student

__all__ = ["StudentSpec", "open_student"]


def open_student(spec: StudentSpec) -> Student:
    """Load the student and check that its chat template keeps the reasoning.

    Raises:
        UserError: when the `student` extra is not installed, the checkpoint cannot be loaded or does not fit scoring,
            or its chat template drops what it should be trained on.
    """
    try:
        from tracefactory.students.student import Student
    except ModuleNotFoundError as error:
        raise UserError(f"scoring under a student needs {error.name}: pip install 'tracefactory[student]'") from error
    student = Student(spec)
    student.check_template()
    return student
