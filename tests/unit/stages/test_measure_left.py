"""A measure leaves failed rows of other kinds than the one that is tried again as they are, and does not score them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tracefactory.core.model import RequestFailed
from tracefactory.stages.measure.student import MeasureStudent, MeasureStudentParams
from tracefactory.testing import make_trace


async def test_a_row_that_is_not_tried_again_is_not_scored() -> None:
    traces = [make_trace(question=f"What is {n} + 1?") for n in range(3)]
    timeout, refused = (RequestFailed(kind, "no", attempts=2, retryable=True) for kind in ("timeout", "connection"))
    scored: list[str] = []

    async def scores(rendered: dict[str, Any]) -> tuple[dict[str, RequestFailed], int]:
        scored.extend(rendered)
        return dict.fromkeys(rendered, refused), 0

    student = SimpleNamespace(student=SimpleNamespace(render=lambda *text: text, max_tokens=None), scores=scores)
    services: Any = SimpleNamespace(
        keep=lambda name, make, models: student,
        left_failure=lambda stage, row: timeout if (stage, row) == ("fitted", traces[1].id) else None,
    )
    stage: Any = SimpleNamespace(id="fitted", params=MeasureStudentParams(student="pupil"))
    result = await MeasureStudent().run(stage, SimpleNamespace(traces=traces), services)  # type: ignore[arg-type]
    assert scored == [traces[0].id, traces[2].id]
    failures = [(one.decision.reason, one.decision.detail, one.decision.owed) for one in result.judged]
    assert failures == [
        ("connection", str(refused), True),
        ("timeout", str(timeout), True),
        ("connection", str(refused), True),
    ]
