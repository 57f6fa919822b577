"""Stages whose models do not have room on the GPUs at once take turns, and what waits says for what."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tracefactory.config import load_pipeline
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Interrupted, UserError
from tracefactory.core.gpus import phases
from tracefactory.engine.gpus import GpuTurns
from tracefactory.engine.run import run_pipeline

MODEL = (
    "{{use: vllm, model: ./checkpoint, env: env, gpus: {gpus}, engine_args: {{seed: {seed}}}, keep: {keep}, "
    "environ: {{STAND_IN: {folder}}}}}"
)
PIPELINE = """\
name: t
version: "1"
models:
  one: {one}
  two: {two}
  three: {three}
run: {{executor: inline, gpus: {limit}}}
stages:
  - {{id: problems, source: files, with: {{paths: problems.jsonl}}}}
  - {{id: long, sample: chat, from: problems, with: {{model: one, prompt: p, samples: 1}}}}
  - {{id: short, sample: chat, from: problems, with: {{model: two, prompt: p, samples: 1}}}}
  - {{id: last, sample: chat, from: problems, with: {{model: three, prompt: p, samples: 1}}}}
"""


@pytest.fixture
def file_of(stand_in):
    root = stand_in.root

    def make(gpus=(1, 1, 1), limit=1, keep=(False, False, False)) -> Path:
        for folder in ("pipelines", "prompts"):
            (root / folder).mkdir(exist_ok=True)
        lines = (json.dumps({"question": f"What is {n} + {n}?", "answer": str(2 * n)}) for n in range(4))
        (root / "problems.jsonl").write_text("\n".join(lines))
        (root / "prompts" / "p.md").write_text("---\nname: p\nstyle: long\ndescription: Plain.\n---\n{{ question }}\n")
        models = {
            name: MODEL.format(gpus=count, seed=seed, keep=str(kept).lower(), folder=stand_in.folder)
            for seed, (name, count, kept) in enumerate(zip(("one", "two", "three"), gpus, keep, strict=True))
        }
        path = root / "pipelines" / "t.yaml"
        path.write_text(PIPELINE.format(**models, limit=limit))
        return path

    return make


@asynccontextmanager
async def unwatched(flow, executor):
    yield


async def test_three_models_finish_on_one_gpu(file_of, stand_in, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    loaded = load_pipeline(file_of())
    outcome = await run_pipeline(loaded, unwatched)
    assert [stage.tally.kept for stage in outcome.stages if stage.id != "problems"] == [4, 4, 4]
    assert [started["gpus"] for started in stand_in.started] == ["0", "0", "0"]
    log = (loaded.project.state_dir / "runs" / outcome.run / "log.jsonl").read_text()
    waited = [json.loads(line) for line in log.splitlines() if '"waiting"' in line]
    assert {one["stage"] for one in waited} == {"short", "last"}
    assert "for GPUs (1 of two); of 1, one 1 for long" in waited[0]["text"]
    assert stand_in.all_gone()


async def test_a_model_to_keep_stays_loaded_while_there_is_room(file_of, stand_in, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    file = file_of(limit=2, keep=(True, False, False))
    pipeline = load_pipeline(file)
    ended: list[str] = []
    turns = _turns(pipeline, 2, ended)
    stages = {stage.id: stage for stage in pipeline.stages}
    async with turns.turn(stages["long"], _ignore):
        pass
    async with turns.turn(stages["short"], _ignore):
        assert ended == []  # there is room for both
        async with asyncio.timeout(5), turns.turn(stages["last"], _ignore):
            assert ended == ["one"]  # no stage works with it, and another needs its GPU


async def test_a_stage_waits_until_a_turn_ends_and_says_so(file_of):
    pipeline = load_pipeline(file_of())
    turns, told = _turns(pipeline, 1, []), []
    stages = {stage.id: stage for stage in pipeline.stages}
    async with turns.turn(stages["long"], _ignore):
        waiting = asyncio.create_task(_hold(turns, stages["short"], told))
        await asyncio.sleep(0.05)
        assert told
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)
    assert told[0].startswith("waits since ")


async def test_a_stop_interrupts_what_waits(file_of):
    pipeline = load_pipeline(file_of())
    turns = _turns(pipeline, 1, [])
    stages = {stage.id: stage for stage in pipeline.stages}
    async with turns.turn(stages["long"], _ignore):
        waiting = asyncio.create_task(_hold(turns, stages["short"], []))
        await asyncio.sleep(0.05)
        turns.stop()
        with pytest.raises(Interrupted):
            await asyncio.wait_for(waiting, 5)


def test_check_refuses_a_model_that_never_fits(file_of):
    with pytest.raises(UserError, match=r"stage 'short': needs 2 GPUs at once \(2 for two\), but `run: gpus` is 1"):
        load_pipeline(file_of(gpus=(1, 2, 1)))


def test_phases_are_those_that_fit(file_of):
    pipeline = load_pipeline(file_of(gpus=(1, 2, 1), limit=2))
    ids = [stage.id for stage in pipeline.stages]
    assert [phase.stages for phase in phases(pipeline, ids, 2)] == [("long", "last"), ("short",)]
    assert [phase.stages for phase in phases(pipeline, ids, None)] == [("long", "short", "last")]
    assert [phase.stages for phase in phases(pipeline, ["short"], 2)] == [("short",)]


def _turns(pipeline, capacity, ended):
    async def count():
        return capacity

    async def release(model):
        ended.append(model)

    return GpuTurns(pipeline, Environment(root=pipeline.project.root), count, release)


async def _hold(turns, stage, told):
    async with turns.turn(stage, told.append):
        pass


def _ignore(text):
    pass
