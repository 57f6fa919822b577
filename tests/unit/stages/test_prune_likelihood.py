"""`prune: answer_likelihood`: a student scores text as in training; what it says is in columns, keys and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import SOURCE, THOUGHT, parent_of, project, trace
from tests.unit.students.conftest import gguf
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.core.gpus import gpus_of
from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.engine.identity import identities
from tracefactory.pruning import ScoreItem
from tracefactory.stages.measure import student as measuring
from tracefactory.stages.prune import family
from tracefactory.stages.prune._scorer import StudentScorer
from tracefactory.store.scores import ScoreStore
from tracefactory.students.render import Rendered, RenderError

PUPIL = '  pupil: {use: transformers, model: "packaged:smollm2-135m"}\n'
FILLER = "Bananas are yellow."
FILLED = THOUGHT.replace("And 35", f"{FILLER}\n\nAnd 35")


class Letters:
    """A student with one token for each character; `say` gives the log-probability of a character in a text."""

    max_tokens: int | None = 2000

    def __init__(self, say: Any = lambda text, at: -float(at)) -> None:
        self.say, self.batches = say, list[list[Rendered]]()

    def render(self, question: str, reasoning: str, answer: str) -> Rendered:
        if "unrendered" in question:
            raise RenderError("no_reasoning", "the template opens the thinking")
        turn = (f"<think>\n{reasoning.strip()}\n</think>\n\n" if reasoning else "") + f"{answer}<end>"
        whole = f"{question}\n{turn}"
        starts = np.arange(len(turn), dtype=np.int32)
        return Rendered(
            ids=np.array([ord(sign) for sign in whole], dtype=np.int32),
            first=len(whole) - len(turn),
            stop=len(whole),
            text=turn,
            starts=starts,
            ends=starts + 1,
            body_start=len("<think>\n") if reasoning else 0,
            lead=None,
        )

    async def score(self, items: Sequence[Rendered]) -> list[TokenScores | RequestFailed]:
        self.batches.append(list(items))
        return [self._score(item) for item in items]

    def _score(self, item: Rendered) -> TokenScores | RequestFailed:
        if "lost" in item.text:
            return RequestFailed("server_error", "it is down", attempts=1, retryable=True)
        zeros = np.zeros(len(item.starts), dtype=np.int32)
        return TokenScores(
            token_ids=item.ids[item.first : item.stop],
            starts=item.starts,
            ends=item.ends,
            ranks=zeros + 1,
            logprobs=np.array([self.say(item.text, at) for at in item.starts], dtype=np.float32),
            entropies=zeros.astype(np.float32),
            body_start=item.body_start,
        )


def scorer(student: Any, tmp_path: Path) -> StudentScorer:
    return StudentScorer(measuring.ScoredStudent(student, ScoreStore(tmp_path, "key")))


def asked(reasoning: str, *, question: str = "Q?", since: int = 0) -> ScoreItem:
    given = {"id": "t", "question": question, "before": "It is {", "answer": "42", "after": "}."}
    return ScoreItem(reasoning=reasoning, since=since, **given)


async def test_only_the_tokens_that_are_asked_for_are_scored(tmp_path: Path) -> None:
    student = Letters()
    whole, part, empty = await scorer(student, tmp_path).score([asked("ab cd"), asked("ab cd", since=3), asked("")])
    lead = len("<think>\n")
    assert whole.ends == (1, 2, 3, 4, 5)
    assert whole.logprobs == tuple(-float(lead + at) for at in range(5))
    assert (part.ends, part.logprobs) == ((4, 5), whole.logprobs[3:])
    # The answer, and the bracket that ends it.
    start = len("<think>\nab cd\n</think>\n\nIt is {")
    assert whole.answer == part.answer == (-start, -start - 1, -start - 2)
    assert (empty.ends, empty.answer) == ((), (-7.0, -8.0, -9.0))
    (batch,) = student.batches
    assert [item.supervised for item in batch] == [start + 3 - lead, start - lead, 3]


async def test_what_cannot_be_scored_says_why(tmp_path: Path) -> None:
    student = Letters()
    student.max_tokens = 60
    given = scorer(student, tmp_path)
    items = [asked("ab", question="unrendered"), asked("a" * 100), asked("lost"), asked("ab")]
    assert [one.error for one in await given.score(items)] == ["no_reasoning", "context_length", "server_error", None]
    assert given.failed["t"].kind == "server_error"


def knows(text: str, at: int) -> float:
    """Expect every character after the sentences it follows from, and the answer in every case."""
    return -1.0 if text[at : at + 2] in ("35", "42") and "5 * 7 = 35" not in text[:at] and "<" in text[:at] else 0.0


async def test_a_stage_removes_what_its_student_does_without(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The student is a stub; everything from the pipeline to the stored rows is real."""
    monkeypatch.setattr(measuring, "open_student", lambda spec: None)
    monkeypatch.setattr(measuring, "InProcess", lambda student: Letters(knows))
    monkeypatch.setattr(measuring, "check_template", lambda spec: None)
    monkeypatch.setattr(family, "token_counter", lambda spec: lambda text: len(text.split()))
    stages = SOURCE + "  - {id: cut, prune: answer_likelihood, with: {student: pupil, check: answer}}"
    made = await run_stages(stages, trace(FILLED), more_models=PUPIL)
    (row,), (parent,) = made.traces("cut"), made.traces("checked")
    assert parent_of(row) == parent.id
    assert row.op == "prune:answer_likelihood"
    assert FILLER not in row.reasoning
    assert "Then 5 * 7 = 35." in row.reasoning
    for name in ("prune_answer_logprob", "prune_answer_logprob_parent", "prune_answer_logprob_empty"):
        assert name in row.measures
    assert row.fields["prune_check"] == "answer"
    assert row.measures["prune_calls"] == made.stage("cut").tally.numbers["calls"] <= len(FILLED.split("\n\n")) + 2
    assert row.measures["prune_samples"] == 0
    assert made.paid() == 0
    (note,) = (
        family.Prune("answer_likelihood")
        .facts(
            load_pipeline(tmp_path / "project" / "pipelines" / "t.yaml").stage("cut"), made.stage("cut").tally.numbers
        )
        .notes
    )
    assert "1 traces were pruned" in note


