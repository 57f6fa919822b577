"""Who wrote each token of a decoded trace, in compact columns beside its text."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.model import Completion
from tracefactory.core.rows import Frozen
from tracefactory.decoding.decoder import Role

if TYPE_CHECKING:
    from tracefactory.decoding.run import Run

_TYPES = {"token_ids": "<i4", "ends": "<i4", "draws": "<i1", "teacher_logprobs": "<f4", "student_logprobs": "<f4"}


class Provenance(Frozen):
    """One entry per token, the stop token included; each column is base64 of zlib of little-endian numbers.

    `token_ids` (int32) are the student's; `ends` (int32) are the characters of the text up to and with the token;
    `draws` (int8) are 0 for a token of the student, otherwise by which of the teacher's draws it came;
    `teacher_logprobs` and `student_logprobs` (float32) are natural logarithms of the probability each model itself gave
    (temperature 1, whole vocabulary), NaN where it was not asked, or did not name the token when it was (a server
    names only the likeliest).
    """

    token_ids: str
    ends: str
    draws: str
    teacher_logprobs: str
    student_logprobs: str

    @classmethod
    def of(cls, run: Run) -> Provenance:
        """Return the provenance of a finished run."""
        columns: dict[str, Any] = {
            "token_ids": run.tokens,
            "ends": np.cumsum([len(piece) for piece in run.written.pieces]),
            "draws": run.draws,
            "teacher_logprobs": run.logprobs[Role.TEACHER],
            "student_logprobs": run.logprobs[Role.STUDENT],
        }
        return cls(**{name: _packed(values, _TYPES[name]) for name, values in columns.items()})

    def column(self, name: str) -> NDArray[Any]:
        """Return one column as numbers."""
        return np.frombuffer(zlib.decompress(base64.b64decode(getattr(self, name))), dtype=_TYPES[name])

    @property
    def by_student(self) -> NDArray[np.bool_]:
        """Return for each token whether the student wrote it."""
        mask: NDArray[np.bool_] = self.column("draws") == 0
        return mask

    def spans(self, text: str) -> Iterator[tuple[Role, str]]:
        """Yield the text in stretches of one writer; a character belongs to the token that completes it."""
        start = 0
        for role, group in groupby(
            zip(self.by_student, self.column("ends"), strict=True), key=lambda one: bool(one[0])
        ):
            end = int(max(end for _, end in group))
            if end > start:
                yield (Role.STUDENT if role else Role.TEACHER), text[start:end]
            start = end


class Decoded(Completion):
    """A completion that two models wrote."""

    provenance: Provenance

    @classmethod
    def of(cls, run: Run, served: str, started: float) -> Decoded:
        """Return a finished run as an answer; `started` is by the monotonic clock."""
        return cls(
            content=run.written.text(),
            finish_reason=run.finish,
            prompt_tokens=len(run.script.prompt),
            completion_tokens=len(run.tokens),
            served_model=served,
            created=time.time(),
            seconds=time.monotonic() - started,
            provenance=Provenance.of(run),
        )


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values).astype(kind).tobytes())).decode("ascii")
