"""Prune stages that go by a student's scores: the stored ones of the text itself, from a measure stage above."""

from __future__ import annotations

import json
from binascii import crc32
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.stages.conftest import ROOT, RunStages
from tests.unit.stages.test_prune import SOURCE, THOUGHT, parent_of, project, trace
from tests.unit.students.conftest import gguf
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, Problem, Verdict
from tracefactory.core.token_scores import TokenScores
from tracefactory.pruners.low_information import LowInformation
from tracefactory.pruning import PruneItem, Tools
from tracefactory.stages.measure import student as measuring
from tracefactory.stages.prune import family
from tracefactory.stages.prune._student import with_scores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.render import Rendered

PUPIL = '  pupil: {use: transformers, model: "packaged:smollm2-135m"}\n'


def scores(text: str, surprisal: Callable[[str], float]) -> TokenScores:
    """Score a text whose tokens are its lines; the turn begins with the tag of the thinking."""
    lead = "<think>\n"
    ends = [len(lead) + at + 1 for at, sign in enumerate(text) if sign == "\n"] + [len(lead) + len(text)]
    starts = [len(lead), *ends[:-1]]
    spelled = [(lead + text)[start:end] for start, end in zip(starts, ends, strict=True)]
    count = np.ones(len(ends), dtype=np.int32)
    return TokenScores(
        token_ids=np.array([crc32(line.encode()) >> 1 for line in spelled], dtype=np.int32),
        starts=np.array(starts, dtype=np.int32),
        ends=np.array(ends, dtype=np.int32),
        ranks=count,
        logprobs=np.array([-surprisal(line) for line in spelled], dtype=np.float32),
        entropies=count.astype(np.float32),
        body_start=len(lead),
    )


class LineRenderer:
    """Writes a trace as `scores` takes it to be written: one token a line, told apart by what the line says."""

    def render(self, question: str, reasoning: str, answer_text: str) -> Rendered:
        known = scores(reasoning, lambda line: 0.0)
        ids, starts, ends = known.token_ids, known.starts, known.ends
        return Rendered(
            ids=ids, first=0, stop=len(ids), text=reasoning, starts=starts, ends=ends, body_start=8, lead=None
        )


