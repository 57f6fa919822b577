"""Which model wrote each token of a decoded trace, as compact columns stored with its text."""

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
    from tracefactory.decoding.rollout import Rollout

_TYPES = {"token_ids": "<i4", "ends": "<i4", "draws": "<i1", "teacher_logprobs": "<f4", "student_logprobs": "<f4"}


class Provenance(Frozen):
    """One entry per token, including the stop token. Each column is little-endian numbers, zlib-compressed, in base64.

    `token_ids` (int32) are the student's; `ends` (int32) are the lengths of the text up to and including each token, in
    characters; `draws` (int8) is which of the teacher's draws the token is, 0 for a token of the student;
    `teacher_logprobs` and `student_logprobs` (float32) are each model's own natural log-probabilities (temperature 1,
    whole vocabulary), NaN where the model was not queried or its server did not name the token (servers name only the
    likeliest).
    """

    token_ids: str
    ends: str
    draws: str
    teacher_logprobs: str
    student_logprobs: str

    @classmethod
    def of(cls, rollout: Rollout) -> Provenance:
        """Return the provenance of a finished rollout."""
        columns: dict[str, Any] = {
            "token_ids": rollout.tokens,
            "ends": np.cumsum([len(piece) for piece in rollout.written.pieces]),
            "draws": rollout.draws,
            "teacher_logprobs": rollout.logprobs[Role.TEACHER],
            "student_logprobs": rollout.logprobs[Role.STUDENT],
        }
        packed = {
            name: zlib.compress(np.asarray(values).astype(_TYPES[name]).tobytes()) for name, values in columns.items()
        }
        return cls(**{name: base64.b64encode(column).decode("ascii") for name, column in packed.items()})

    def column(self, name: str) -> NDArray[Any]:
        """Return one column as numbers, by its name."""
        return np.frombuffer(zlib.decompress(base64.b64decode(getattr(self, name))), dtype=_TYPES[name])

    @property
    def by_student(self) -> NDArray[np.bool_]:
        """A mask of the tokens that the student wrote."""
        mask: NDArray[np.bool_] = self.column("draws") == 0
        return mask

    def spans(self, text: str) -> Iterator[tuple[Role, str]]:
        """Yield the text in spans of one writer; a character belongs to the token that completes it."""
        start = 0
        for role, group in groupby(
            zip(self.by_student, self.column("ends"), strict=True), key=lambda one: bool(one[0])
        ):
            end = int(max(end for _, end in group))
            if end > start:
                yield (Role.STUDENT if role else Role.TEACHER), text[start:end]
            start = end


class Decoded(Completion):
    """A completion that two models wrote.

    `opened_in_prompt` says that the student's chat template opened the thinking, so that the text starts in it.
    """

    provenance: Provenance
    opened_in_prompt: bool = False

    @classmethod
    def of(cls, rollout: Rollout, served: str, started: float) -> Decoded:
        """Return a finished rollout as a completion.

        Args:
            rollout: the rollout.
            served: the description of both models.
            started: the start of the request, in seconds of the monotonic clock.
        """
        return cls(
            content=rollout.written.text(),
            finish_reason=rollout.finish,
            prompt_tokens=len(rollout.spec.prompt),
            completion_tokens=len(rollout.tokens),
            served_model=served,
            created=time.time(),
            seconds=time.monotonic() - started,
            provenance=Provenance.of(rollout),
            opened_in_prompt=rollout.spec.opened_in_prompt,
        )