async def test_a_student_that_could_not_be_asked_is_owed(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "open_student", lambda spec: None)
    monkeypatch.setattr(measuring, "InProcess", lambda student: Letters())
    monkeypatch.setattr(family, "token_counter", lambda spec: len)
    stages = SOURCE + "  - {id: cut, prune: answer_likelihood, with: {student: pupil, check: answer}}"
    made = await run_stages(stages, trace(FILLED.replace("Bananas", "A lost banana")), more_models=PUPIL)
    tally = made.stage("cut").tally
    assert (tally.kept, tally.errors, tally.owed) == (0, 1, 1)


@pytest.mark.parametrize(
    ("with_", "message"),
    [
        ("check: answer", "no student; scores need"),
        ("student: fake, check: answer", "'fake' is `use: fake`; scores need `use: transformers` or `vllm`"),
        ("student: pupil, conclude: {model: large}", "'large' has `gpus: 2`, but .* on the workers of 'pupil'"),
        ("student: pupil, check: answer, max_steps: 1", "max_steps"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, with_: str, message: str) -> None:
    file = project(tmp_path, f"  - {{id: cut, prune: answer_likelihood, with: {{{with_}}}}}")
    models = f"models:\n  fake: {{use: fake}}\n{PUPIL}{PUPIL.replace('pupil', 'large').replace('}', ', gpus: 2}')}"
    file.write_text(file.read_text().replace("models: {student: {use: fake}}\n", models))
    with pytest.raises(UserError, match=message):
        load_pipeline(file)


def test_a_student_that_scores_may_conclude_too(tmp_path: Path) -> None:
    file = project(tmp_path, "  - {id: cut, prune: answer_likelihood, with: {student: pupil}}")
    models = f"models:\n{PUPIL.replace('}', ', gpus: 1}')}"
    file.write_text(file.read_text().replace("models: {student: {use: fake}}\n", models))
    (cut,) = [one for one in load_pipeline(file).stages if one.id == "cut"]
    assert gpus_of(cut, load_pipeline(file)) == {"pupil": 1}


def test_it_composes_with_the_check_and_what_decides_is_in_the_key(tmp_path: Path) -> None:
    stage = "  - {id: cut, prune: answer_likelihood, with: {student: pupil, conclude: {model: fake}}}"
    file = project(tmp_path, stage)
    models = f"models:\n  fake: {{use: fake}}\n{PUPIL}"
    file.write_text(file.read_text().replace("models: {student: {use: fake}}\n", models))

    def key(*sets: str) -> str:
        return identities(load_pipeline(file, sets=sets))["cut"].key

    ways = ["max_drop=0.2", "max_drop_after=2", "over=answer", "order=first_first", "max_steps=9", "max_tokens=99"]
    keys = [key(), *(key(f"stages.cut.with.{way}") for way in ways), key("models.pupil.dtype=bfloat16")]
    assert len(set(keys)) == len(keys)
    (cut,) = [one for one in load_pipeline(file).stages if one.id == "cut"]
    assert (cut.params.check, cut.params.conclude.model) == ("conclude", "fake")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
async def test_a_real_student_does_without_bananas_and_not_without_the_rows(run_stages: RunStages, name: str) -> None:
    pytest.importorskip("torch")
    pupil = f"  pupil: {{use: transformers, model: {gguf(name)}}}\n"
    stages = SOURCE + "  - {id: cut, prune: answer_likelihood, with: {student: pupil, check: answer}}"
    (row,) = (await run_stages(stages, trace(FILLED), more_models=pupil)).traces("cut")
    assert parent_of(row)
    assert FILLER not in row.reasoning
    assert "Then 5 * 7 = 35." in row.reasoning
    assert "And 35 + 7 = 42." in row.reasoning or row.reasoning.count("So the answer is 42.")
    assert "prune_answer_logprob_empty" in row.measures  # Qwen knows six times seven without any reasoning
    assert row.measures["prune_answer_logprob"] > row.measures["prune_answer_logprob_parent"] - 0.1