async def test_steps_that_say_little_go_by_the_stored_scores_of_their_own_text(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE, trace() + trace(THOUGHT.replace("Take", "We take")))
    scored, other = (PruneItem.of(row) for row in made.traces("checked"))
    thought = scored.trace.reasoning
    store = ScoreStore(made.root, "key")
    store.put({scored.trace.id: scores("Something\nelse.", lambda line: 9.0)})
    assert with_scores([scored], store, LineRenderer())[0].scores is None
    store.put({scored.trace.id: scores(thought, lambda line: 0.1 if line.startswith("And") else 2.0)})
    one, two = with_scores([scored, other], store, LineRenderer())
    assert two.scores is None
    assert one.scores is not None
    assert min(one.scores.surprisal) == one.scores.surprisal[2]

    async def verify(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        raise AssertionError("scores are all it goes by")

    (result,) = await LowInformation(drop=0.2).prune([one], Tools(verify=verify))
    assert result.reasoning == thought.replace("And 35 + 7 = 42.\n\n", "")


# The stub scores a text without the answer, which the default `over: text` looks for.
MEASURED = SOURCE + "  - {id: scored, measure: student, with: {student: pupil, over: all}}\n"


async def test_a_stage_prunes_by_what_a_measure_stage_stored(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is a stub that is sure of one step; everything between the two stages is real."""

    class Stub(LineRenderer):
        max_tokens = None

        async def score(self, items: Sequence[Rendered]) -> list[TokenScores]:
            return [scores(item.text, lambda line: 0.1 if line.startswith("Let me check") else 2.0) for item in items]

    await run_stages(SOURCE, trace())
    stub = Stub()
    monkeypatch.setattr(measuring, "open_student", lambda spec: None)
    monkeypatch.setattr(measuring, "InProcess", lambda student: stub)
    monkeypatch.setattr(measuring, "check_template", lambda spec: None)
    monkeypatch.setattr(family, "renderer", lambda spec: stub)
    monkeypatch.setattr(family, "token_counter", lambda spec: lambda text: len(text.split()))
    stages = MEASURED + "  - {id: low, prune: low_information, with: {student: pupil, drop: 0.3, check: answer}}"
    (row,) = (await run_stages(stages, trace(), more_models=PUPIL)).traces("low")
    assert row.reasoning == THOUGHT.replace("Let me check: 42 / 6 = 7, which fits.\n\n", "")
    assert row.op == "prune:low_information"
    assert row.measures["prune_tokens_saved"] == 10
    # What was measured of its parent's text is not of this text; the pass rate of its problem is.
    assert not [name for name in row.measures if name.startswith("pupil/")]
    assert row.measures["pass_rate"] == 1.0
    assert row.verdict is not None
    assert row.verdict.outcome is Outcome.CORRECT


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
async def test_real_students_say_which_steps_say_little(run_stages: RunStages, name: str) -> None:
    pytest.importorskip("torch")
    pupil = f"  pupil: {{use: transformers, model: {gguf(name)}}}\n"
    output = "And 35 + 7 = 42."
    said_again = THOUGHT.replace(output, f"{output}\n\n{output}")
    given = "{{student: pupil, check: answer, drop: {1}, score: {2}}}"
    low = f"  - {{{{id: {{0}}, prune: low_information, from: scored, with: {given}}}}}\n"
    ways = {"by_mean": (0.3, "surprisal"), "by_first": (0.3, "first_surprisal"), "by_sum": (0.5, "entropy")}
    stages = MEASURED + "".join(low.format(way, *with_) for way, with_ in ways.items())
    made = await run_stages(stages, trace() + trace(said_again), more_models=pupil)
    parents = {row.id: row for row in made.traces("scored")}
    for way, (drop, _) in ways.items():
        found = made.traces(way)
        assert len(found) == 2
        for row in found:
            if parent_of(row) is None:  # what the student expects most is what the conclusion stands on
                assert json.loads(row.derivation or "")["fallback"] == "undefined_value"
                assert row.reasoning in (THOUGHT, said_again)
                continue
            whole = parents[parent_of(row) or ""]
            lost = len(whole.reasoning) - len(row.reasoning)
            assert 0 < row.measures["prune_tokens_saved"] <= drop * whole.measures["pupil/tokens"]
            assert lost > 0
            assert row.reasoning.endswith("So the answer is 42.")
    # What was said before is what a student expects most.
    pruned = [row for row in made.traces("by_mean") if parent_of(row)]
    (repeats,) = [row for row in pruned if parents[parent_of(row) or ""].reasoning == said_again]
    assert repeats.reasoning.count(output) < 2


def test_scores_must_be_measured_above_and_of_the_traces_themselves(tmp_path: Path) -> None:
    model = 'models: {student: {use: transformers, model: "packaged:smollm2-135m"}}'
    low = "  - {id: low, prune: low_information, with: {student: student, check: answer}}"
    measured = "  - {id: scored, measure: student, with: {student: student}}\n"
    for stages, right in (
        (measured + low, True),
        (measured + "  - {id: clean, filter: repetition}\n" + low, True),
        (low, False),
        (measured + "  - {id: cut, prune: after_answer}\n" + low, False),
        (measured + low.replace("low_information,", "low_information, from: checked,"), False),
    ):
        file = project(tmp_path, stages)
        file.write_text(file.read_text().replace("models: {student: {use: fake}}", model))
        (tmp_path / "filters").mkdir(exist_ok=True)
        (tmp_path / "filters" / "repetition.py").write_text((ROOT / "filters" / "repetition.py").read_text())
        if right:
            load_pipeline(file)
        else:
            with pytest.raises(UserError, match="'student' is not measured above"):
                load_pipeline(file)


def test_a_served_student_has_no_entropies_to_go_by(tmp_path: Path) -> None:
    measured = "  - {id: scored, measure: student, with: {student: student}}\n"
    low = "  - {id: low, prune: low_information, with: {student: student, check: answer, score: entropy}}"
    file = project(tmp_path, measured + low)
    served = "models: {student: {use: vllm, model: org/name, revision: 0123456789abcdef}}"
    file.write_text(file.read_text().replace("models: {student: {use: fake}}", served))
    with pytest.raises(UserError, match="tells no entropies"):
        load_pipeline(file)
