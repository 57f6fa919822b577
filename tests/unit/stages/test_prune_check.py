"""`check: conclude` in prune stages: on by default, paid once, reported, and never taken for what it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import SOURCE, project, trace
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.core.stage import stage_of
from tracefactory.engine.plan import make_plan

CUT = "  - {{id: cut, prune: after_answer, with: {{conclude: {{model: student{0}}}}}}}"
DERIVES = {"replies": {"35 + 7": "It is \\boxed{42}."}, "reply": "\\boxed{unknown}"}


def notes(tmp_path: Path, numbers: Mapping[str, float]) -> Sequence[str]:
    """Return what the stage `cut` of the pipeline that was run tells the card."""
    stage = load_pipeline(tmp_path / "project" / "pipelines" / "t.yaml").stage("cut")
    return stage_of(stage).facts(stage, numbers).notes


@pytest.mark.parametrize("pruner", ["after_answer", "verification_steps", "rewrite"])
def test_a_pruner_that_copies_the_answer_text_needs_a_student_or_a_word(tmp_path: Path, pruner: str) -> None:
    asks = "model: student, " if pruner == "rewrite" else ""
    stage = f"  - {{id: cut, prune: {pruner}, with: {{{asks}granularity: step}}}}"
    with pytest.raises(UserError, match="no student checks that the pruned reasoning leads to the answer"):
        load_pipeline(project(tmp_path, stage))
    load_pipeline(project(tmp_path, stage.replace("granularity: step", "check: answer")))
    load_pipeline(project(tmp_path, stage.replace("granularity: step", "conclude: {model: student}")))


@pytest.mark.parametrize("pruner", ["binary_cut", "sufficient_prefix", "truncate"])
def test_a_pruner_that_has_the_student_conclude_needs_no_check(tmp_path: Path, pruner: str) -> None:
    (cut,) = load_pipeline(project(tmp_path, f"  - {{id: cut, prune: {pruner}, with: {{model: student}}}}")).stages[2:]
    assert cut.params.check == "answer"
    checked = f"  - {{id: cut, prune: {pruner}, with: {{model: student, check: conclude}}}}"
    (cut,) = load_pipeline(project(tmp_path, checked)).stages[2:]
    assert cut.params.check == "conclude"


def test_a_check_without_an_effect_is_refused(tmp_path: Path) -> None:
    stage = "  - {id: cut, prune: after_answer, with: {check: answer, conclude: {model: student}}}"
    with pytest.raises(UserError, match="conclude: has no effect with `check: answer`"):
        load_pipeline(project(tmp_path, stage))


async def test_what_was_checked_is_in_columns_counts_and_on_the_card(run_stages: RunStages, tmp_path: Path) -> None:
    made = await run_stages(SOURCE + CUT.format(", controls: [empty, shuffled]"), trace(), student=DERIVES)
    (row,) = made.traces("cut")
    assert row.parents
    assert row.fields["prune_check"] == "concluded"
    assert (row.measures["prune_concluded"], row.measures["prune_control_empty"]) == (1.0, 0.0)
    assert row.measures["prune_control_shuffled"] == 1.0  # the sentence is there in any order
    numbers = made.stage("cut").tally.numbers
    assert [numbers[name] for name in ("checked", "concluded", "concluded_known")] == [1, 1, 0]
    assert numbers["requests"] == 12
    (note,) = notes(tmp_path, numbers)
    assert "Given the reasoning of 1 candidates without the sentences that state the answer" in note
    assert "Without any reasoning it did so for 0 of these" in note


async def test_a_student_that_knows_the_answer_is_reported(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + CUT.format(""), trace(), student={"reply": "It is \\boxed{42}."})
    (row,) = made.traces("cut")
    assert row.fields["prune_check"] == "known"
    assert made.stage("cut").tally.numbers["concluded_known"] == 1


async def test_a_reasoning_from_which_the_student_does_not_conclude_is_not_cut(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + CUT.format(""), trace(), student={"reply": "It is \\boxed{41}."})
    (row,), (parent,) = made.traces("cut"), made.traces("checked")
    assert row.reasoning == parent.reasoning
    numbers = made.stage("cut").tally.numbers
    assert (numbers["unchanged_not_concluded"], numbers["checked"], numbers["concluded"]) == (1, 1, 0)
    assert row.measures["prune_concluded"] == 0


async def test_a_student_that_could_not_be_asked_is_owed(run_stages: RunStages) -> None:
    fails = {**DERIVES, "rate_500": 1.0, "max_faults": 99}
    once = CUT.format(", samples: 1, valid: 1, controls: []")
    made = await run_stages(SOURCE + once, trace(), student=fails)
    tally = made.stage("cut").tally
    assert (tally.kept, tally.errors, tally.owed) == (0, 1, 1)
    again = await run_stages(SOURCE + once, trace(), student=DERIVES)
    assert [bool(row.parents) for row in again.traces("cut")] == [True]


async def test_without_a_check_the_rows_and_the_card_say_so(run_stages: RunStages, tmp_path: Path) -> None:
    made = await run_stages(SOURCE + "  - {id: cut, prune: after_answer, with: {check: answer}}", trace())
    (row,) = made.traces("cut")
    assert row.fields["prune_check"] == "answer"
    (note,) = notes(tmp_path, made.stage("cut").tally.numbers)
    assert "not whether their reasoning leads to the answer" in note


async def test_a_plan_counts_the_check(run_stages: RunStages, tmp_path: Path) -> None:
    fake = "  student: {use: fake, price: {input: 0, output: 1.0}}\n"
    await run_stages(SOURCE, trace() + trace(answer_text="So \\boxed{42}."), more_models=fake)
    file = tmp_path / "project" / "pipelines" / "t.yaml"
    file.write_text(file.read_text().replace("stages:\n" + SOURCE, "stages:\n" + SOURCE + CUT.format("") + "\n"))
    loaded = load_pipeline(file)
    (cut,) = [one for one in make_plan(loaded, loaded.project.state_dir).stages if one.id == "cut"]
    assert cut.to_pay.requests == 2 * 4 + 4  # two traces, and the control of their problem


async def test_what_the_pruned_reasoning_states_is_read_again(run_stages: RunStages, tmp_path: Path) -> None:
    """By the real verifier, which accepts "35 + 7" for 42: the trace is cut where 42 stands."""
    early = "Take 6 rows of 7.\n\nSo the total is 35 + 7.\n\nNow add them.\n\nSo the total is 42.\n\nSell them by 2."
    stage = "  - {id: cut, prune: after_answer, with: {evidence: result, check: answer}}"
    made = await run_stages(SOURCE + stage, trace(early) + trace(early.replace("is 42", "are many")))
    (cut,) = [row for row in made.traces("cut") if row.parents]
    assert cut.reasoning.endswith("So the total is 42.")
    assert cut.fields["prune_states"] == "right"
    numbers = made.stage("cut").tally.numbers
    assert (numbers["states_answer"], numbers["unchanged_answer_not_stated"]) == (1, 1)
    assert "the reasoning of 1 of them states the right answer itself" in notes(tmp_path, numbers)[0]


async def test_a_beginning_that_states_another_answer_is_not_kept(run_stages: RunStages) -> None:
    """The student concludes correctly from it, and would be taught to answer against its own reasoning."""
    thought = "Take 6 rows of 7.\n\nSo the answer is 41.\n\nNo, I forgot one: 6 * 7 = 42.\n\nSo the answer is 42."
    stage = "  - {id: cut, prune: truncate, with: {model: student}}"
    made = await run_stages(SOURCE + stage, trace(thought), student={"reply": "It is \\boxed{42}."})
    (row,) = made.traces("cut")
    assert not row.parents
    numbers = made.stage("cut").tally.numbers
    assert numbers["unchanged_reasoning_states_another_answer"] == 1
    assert made.judged("cut")["prune_states"].to_list() == ["wrong"]


@pytest.mark.parametrize("pruner", ["verification_steps", "after_answer"])
async def test_the_card_says_what_a_pruner_does_not_show(run_stages: RunStages, tmp_path: Path, pruner: str) -> None:
    made = await run_stages(SOURCE + f"  - {{id: cut, prune: {pruner}, with: {{check: answer}}}}", trace())
    (note,) = notes(tmp_path, made.stage("cut").tally.numbers)
    assert ("which does not show that the answer can do without them" in note) == (pruner == "verification_steps")


def test_a_plan_tells_in_words_what_a_version_cuts_otherwise(tmp_path: Path) -> None:
    stage = load_pipeline(project(tmp_path, "  - {id: cut, prune: after_answer, with: {check: answer}}")).stage("cut")
    op = stage_of(stage)

    def words(version: str, pruner: str) -> Sequence[str]:
        before = {"version": version, "uses": {"versions": {"pruner": pruner}}}
        upgrade = op.upgrade(stage, stage.params, before, None)  # type: ignore[arg-type]  # the pipeline is not asked
        return () if upgrade is None else upgrade.words

    (checked, cut) = words("5", "1")
    assert "the pruned reasoning states is read again" in checked
    assert "the answer has to stand written" in cut
    assert words("6", "1") == (cut,)
    assert words("6", "2") == words("6", "another") == ()
