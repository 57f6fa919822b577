"""A plan tells what another version of a verifier changes about stored verdicts, before a run makes them again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.unit.stages.conftest import Made, RunStages
from tracefactory.cli import app
from tracefactory.config import load_pipeline
from tracefactory.core.rows import Outcome, Problem, Trace, Verdict
from tracefactory.core.stage import RowReader
from tracefactory.core.upgrade import ComparedVerdicts, Upgrade
from tracefactory.engine.former import UNREAD
from tracefactory.engine.plan import PlannedStage, make_plan
from tracefactory.stages import _upgrade
from tracefactory.stages.verify.auto import VerifyAuto
from tracefactory.store.records import read_record, write_record
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import quick_verdict
from tracefactory.verifiers.exact import ExactVerifier
from tracefactory.verifiers.math import MathVerifier, MathVerifierParams

SOURCE = "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: GOLD, verifier: math}}\n"
SAMPLED = "  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 3}}\n"
NOTHING = "  - {id: nothing, filter: [length: {max_characters: 1}]}\n"
CHECKED = "  - {id: checked, verify: auto}\n"
STAGES = SOURCE.replace("GOLD", "a") + SAMPLED + CHECKED
SUMS = "".join(json.dumps({"q": f"What is {n} + {n + 3}?", "a": str(2 * n + 3)}) + "\n" for n in range(12))
TEACHER = {"teacher": {"accuracy": 0.6}}
NEWS = "a number above 20 is not read"


def by_hand(task: VerifyTask) -> bool:
    """Return whether the next version of the verifier leaves an answer to a person."""
    return int(task.problem.answer or 0) > 20


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that raises the version of `math`, which then gives other verdicts on some problems."""
    quick = MathVerifier.quick

    def other(self: MathVerifier, task: VerifyTask, params: MathVerifierParams) -> Verdict | None:
        before = quick(self, task, params)
        if before is None or not by_hand(task):
            return before
        return before.model_copy(update={"outcome": Outcome.UNVERIFIABLE, "method": "too_large"})

    def raised(version: str = "9", quick: Any = other, changes: Mapping[str, str] | None = None) -> None:
        monkeypatch.setattr(MathVerifier, "version", version)
        monkeypatch.setattr(MathVerifier, "changes", {version: NEWS} if changes is None else changes)
        monkeypatch.setattr(MathVerifier, "quick", quick)

    return raised


def file_of(made: Made) -> Path:
    return made.root.parent / "pipelines" / "t.yaml"


def planned(made: Made, stage: str = "checked", *, compare: bool = True, sets: list[str] | None = None) -> PlannedStage:
    loaded = load_pipeline(file_of(made), sets=sets or [])
    (found,) = [one for one in make_plan(loaded, made.root, compare=compare).stages if one.id == stage]
    return found


def upgrade(made: Made, stage: str = "checked") -> Upgrade:
    found = planned(made, stage).upgrade
    assert found is not None
    return found


def folder(made: Made, stage: str) -> Path:
    (found,) = (made.root / "stages").glob(f"{stage}-*")
    return found


def outcomes(made: Made, stage: str = "checked") -> dict[str, Outcome]:
    return {one.id: one.verdict.outcome for one in made.traces(stage) if one.verdict is not None}


async def test_a_plan_announces_what_the_run_then_changes(run_stages: RunStages, next_version: Any) -> None:
    before = await run_stages(STAGES, SUMS, **TEACHER)
    next_version()
    found = planned(before)
    assert found.why == f"versions.math: {_stored_version(before)} -> 9"
    assert found.upgrade is not None
    assert found.upgrade.words == (f"math 9: {NEWS}",)
    verdicts = found.upgrade.verdicts
    assert verdicts is not None
    after = await run_stages(STAGES, SUMS, **TEACHER)
    assert after.paid() == 0
    now, then = outcomes(after), outcomes(before)
    changed = Counter((then[row], now[row]) for row in now if now[row] is not then[row])
    assert len(changed) == 2  # of the right and of the wrong answers
    assert {(one.before, one.after): one.count for one in verdicts.changed} == changed
    assert [one.count for one in verdicts.changed] == sorted(changed.values(), reverse=True)
    assert (verdicts.stored, verdicts.compared, verdicts.needs_process) == (36, 36, 0)
    for one in verdicts.changed:
        assert one.reason == "too_large"
        assert then[one.row] is one.before
        (trace,) = [trace for trace in before.traces("checked") if trace.id == one.row]
        assert one.text in trace.answer_text
        assert f"{one.count} {one.before} -> unverifiable (too_large, e.g. trace {one.row}: '" in str(one)


