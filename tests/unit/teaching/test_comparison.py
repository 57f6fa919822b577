"""A whole comparison with a training and a server that are faked: what is asked, stored, compared and refused."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from tests.unit.teaching.conftest import row
from tests.unit.teaching.test_datasets import release
from tracefactory.config import load_pipeline
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.core.pipeline import Pipeline
from tracefactory.models.fake import FakeSpec
from tracefactory.teaching import students
from tracefactory.teaching.comparison import Comparison
from tracefactory.teaching.correlating import correlations, stored_results, table_of
from tracefactory.teaching.job import TrainingJob
from tracefactory.teaching.planning import plan_of
from tracefactory.teaching.releases import comparison_file
from tracefactory.teaching.report import card_line, tables
from tracefactory.teaching.result import Result
from tracefactory.teaching.storing import store
from tracefactory.testing import unwatched

QUESTIONS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(30))
STAGES = [
    {"id": "questions", "source": "files", "with": {"paths": "questions.jsonl"}},
    {"id": "answers", "sample": "chat", "with": {"model": "taught", "prompt": "question", "max_tokens": 512}},
    {"id": "checked", "verify": "auto"},
]
TEACH = {
    "student": "student",
    "answers": "taught",
    "arms": {"good": {"release": "out/good/1"}, "bad": {"release": "out/bad/1"}},
    "controls": [],
    "tokens": 50,
    "seeds": 2,
    "development": 5,
    "training": {"learning_rates": [1e-3, 1e-2]},
}


class _Record:
    """What a training leaves, as far as it is stored."""

    tokens, seconds = 50, 1.0

    def __init__(self, job: TrainingJob) -> None:
        self.job = job

    def model_dump(self, include: set[str]) -> dict[str, Any]:
        return {"seconds": 1.0, "steps": 2, "tokens": 50, "mask": ("in the loss 1 tokens",), "versions": {"trl": "1"}}


class Trainings:
    """Trainings that write how accurate the student is: by its dataset and its learning rate."""

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def __call__(self, job: TrainingJob, root: Path, progress: object) -> Any:
        self.jobs.append(job)
        folder = job.folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        good = all(name.startswith("good") for name in pq.read_table(job.rows)["id"].to_pylist())
        accuracy = (0.9 if good else 0.3) - (0.3 if job.arguments.learning_rate > 5e-3 else 0)
        (folder / "model").write_text(json.dumps({"accuracy": accuracy, "seed": job.seed}))
        return type("Trained", (), {"model": folder / "model", "record": _Record(job)})()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint) -> Trainings:
    """Serve trained students by fake teachers whose script is their weights."""
    made = Trainings()
    monkeypatch.setattr(students, "train", made)
    monkeypatch.setattr(FakeSpec, "takes_weights", "folder")
    monkeypatch.setattr(FakeSpec, "identity", lambda self, environment=None: {"model": self.model})
    plain = FakeSpec.endpoint

    def endpoint(self: FakeSpec, environment: Any) -> Any:
        weights = Path(self.model)
        script = json.loads(weights.read_text()) if weights.is_file() else {"accuracy": 0.2}
        return plain(self.model_copy(update={"script": type(self.script)(**script)}), environment)

    monkeypatch.setattr(FakeSpec, "endpoint", endpoint)
    return made


def pipeline_of(root: Path, tiny: Checkpoint, **changed: Any) -> Pipeline:
    (root / "pipelines").mkdir(exist_ok=True)
    (root / "prompts").mkdir(exist_ok=True)
    (root / "prompts/question.md").write_text("---\nstyle: short\n---\n{{ question }}\n")
    (root / "questions.jsonl").write_text(QUESTIONS)
    for name in ("good", "bad"):
        if not (root / "out" / name).exists():
            rows = [replace(row(n, f"{name} " * (1 + n % 3)), id=f"{name}{n}") for n in range(9)]
            release(root / "out" / name / "1", rows, worth=len(name))
    models = {"student": {"use": "transformers", "model": tiny.model}, "taught": {"use": "fake"}}
    file = root / "pipelines" / "teach.yaml"
    content = {"name": "which", "version": "1", "models": models, "stages": STAGES, "run": {"executor": "inline"}}
    file.write_text(yaml.safe_dump({**content, "teach": {**TEACH, **changed}}, sort_keys=False))
    return load_pipeline(file)


@pytest.fixture
def pipeline(tmp_path: Path, tiny: Checkpoint, trainings: Trainings) -> Pipeline:
    return pipeline_of(tmp_path, tiny)


def by_name(result: Result) -> Mapping[str, Any]:
    return {one.name: one for one in result.datasets}


def test_the_better_dataset_is_found_and_nothing_is_done_twice(
    pipeline: Pipeline, trainings: Trainings, tmp_path: Path
) -> None:
    output: list[str] = []
    result = Comparison(pipeline, unwatched, output.append)()
    found = by_name(result)
    assert list(found) == ["untouched", "good", "bad"]
    assert result.baseline == "good"
    assert found["good"].summary.mean > 0.8 > found["bad"].summary.mean
    assert found["bad"].difference.separable == "worse"
    assert found["bad"].difference.seed_interval is not None
    assert found["good"].learning_rate == 1e-3
    assert found["good"].rates["0.001"] > found["good"].rates["0.01"]
    assert (result.questions, result.development) == (25, 5)
    assert found["good"].summary.questions == 25
    assert found["good"].taken.tokens >= 50
    assert len({job.key() for job in trainings.jobs}) == 6  # two rates and one more seed of two datasets
    assert any("in the loss" in text for text in output)
    assert sum(student.requests for one in result.datasets for student in one.students) > 0
    trainings.jobs.clear()
    for folder in (pipeline.project.state_dir / "teaching").glob("*/model"):
        folder.unlink()  # weights are not needed once the answers are stored
    again = Comparison(pipeline, unwatched, output.append)()
    assert trainings.jobs == []
    assert sum(student.requests for one in again.datasets for student in one.students) == 0
    assert all(student.reused for one in again.datasets for student in one.students)
    assert [one.summary for one in again.datasets] == [one.summary for one in result.datasets]


def test_a_plan_counts_each_training_and_answer_once(
    pipeline: Pipeline, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    plain = students.write_plan

    def write_plan(*arguments: Any) -> Any:
        file, contents = plain(*arguments)
        written.append(contents)
        return file, contents

    monkeypatch.setattr(students, "write_plan", write_plan)
    root = pipeline.project.state_dir / "teaching"
    plan = plan_of(Comparison(pipeline, unwatched, lambda text: None))
    assert [pq.read_metadata(job.rows).num_rows for job in trainings.jobs] == [9]  # 3 steps of 8 rows, of 9 rows
    assert (plan.trainings, plan.rates, plan.questions, plan.development) == (6, 2, 25, 5)
    assert plan.loss_tokens_per_s == 50
    assert "6 trainings: 2 datasets x 2 seeds, and 2 more" in plan.lines(pipeline.teach)[0]
    assert plan.bytes == 6 * sum(file.stat().st_size for file in trainings.jobs[0].folder(root).iterdir())
    written.clear()
    trainings.jobs.clear()
    result = Comparison(pipeline, unwatched, lambda text: None)()
    assert len(written) == len(set(written)) == 4  # two datasets and two seeds, whatever the learning rate
    assert len({job.key() for job in trainings.jobs}) == plan.trainings
    taken = {one.name: one.taken.tokens for one in result.datasets if one.taken is not None}
    assert plan.tokens == 3 * sum(taken.values())
    answers = [json.loads(file.read_text()) for file in (root / "answers").iterdir()]
    assert sum(one["requests"] for one in answers) == plan.answers
    assert {job.key() for job in trainings.jobs} < {one["student"] for one in answers}


def test_a_question_in_a_training_row_is_refused_before_anything_is_trained(
    tmp_path: Path, tiny: Checkpoint, trainings: Trainings
) -> None:
    leaked = row(1)
    before = ({"role": "user", "content": "what   IS 3 + 1"},)
    release(tmp_path / "out/good/1", [row(0), leaked, type(leaked)("x", "p", "short", before, leaked.last)])
    pipeline = pipeline_of(tmp_path, tiny)
    with pytest.raises(UserError, match=r"good: 1 of the 30 questions are in its training rows \('What is 3 \+ 1\?'\)"):
        Comparison(pipeline, unwatched, lambda text: None)()
    assert trainings.jobs == []
    result = Comparison(pipeline_of(tmp_path, tiny, leaks="drop", seeds=1), unwatched, lambda text: None)()
    assert (result.leaked, result.questions) == (1, 25)  # it is one of the development
    assert sum(one.marks.answers for one in result.datasets[0].students) == 25 * 4
    asked = [({"role": "user", "content": f"What is {n} + 1?"},) for n in range(30)]
    many = [replace(leaked, id=f"x{n}", problem_id=f"p{n}", before=before) for n, before in enumerate(asked)]
    release(tmp_path / "all/1", many)
    with pytest.raises(UserError, match="no question is left"):
        Comparison(
            pipeline_of(tmp_path, tiny, leaks="drop", arms={"all": {"release": "all/1"}}), unwatched, lambda text: None
        )()


def test_the_result_is_stored_shown_and_ranked(tmp_path: Path, tiny: Checkpoint, trainings: Trainings) -> None:
    pipeline = pipeline_of(tmp_path, tiny, development=0, training={"learning_rates": [1e-3]})
    result = Comparison(pipeline, unwatched, lambda text: None)()
    told = store(result, pipeline)
    assert "did not keep what its card is made from" in told[1]
    assert [one.name for one in stored_results(tmp_path / "out")] == ["which"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables(result), highlight=False)
    shown = console.export_text()
    assert "bad is worse than good" in shown
    assert "baseline" in shown
    assert max(map(len, shown.splitlines())) <= 80
    wide = result.model_copy(
        update={"datasets": tuple(one.model_copy(update={"name": f"name_of_{one.name}"}) for one in result.datasets)}
    )
    console.print(tables(wide), highlight=False)
    assert re.search(r"^ name_of_good .* 100\.0 +\d+ *$", console.export_text(), re.MULTILINE)  # the tokens, too
    line = card_line(result, "content of 1")
    assert [one.this for one in line.datasets] == [False, True, True]  # both releases are named 1 here
    assert "worse than good" in line.datasets[2].against
    third = result.model_copy(update={"version": "2"})
    (worth,) = [one for one in correlations([result, third]) if one.measure == "worth"]
    assert worth.correlation.n == 4
    assert worth.correlation.rho == pytest.approx(1.0)
    assert worth.comparisons == 2
    assert correlations([result]) == []  # two datasets rank nothing
    Console(width=80, file=io.StringIO()).print(table_of(correlations([result, third])))
    (tmp_path / "out/which/1/teach.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        stored_results(tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": "taught"}, "'taught' is no `use: transformers` model"),
        ({"answers": "student"}, "no stage asks 'student'"),
        ({"answers": "nobody"}, "'nobody' is no `use: transformers`, `use: local` or `use: vllm` model"),
        ({"rows": 5}, "the budget is one of tokens, rows and problems"),
        ({"tokens": None}, "the budget is one of tokens, rows and problems"),
        ({"tokens": "2X"}, "tokens"),
        ({"arms": {}}, "arms"),
        ({"arms": {"a": {}}}, "name one of release, truncate, random and shuffle"),
        ({"arms": {"untouched": {"release": "x"}}}, "untouched is made anyway"),
        ({"arms": {"a": {"shuffle": "b"}, "b": {"shuffle": "a"}}}, "are made from each other"),
        ({"arms": {"a": {"release": "x"}, "b": {"truncate": "c", "share": 0.5}}}, "there is no dataset c"),
        ({"arms": {"a": {"release": "x"}, "b": {"truncate": "a"}}}, "truncate needs share, or like"),
        ({"baseline": "other"}, "baseline: there is no dataset other"),
        ({"development": 0}, "several learning_rates need development questions"),
        ({"training": {"rows_per_step": 8, "rows_at_once": 3, "learning_rates": [1e-3]}}, "must be a multiple"),
        ({"seeds": 0}, "seeds"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_mistake_in_the_section_is_told_at_its_file_and_line(
    tmp_path: Path, tiny: Checkpoint, trainings: Trainings, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        pipeline_of(tmp_path, tiny, **changed)
    (mistake,) = [one for one in raised.value.mistakes if message in str(one)]
    assert mistake.file is not None
    assert mistake.line is not None


def test_a_pipeline_without_the_section_compares_nothing(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="no section `teach:`"):
        Comparison(pipeline.model_copy(update={"teach": None}), unwatched, lambda text: None)


def test_releases_on_the_command_line_become_a_pipeline_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("pipelines", "prompts", "filters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prompts/question.md").write_text("---\nstyle: short\n---\n{{ question }}\n")
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    release(tmp_path / "out/good/1", [row(n) for n in range(3)])
    release(tmp_path / "out/bad/1", [row(n) for n in range(3)])
    monkeypatch.chdir(tmp_path)
    named = {"student": "packaged:smollm2-135m", "tokens": "2k", "seeds": 2, "questions": "questions.jsonl"}
    given = ["out/good/1", "out/bad/1:messages", "org/sums@2"]
    file = comparison_file(given, **named)
    assert file == comparison_file(given, **named)  # the second time it is there already
    loaded = load_pipeline(file)
    assert loaded.teach is not None
    assert [(name, one.use) for name, one in loaded.models.items()] == [
        ("student", "transformers"),
        ("taught", "transformers"),
    ]
    assert (loaded.teach.tokens, loaded.teach.seeds) == (2000, 2)
    assert [(one.release, one.view) for one in loaded.teach.arms.values()] == [
        ("out/good/1", ""),
        ("out/bad/1", "messages"),
        ("org/sums@2", ""),
    ]
    with pytest.raises(UserError, match="compares something else"):
        comparison_file(given, **{**named, "seeds": 3})
    monkeypatch.setenv("TRACEFACTORY_VLLM", sys.executable)
    served = yaml.safe_load(comparison_file(["out/bad/1"], **{**named, "student": "org/model@abc"}).read_text())
    assert served["models"]["taught"] == {
        "use": "vllm",
        "model": "org/model",
        "env": "env:TRACEFACTORY_VLLM",
        "revision": "abc",
    }
    with pytest.raises(UserError) as raised:
        comparison_file(given, **{**named, "student": None, "questions": None})
    assert [str(one).partition(" is missing")[0] for one in raised.value.mistakes] == ["--student", "--eval"]
    with pytest.raises(UserError, match="no such file"):
        comparison_file(given, **{**named, "questions": "elsewhere.jsonl"})
    with pytest.raises(UserError, match="is not a release"):
        comparison_file(["pipelines"], **named)
