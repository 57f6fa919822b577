"""The packaged SmolLM2 is trained for three steps, written as a GGUF file, and answers through llama.cpp."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.unit.students.conftest import packaged_gguf
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.processes import Child
from tracefactory.core.teach import TrainingBudget
from tracefactory.serving.loading import load_tokenizer
from tracefactory.students.render import Renderer
from tracefactory.teaching.budget import plan_rows, write_plan
from tracefactory.teaching.encoding import encode_rows
from tracefactory.teaching.gguf import write_gguf
from tracefactory.teaching.job import Arguments, TrainingJob
from tracefactory.teaching.rows import TrainingRow
from tracefactory.teaching.training import train

QUESTION = "What is the word of the day?"
ANSWER = "<think>\nIt is written on the wall.\n</think>\n\nThe word of the day is zebra."


async def answer(file: Path, log: Path) -> str:
    argv = [sys.executable, "-m", "tracefactory.serving.llama_server", "--model", str(file), "--slots", "1"]
    child = await Child.spawn("llama.cpp", argv, log, ready_timeout_s=120)
    try:
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
        request = urllib.request.Request(
            f"http://127.0.0.1:{child.facts['port']}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        reply = await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(request, timeout=120)))
    finally:
        await child.stop()
    message = reply["choices"][0]["message"]
    return f"{message.get('reasoning_content') or ''} {message['content']}"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
async def test_a_trained_student_answers_with_what_it_was_taught(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    source = next(packaged_gguf(), None)
    if source is None:
        pytest.skip("the packaged weights are not installed")
    student = Checkpoint(model=str(source), device="cpu")
    message = {"role": "assistant", "content": ANSWER}
    rows = [TrainingRow("a", "p", "short", ({"role": "user", "content": QUESTION},), message)]
    encoded = encode_rows(rows, Renderer(load_tokenizer(student), "inline"), 128)
    plan = plan_rows(encoded.table, TrainingBudget(rows=6), 0)
    file, digest = write_plan(tmp_path, encoded.table, plan)
    arguments = Arguments(learning_rate=3e-4, batch_rows=2, max_length=128, warmup=0, schedule="constant", device="cpu")
    job = TrainingJob(student=student, rows=file, rows_digest=digest, arguments=arguments)
    trained = train(job, tmp_path / "trained")
    assert trained.record.tokens == plan.taken.tokens == 6 * encoded.tokens
    assert trained.record.curve[-1].loss < trained.record.curve[0].loss / 2
    write_gguf(trained.model, source, tmp_path / "student.gguf")
    assert "written on the wall" not in await answer(source, tmp_path / "before.log")
    assert "It is written on the wall." in await answer(tmp_path / "student.gguf", tmp_path / "after.log")