async def test_a_judge_whose_rules_changed_judges_again(run_stages: RunStages, next_version: Any) -> None:
    """The rules decide first there, so their version is in its key; votes that were paid for are taken."""
    stages = STAGES.replace("verify: auto", "verify: judge, with: {model: teacher}")
    assert stages != STAGES
    before = await run_stages(stages, SUMS, **TEACHER)
    next_version()
    found = upgrade(before)
    assert found.words == (f"math 9: {NEWS}",)
    assert found.verdicts is not None
    assert found.verdicts.changed == ()  # what the rules leave open now is asked, so nothing is known of it
    after = await run_stages(stages, SUMS, **TEACHER)
    assert before.paid() == 36
    assert after.paid() > 0  # votes on what the rules leave open now
    assert not after.stage("checked").cached


def _stored_version(made: Made) -> str:
    identity = read_record(folder(made, "checked") / "identity.json", "", lambda damage: pytest.fail(str(damage)))
    assert identity is not None
    version: str = identity["uses"]["versions"]["math"]
    return version


async def test_the_command_prints_it_in_words_and_as_data(
    run_stages: RunStages, next_version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    monkeypatch.chdir(made.root.parent)
    silent = CliRunner().invoke(app, ["plan", str(file_of(made))]).output
    assert "compared" not in silent
    next_version()
    text = " ".join(CliRunner().invoke(app, ["plan", str(file_of(made))]).output.split())
    assert f"• checked: math 9: {NEWS} • checked: of 36 stored verdicts 36 were compared: " in text
    assert "correct -> unverifiable (too_large, e.g. trace " in text
    data = json.loads(CliRunner().invoke(app, ["plan", str(file_of(made)), "--json"]).output)
    stages = {one["id"]: one["upgrade"] for one in data["stages"]}
    assert stages["problems"] is stages["sampled"] is None
    assert stages["checked"]["words"] == [f"math 9: {NEWS}"]
    assert stages["checked"]["verdicts"]["compared"] == 36
    assert {"before": "correct", "after": "unverifiable", "reason": "too_large"}.items() <= max(
        stages["checked"]["verdicts"]["changed"], key=lambda one: one["before"] == "correct"
    ).items()


async def test_verdicts_that_stay_as_they_are(run_stages: RunStages, next_version: Any) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    next_version(quick=MathVerifier.quick, changes={})
    assert upgrade(made).lines == ("of 36 stored verdicts 36 were compared: no verdict changes",)


async def test_answers_that_need_a_process_are_counted_and_left_out(run_stages: RunStages, next_version: Any) -> None:
    quick = MathVerifier.quick
    made = await run_stages(STAGES, SUMS, **TEACHER)
    next_version(quick=lambda self, task, params: None if by_hand(task) else quick(self, task, params))
    verdicts = upgrade(made).verdicts
    assert verdicts is not None
    assert verdicts.changed == ()
    large = [trace for trace in made.traces("checked") if int(trace.problem.answer or 0) > 20]
    assert verdicts.needs_process == len(large) > 0
    assert verdicts.lines == (
        f"of 36 stored verdicts {36 - len(large)} were compared ({len(large)} need computer algebra or run code): "
        "no verdict changes",
    )
    next_version(quick=lambda self, task, params: None)
    assert upgrade(made).lines[1].endswith("0 were compared (36 need computer algebra or run code): nothing is known")


async def test_a_verifier_that_fails_is_a_verdict_of_its_own(run_stages: RunStages, next_version: Any) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    next_version(quick=lambda self, task, params: 1 / 0)
    verdicts = upgrade(made).verdicts
    assert verdicts is not None
    assert {(one.after, one.reason) for one in verdicts.changed} == {(Outcome.VERIFIER_ERROR, "exception")}
    assert sum(one.count for one in verdicts.changed) == 36


async def test_no_stored_rows(run_stages: RunStages, next_version: Any) -> None:
    both = "  - {id: both, filter: [repetition], from: [checked, sampled]}\n"
    made = await run_stages(SOURCE.replace("GOLD", "a") + SAMPLED + NOTHING + CHECKED + both, SUMS, **TEACHER)
    next_version()
    assert upgrade(made).verdicts == ComparedVerdicts(stored=0, compared=0, needs_process=0)
    assert upgrade(made).lines == (f"math 9: {NEWS}", "no verdict is stored")


async def test_it_stops_at_its_limits(
    run_stages: RunStages, next_version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    next_version(quick=MathVerifier.quick)
    for rows, seen in ((7, 6), (1, 3), (36, 36)):  # whole problems of three samples, and at least one
        monkeypatch.setattr(_upgrade, "COMPARED_ROWS", rows)
        verdicts = upgrade(made).verdicts
        assert verdicts is not None
        assert (verdicts.stored, verdicts.compared) == (36, seen)
        assert (f"({36 - seen} were left out to save time)" in verdicts.lines[0]) == (seen < 36)
    monkeypatch.setattr(_upgrade, "COMPARED_SECONDS", -1.0)
    assert upgrade(made).lines[1] == (
        "of 36 stored verdicts 0 were compared (36 were left out to save time): nothing is known"
    )


async def test_nothing_is_compared_where_no_code_has_changed(
    run_stages: RunStages, next_version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    asked: list[RowReader | None] = []
    upgrade_of = VerifyAuto.upgrade

    def noted(self: VerifyAuto, stage: Any, pipeline: Any, before: Any, rows: RowReader | None) -> Upgrade:
        asked.append(rows)
        return upgrade_of(self, stage, pipeline, before, rows)

    monkeypatch.setattr(VerifyAuto, "upgrade", noted)
    assert planned(made).upgrade is None
    assert planned(made, sets=["stages.checked.with.policy={percent: strict}"]).upgrade is None  # it is to run
    assert asked == []
    next_version()
    loaded = load_pipeline(file_of(made))
    for options in ({"count": False}, {}):  # as before a run, and as of a publication
        (stage,) = [one for one in make_plan(loaded, made.root, **options).stages if one.id == "checked"]
        assert stage.upgrade == Upgrade(words=(f"math 9: {NEWS}",))
    assert asked == [None, None]
    after = await run_stages(STAGES, SUMS, **TEACHER)
    assert planned(after).upgrade is None  # it is cached


async def test_another_version_of_the_operation_is_compared(
    run_stages: RunStages, next_version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    monkeypatch.setattr(VerifyAuto, "version", "2")
    found = planned(made)
    assert found.why == "verify:auto 1 -> verify:auto 2"
    assert found.upgrade is not None
    assert found.upgrade.lines == ("of 36 stored verdicts 36 were compared: no verdict changes",)


async def test_the_former_folder_that_differs_in_versions_alone_comes_first(
    run_stages: RunStages, next_version: Any
) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    before = _stored_version(made)
    strict = STAGES.replace("verify: auto}", "verify: auto, with: {policy: {percent: strict}}}")
    await run_stages(strict, SUMS, **TEACHER)  # newer, and of another pipeline
    next_version()
    await run_stages(STAGES.replace(CHECKED, ""), SUMS, **TEACHER)
    text = file_of(made).read_text()
    file_of(made).write_text(text.replace(SAMPLED, SAMPLED + CHECKED))
    assert planned(made).why == f"versions.math: {before} -> 9"
    file_of(made).write_text(text.replace(SAMPLED, SAMPLED + CHECKED.replace("auto", "consensus")))
    assert planned(made).upgrade is None  # another operation


@pytest.mark.parametrize("harm", ["no judged part", "broken part", "no traces", "no text of another stage"])
async def test_damaged_rows_leave_the_words(run_stages: RunStages, next_version: Any, harm: str) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    judged = sorted(folder(made, "checked").glob("judged-*.parquet"))
    assert len(judged) == 2
    if harm == "no judged part":
        judged[0].unlink()
    elif harm == "broken part":
        judged[1].write_bytes(judged[1].read_bytes()[:-200])
    elif harm == "no traces":
        shutil.rmtree(folder(made, "sampled"))
    else:
        for part in folder(made, "problems").glob("*.parquet"):
            part.unlink()
    next_version()
    assert upgrade(made).lines == (f"math 9: {NEWS}", UNREAD)


async def test_a_stage_that_was_never_finished_has_words_alone(run_stages: RunStages, next_version: Any) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    (folder(made, "checked") / "record.json").unlink()
    next_version()
    assert upgrade(made).lines == (f"math 9: {NEWS}",)
    assert planned(made).why.startswith("versions.math: ")


async def test_what_an_older_layout_stored_is_not_compared(run_stages: RunStages, next_version: Any) -> None:
    made = await run_stages(STAGES, SUMS, **TEACHER)
    path = folder(made, "checked") / "identity.json"
    stored = read_record(path, "", lambda damage: pytest.fail(str(damage)))
    assert stored is not None
    write_record(path, {name: value for name, value in stored.items() if name != "key_version"})
    next_version()
    assert planned(made).upgrade is None
    assert planned(made).why.startswith("stored by an earlier version")
    path.write_text("{")
    assert planned(made).upgrade is None
    assert planned(made).why == "never run"


async def test_votes_are_compared_problem_by_problem(run_stages: RunStages, next_version: Any) -> None:
    vote = "  - {id: voted, verify: consensus, with: {min_samples: 3, min_margin: 0.3}}\n"
    made = await run_stages(SOURCE.replace("GOLD", "null") + SAMPLED + vote, SUMS, **TEACHER)
    quick = MathVerifier.quick

    def unequal(self: MathVerifier, task: VerifyTask, params: MathVerifierParams) -> Verdict | None:
        before = quick(self, task, params)
        if not params.bare or before is None or not by_hand(task):
            return before
        return before.model_copy(update={"outcome": Outcome.INCORRECT})

    next_version(quick=quick)
    assert upgrade(made, "voted").verdicts == ComparedVerdicts(stored=36, compared=36, needs_process=0)
    next_version(quick=unequal)
    verdicts = upgrade(made, "voted").verdicts
    assert verdicts is not None
    after = await run_stages(SOURCE.replace("GOLD", "null") + SAMPLED + vote, SUMS, **TEACHER)
    now, then = outcomes(after, "voted"), outcomes(made, "voted")
    changed = Counter((then[row], now[row]) for row in now if now[row] is not then[row])
    assert {(one.before, one.after): one.count for one in verdicts.changed} == changed
    assert changed


async def test_a_vote_that_needs_a_process_is_left_out_whole(run_stages: RunStages, next_version: Any) -> None:
    vote = "  - {id: voted, verify: consensus}\n"
    both = SOURCE.replace("GOLD", "a") + SOURCE.replace("GOLD", "null").replace("id: problems", "id: open")
    made = await run_stages(both + SAMPLED.replace("chat,", "chat, from: [problems, open],") + vote, SUMS, **TEACHER)
    quick = MathVerifier.quick
    next_version(quick=lambda self, task, params: None if params.bare else quick(self, task, params))
    verdicts = upgrade(made, "voted").verdicts
    assert verdicts is not None
    assert (verdicts.stored, verdicts.changed) == (72, ())
    assert (verdicts.compared, verdicts.needs_process) == (36, 36)  # those without a gold answer vote


async def test_verdicts_without_a_confidence_are_read(run_stages: RunStages, next_version: Any) -> None:
    """Versions before 0.3 stored verdicts with fewer members."""
    made = await run_stages(STAGES, SUMS, **TEACHER)
    then = outcomes(made)
    for part in folder(made, "checked").glob("judged-*.parquet"):
        footer = pl.read_parquet_metadata(part)["tracefactory"]
        frame = pl.read_parquet(part)
        members = [one.name for one in frame.schema["verdict"].fields if one.name != "confidence"]  # type: ignore[attr-defined]
        assert len(members) == 8
        fewer = pl.struct(pl.col("verdict").struct.field(*members)).alias("verdict")
        frame.with_columns(fewer).write_parquet(part, metadata={"tracefactory": footer})
    assert outcomes(made) == then
    assert {one.verdict.confidence for one in made.traces("checked") if one.verdict} == {None}
    next_version(quick=MathVerifier.quick)
    assert upgrade(made).lines[1].endswith("36 were compared: no verdict changes")


def test_words_of_versions_in_between(next_version: Any) -> None:
    def words(before: str, after: str, **changes: str) -> list[str]:
        next_version(version=after, changes={name.strip("v"): text for name, text in changes.items()})
        return list(_upgrade._words({"math": before, "gone": "1"}, {"math": after, "new": "1"}))

    steps = {"v2": "two", "v3": "three", "v10": "ten", "v11": "eleven"}
    assert words("2", "10", **steps) == ["math 3: three", "math 10: ten"]
    assert words("3", "3", **steps) == []
    assert words("10", "3", **steps) == []
    assert words("2+math2", "2+math3", **{"2+math3": "now"}) == ["math 2+math3: now"]
    # The source of a plugin has changed, and perhaps its version.
    assert words("2+0123456789ab", "2+ba9876543210", **steps) == []
    assert words("2+0123456789ab", "3+ba9876543210", **steps) == ["math 3: three"]


def test_verifiers_that_change_alike_share_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (MathVerifier, ExactVerifier):
        monkeypatch.setattr(kind, "changes", {"9": NEWS})
    assert list(_upgrade._words({"math": "8", "exact": "8"}, {"exact": "9", "math": "9"})) == [
        f"exact 9, math 9: {NEWS}"
    ]


def test_a_quick_verdict_is_the_best_for_any_gold_answer(next_version: Any) -> None:
    quick = MathVerifier.quick
    next_version(quick=lambda self, task, params: None if task.problem.answer == "7" else quick(self, task, params))

    def outcome(*golds: str) -> Outcome | None:
        problem = Problem.make(question="?", answer=golds[0], answers=golds[1:], verifier="math")
        found = quick_verdict(VerifyTask(problem=problem, answer_text="\\boxed{5}"))
        return None if found is None else found.outcome

    assert outcome("7") is None
    assert outcome("7", "6") is None
    assert outcome("7", "5") is Outcome.CORRECT
    assert outcome("4", "5") is Outcome.CORRECT
    assert outcome("4", "6") is Outcome.INCORRECT


def test_examples_are_quoted_and_short() -> None:
    def shown(text: str, end: int | None) -> str:
        trace = Trace(id="1", problem=Problem.make(question="?", answer="1"), answer_text=text)
        found = Verdict(outcome=Outcome.CORRECT, method="m", verifier="v", version="1", span_end=end)
        return _upgrade._read_text(trace, found)

    assert shown("First.\nA: 18\nLast.", 12) == "A: 18"
    assert shown("First.\nA: 18 eggs\nLast.", 12) == "A: 18 eggs"
    assert shown("First.\nThe last line.\n\n", None) == "The last line."
    assert shown("", None) == ""
    assert shown("x" * 500 + " 18", 503) == "..." + "x" * 54 + " 18"
    assert shown("A: 18" + " and so on" * 50, 5) == "A: 18"
