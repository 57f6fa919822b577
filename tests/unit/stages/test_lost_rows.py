"""A stage that loses a row, or makes one too many, is a program error and leaves no finished shard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.core.stage import Decided, Result
from tracefactory.stages.sample.chat import SampleChat
from tracefactory.stages.select.best import SelectBest
from tracefactory.stages.verify.auto import VerifyAuto

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 2}}
  - {id: checked, verify: auto}
  - {id: best, select: best, with: {measure: completion_tokens, best: lowest}}
"""
SUMS = "".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(8))


def finished(root: Path, stage: str) -> list[str]:
    return [path.name for path in root.rglob(f"stages/{stage}-*/*.parquet")]


@pytest.mark.parametrize(
    ("op", "changed", "stage", "message"),
    [
        (VerifyAuto, lambda result: replace(result, judged=result.judged[1:]), "checked", "judged: rows were lost"),
        (VerifyAuto, lambda result: replace(result, judged=[*result.judged] * 2), "checked", "judged: rows were lost"),
        (SampleChat, lambda result: replace(result, made=result.made[1:]), "sampled", "rows made from"),
    ],
)
async def test_a_stage_that_does_not_account_for_every_row_is_stopped(
    run_stages: RunStages,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    op: Any,
    changed: Any,
    stage: str,
    message: str,
) -> None:
    real = op.run

    async def run(self: Any, *given: Any) -> Result:
        return changed(await real(self, *given))

    monkeypatch.setattr(op, "run", run)
    with pytest.raises(AssertionError, match=message):
        await run_stages(STAGES, SUMS, teacher={})
    assert finished(tmp_path, stage) == []


async def test_decisions_about_other_rows_are_refused(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = SelectBest.decide

    def decide(self: SelectBest, *given: Any) -> Decided:
        decided = real(self, *given)
        return replace(decided, frame=decided.frame.reverse())

    monkeypatch.setattr(SelectBest, "decide", decide)
    with pytest.raises(AssertionError, match="do not match its input rows: rows were lost"):
        await run_stages(STAGES, SUMS, teacher={})
    assert finished(tmp_path, "best") == []
