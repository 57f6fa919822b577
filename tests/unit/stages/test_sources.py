"""How a source becomes a stage: sorted shards, however much of it fits in memory."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import line
from tracefactory.core.errors import RunError
from tracefactory.engine import sources

STAGES = "  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}\n"
LINES = "".join(line(f"It is {n % 7}.", str(n % 7), f"Which number is {n // 3}?") for n in range(600))


async def test_what_does_not_fit_in_memory_is_sorted_on_disk(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await run_stages(STAGES, LINES)
    expected = held.traces("raw")
    assert len(expected) == 600
    assert [(one.problem_id, one.id) for one in expected] == sorted((one.problem_id, one.id) for one in expected)
    shutil.rmtree(held.root / "stages")
    spilled: list[str] = []
    real = sources.pa.ipc.new_file
    monkeypatch.setattr(sources, "_BATCH_ROWS", 50)
    monkeypatch.setattr(sources, "_MEMORY_BYTES", 20_000)
    monkeypatch.setattr(sources.pa.ipc, "new_file", lambda path, schema: (spilled.append(path), real(path, schema))[1])
    made = await run_stages(STAGES, LINES)
    assert len(spilled) > 3
    assert made.traces("raw") == expected
    assert made.stage("raw").digest == held.stage("raw").digest
    assert not [name for name in os.listdir(made.stage("raw").rows(made.root).folder.path) if name.startswith(".tmp")]


async def test_a_source_of_traces_without_a_single_usable_row_says_why(run_stages: RunStages) -> None:
    more = "  - {id: checked, verify: auto}\n  - {id: right, filter: verdict}\n"
    message = r"raw keeps none of its 3 rows, so nothing reaches right\. Reasons: no_response 3\."
    with pytest.raises(RunError, match=message):
        await run_stages(STAGES + more, line("", "1", "Which number is 1?") * 3)


async def test_a_question_with_two_answers_is_not_a_duplicate(run_stages: RunStages) -> None:
    rows = [("1 + 1?", "2"), ("1 + 1?", "2.0"), ("1 +  1?", "3"), ("2 + 2?", "4"), ("2 + 2?", "1/0")]
    text = "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows)
    made = await run_stages("  - {id: problems, source: files, with: {paths: problems.jsonl}}\n", text)
    tally = made.stage("problems").tally
    assert (tally.kept, tally.reasons) == (2, {"conflicting_answers": 2, "duplicate": 1})
    details = [one for one in made.judged("problems")["detail"].to_list() if one]
    assert any("has the same question and another answer than '3'" in one for one in details)
