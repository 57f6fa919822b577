"""Two models that write together in a pipeline: accepted or not with a reason, paid once, shown by explain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.stages.conftest import unwatched
from tracefactory.cli.explain import explain
from tracefactory.config import load_pipeline
from tracefactory.core.decisions import KEEP
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.core.spans import Span
from tracefactory.core.stage import stage_of
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.fused import FusedPair
from tracefactory.decoding.in_process import InProcessPair
from tracefactory.decoding.pairs import open_pair
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.served import ServedPair
from tracefactory.decoding.vllm_specs import DraftingSpec, FusedSpec
from tracefactory.engine.plan import make_plan
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import RunOutcome
from tracefactory.models.openai import OpenAISpec
from tracefactory.models.transformers import TransformersSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.stages.sample.family import BLOCKS, SampleDecoded
from tracefactory.stages.sample.reverse_speculative import ReverseSpeculativeParams, decision_on
from tracefactory.store.requests import RequestStore

PROMPT = "---\nstyle: rsd\nprefill: <think>\n---\n{{ question }}\n"
PIPELINE = """\
name: rsd
version: "1"
models:
  big: {{use: transformers, model: {teacher}, dtype: float64, concurrency: 4}}
  small: {{use: transformers, model: {student}, dtype: float64}}
stages:
  - id: problems
    source: reasoning_gym
    with: {{size: 5, seed: 3, tasks: [{{task: chain_sum, params: {{min_terms: 2, max_terms: 2}}}}]}}
  - id: rsd
    sample: reverse_speculative
    with: {{teacher: big, student: small, prompt: think, samples: 3, max_tokens: 24, thinking: any, p: 0.05}}
  - id: mixed
    sample: student_prefix
    from: problems
    with: {{teacher: big, student: small, prompt: think, samples: 2, tokens: 5, max_tokens: 20}}
run: {{executor: inline, shards: 2, workers: 1}}
"""
Read = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def read(tmp_path: Path, pair: tuple[Path, Path]) -> Read:
    """Write the project once; read its pipeline with changes."""
    for folder in ("pipelines", "prompts", "filters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "prompts" / "think.md").write_text(PROMPT)
    file = tmp_path / "pipelines" / "rsd.yaml"
    file.write_text(PIPELINE.format(teacher=pair[0], student=pair[1]))
    return lambda *sets: load_pipeline(file, sets=sets)


def run(pipeline: Pipeline) -> Coroutine[Any, Any, RunOutcome]:
    return run_pipeline(pipeline, unwatched)


def stage(outcome: RunOutcome, stage_id: str) -> Any:
    return next(one for one in outcome.stages if one.id == stage_id)


async def test_every_rsd_row_is_counted_and_paid_once(read: Read) -> None:
    pipeline = read()
    assert make_plan(pipeline, pipeline.project.state_dir).requests == 25
    first = await run(pipeline)
    tally = stage(first, "rsd").tally
    assert (tally.rows_in, tally.errors) == (15, 0)
    assert tally.kept + tally.dropped == 15
    assert set(tally.reasons) <= {"not_finished", "no_answer", "incorrect", "unverifiable", "fallback_share"}
    assert 0 < tally.numbers["student_tokens_of_all"] < tally.numbers["tokens_of_all"]
    assert stage(first, "mixed").tally.kept == 10
    assert make_plan(pipeline, pipeline.project.state_dir).requests == 0

    stricter = await run(read("stages.rsd.with.max_fallback=0.0"))
    assert stage(stricter, "rsd").paid["requests"] == 0
    assert stage(stricter, "mixed").cached
    assert stage(await run(read("stages.rsd.with.samples=4")), "rsd").paid["requests"] == 5
    assert stage(await run(read("stages.rsd.with.p=0.5")), "rsd").paid["requests"] == 15


async def test_explain_marks_what_the_student_wrote(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = read("stages.rsd.with.samples=1")
    outcome = await run(pipeline)
    root = pipeline.project.state_dir
    trace = stage(outcome, "mixed").rows(root).traces(Span.all())[0]
    decoded = Decoded.model_validate(RequestStore(root).get([trace.request_key])[trace.request_key]["completion"])
    assert decoded.provenance.by_student.sum() == 5
    explain(trace.id, project=pipeline.project.root)
    told = capsys.readouterr().out
    assert f"the student's tokens ({5 / trace.completion_tokens:.1%})" in told
    opening = next(decoded.provenance.spans(decoded.content))[1]
    assert f"⟦{opening.splitlines()[0]}" in told
    explain(trace.id, project=pipeline.project.root, json=True)
    assert json.loads(capsys.readouterr().out)["request"]["completion"]["provenance"]


async def test_unrelated_vocabularies_raise_user_error(read: Read, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = shutil.copytree(pair[1], tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: (token + 7) % 256 for text, token in vocabulary.items() if token < 256}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"big and small have unrelated vocabularies.*`reverse_speculative`"):
        await run(read(f"models.big.model={other}"))


@pytest.mark.parametrize(
    ("big", "message"),
    [
        ("use: fake, model: x", "'big' .`use: fake`. cannot exchange tokens"),
        (
            "use: openai, model: x, base_url: 'http://a/v1'",
            "'big' .`use: openai`. cannot exchange tokens.*`tokenizer:`",
        ),
        (
            "use: openai, model: x, base_url: 'http://a/v1', tokenizer: ./t",
            "'small' is in this process .* 'big' is served",
        ),
    ],
)
def test_models_that_cannot_decode_together_are_a_mistake_of_the_pipeline(read: Read, big: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(f"models.big={{{big}}}")


PARAMS = ReverseSpeculativeParams(teacher="big", student="small", prompt="think")
ACCEPTED: dict[str, Any] = {"finish_reason": "stop", "thinking": Thinking.CLOSED, "measures": {BLOCKS.name: 1.0}}


def verified(outcome: Outcome = Outcome.CORRECT, extracted: str | None = "4", **fields: Any) -> Trace:
    verdict = Verdict(outcome=outcome, extracted=extracted, method="boxed", verifier="math", version="1")
    problem = Problem.make(question="2+2", answer="4", verifier="math")
    return Trace(id="t", problem=problem, verdict=verdict, **{**ACCEPTED, **fields})


@pytest.mark.parametrize(
    ("trace", "share", "reason"),
    [
        (verified(), 0.5, None),
        (verified(), 0.5001, "fallback_share"),
        (verified(finish_reason="length"), 0.0, "not_finished"),
        (verified(thinking=Thinking.OPEN, measures={BLOCKS.name: 0.0}), 0.0, "thinking_not_closed_once"),
        (verified(measures={BLOCKS.name: 2.0}), 0.0, "thinking_not_closed_once"),
        (verified(Outcome.UNVERIFIABLE, None), 0.0, "no_answer"),
        (verified(Outcome.INCORRECT, "5"), 0.0, "incorrect"),
        (verified(Outcome.VERIFIER_ERROR), 0.0, "verifier_error"),
    ],
)
def test_a_decoded_trace_is_kept_under_five_conditions(trace: Trace, share: float, reason: str | None) -> None:
    assert decision_on(trace, PARAMS, share).reason == reason


def test_the_condition_on_thinking_can_be_disabled() -> None:
    trace = verified(thinking=Thinking.NONE, measures={BLOCKS.name: 0.0})
    assert decision_on(trace, PARAMS.model_copy(update={"thinking": "any"}), 0.0) == KEEP


def served(folder: Path, **changed: Any) -> str:
    fields = {"use": "openai", "model": "m", "base_url": "http://a/v1", "tokenizer": str(folder), **changed}
    return json.dumps(fields)


def identity(pipeline: Pipeline) -> str:
    stage = pipeline.stage("rsd")
    op = stage_of(stage)
    assert isinstance(op, SampleDecoded)
    return digest(op.model_identity(stage, pipeline, Environment(root=pipeline.project.root)))


def test_the_tokenizer_of_a_foreign_server_is_in_trace_keys_and_not_in_chat_keys(
    read: Read, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(pair[1], tmp_path / "other")
    (other / "tokenizer_config.json").write_text("{}")
    found = [read(f"models.big={served(one)}", f"models.small={served(pair[1])}") for one in (pair[0], other)]
    moved = read(f"models.big={served(pair[0], base_url='http://b/v1')}", f"models.small={served(pair[1])}")
    assert identity(found[0]) != identity(found[1])
    assert identity(found[0]) == identity(moved)
    assert found[0].models["big"].identity() == found[1].models["big"].identity()


def test_the_kinds_of_the_models_select_the_engine(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder, student = (str(one) for one in pair)
    kinds: dict[str, Any] = {
        "inside": TransformersSpec(model=EnvStr(folder)),
        "foreign": OpenAISpec(model="m", base_url=EnvStr("http://a/v1"), tokenizer=EnvStr(folder)),
        "ours": VLLMSpec(model=EnvStr(folder)),
        "student": VLLMSpec(model=EnvStr(student), concurrency=7),
    }
    asked: dict[str, Any] = {}

    def client(name: str, served_as: Any = None) -> str:
        asked[name] = served_as and served_as[1]
        return name

    worker: Any = SimpleNamespace(
        pipeline=SimpleNamespace(models=kinds), environment=Environment(root=tmp_path), client=client
    )
    assert isinstance(open_pair("inside", "inside", worker), InProcessPair)
    assert isinstance(open_pair("foreign", "student", worker), ServedPair)
    assert asked == {"foreign": None, "student": None}
    two = open_pair("ours", "student", worker)
    assert isinstance(two, ServedPair)
    assert isinstance(asked["ours"], DraftingSpec)
    assert two.models[Role.STUDENT].tokenizer.model == student
    one = open_pair("ours", "student", worker, one_server=True)
    assert isinstance(one, FusedPair)
    assert isinstance(asked["student"], FusedSpec)
    assert (asked["student"].model, asked["student"].teacher, asked["student"].concurrency) == (student, folder, 7)


def test_one_server_requires_models_with_managed_servers(read: Read) -> None:
    with pytest.raises(UserError, match="'big' is `use: transformers`; `servers: one` requires two models with `use: "):
        read("stages.rsd.with.servers=one")
