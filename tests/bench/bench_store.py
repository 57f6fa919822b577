"""Deciding, publishing and planning over a large store, beside the same work done by hand with polars.

TRACEFACTORY_BENCH_TRACES is how many traces of 4 KB there are (1,000,000 take 1.7 GB of disk and a minute to make).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.bench.big_store import TAIL, fill, project
from tests.bench.measured import run_cli, seconds_in_run

pytestmark = pytest.mark.bench

TRACES = int(os.environ.get("TRACEFACTORY_BENCH_TRACES", "200000"))
FILTERS = Path(__file__).parents[2] / "filters"
START_UP_S = 3.0  # of a command, where a ratio must not count it


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with TRACES verified traces, four of each problem; yields its folder."""
    root = tmp_path_factory.mktemp("big")
    file = project(root, tail=TAIL, filters=FILTERS)
    made = fill(file, problems=TRACES // 4, characters=4000, shards=64)
    print(f"\n{TRACES:,} traces, {made['text'] / 1e9:.1f} GB of text, made in {made['seconds']:.0f} s")
    return root


def edit(root: Path, pattern: str, replacement: str) -> Path:
    file = root / "pipelines/big.yaml"
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count == 1
    file.write_text(text)
    return file


def stage(root: Path, name: str) -> Path:
    (found,) = (root / ".tracefactory/stages").glob(f"{name}-*")
    return found


def columns(root: Path) -> pl.DataFrame:
    """Read what a mix and a threshold look at, as one would by hand."""
    makers = [
        pl.scan_parquet(stage(root, name) / "traces-*.parquet").select("problem_id", "id", "style", "completion_tokens")
        for name in ("long", "short")
    ]
    judged = pl.scan_parquet(stage(root, "checked") / "judged-*.parquet").select(
        "id", pl.col("verdict").struct.field("outcome"), "pass_rate"
    )
    return pl.concat(makers).join(judged, on="id").collect()


def by_hand(root: Path, out: Path) -> tuple[float, float]:
    """Decide a mix and a threshold and write the judgements; return the seconds of each."""
    started = time.perf_counter()
    traces = columns(root)
    right = traces.filter(pl.col("outcome") == "correct")
    best = right.sort(pl.col("id").hash(7)).unique(["problem_id", "style"], keep="first")
    both = best.filter(pl.len().over("problem_id") == 2).sort("problem_id")
    share = (pl.col("problem_id").hash(7) % 1000) < 200
    chosen = both.filter(pl.when(share).then(pl.lit("long")).otherwise(pl.lit("short")) == pl.col("style"))
    kept = traces.select("problem_id", "id", kept=pl.col("id").is_in(chosen["id"].implode()))
    kept.sort("problem_id", "id").write_parquet(out / "mix.parquet")
    mixed = time.perf_counter() - started
    started = time.perf_counter()
    keep = (pl.col("outcome") == "correct") & pl.col("pass_rate").is_between(0.25, 0.75)
    decided = columns(root).select("problem_id", "id", kept=keep & (pl.col("completion_tokens") <= 3000))
    decided.sort("problem_id", "id").write_parquet(out / "threshold.parquet")
    return mixed, time.perf_counter() - started


def test_another_ratio_and_another_threshold(big: Path, tmp_path: Path) -> None:
    file = big / "pipelines/big.yaml"
    run_cli("run", file)
    hand_mix, hand_threshold = by_hand(big, tmp_path)
    took = run_cli("run", edit(big, r"long: 0\.\d+, short: 0\.\d+", "long: 0.3, short: 0.7"))
    mix = seconds_in_run(big)
    print(f"\nanother ratio: {mix:.2f} s in the run ({mix / hand_mix:.1f} times polars by hand), command {took}")
    took = run_cli("run", edit(big, r"max_tokens: \d+", "max_tokens: 2500"))
    threshold = seconds_in_run(big)
    print(f"another threshold: {threshold:.2f} s ({threshold / hand_threshold:.1f} times by hand), command {took}")
    again = run_cli("run", file)
    print(f"the same command again: {again}")
    assert mix < 5 * hand_mix + 0.5
    assert threshold < 5 * hand_threshold + 0.5


def test_bytes_on_disk(big: Path) -> None:
    folder = big / ".tracefactory/stages"
    size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    text = sum(file.stat().st_size for name in ("long", "short") for file in stage(big, name).glob("traces-*"))
    judged = sum(file.stat().st_size for file in stage(big, "checked").glob("*.parquet"))
    ratio = f"{size / text:.3f} times the compressed text"
    print(f"\n{size / 1e6:.0f} MB, {ratio}; verdicts and pass rates {judged / 1e6:.1f} MB")
    assert size < 2.2 * text


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_release_of_one_in_eight_traces(big: Path, tmp_path: Path, executor: str) -> None:
    text = (big / "pipelines/big.yaml").read_text()
    rows = TRACES * 120 // 1000
    text = re.sub(r"(?m)^  - \{id: hard.*\n", "", text).replace("seed: 7}", f"seed: 7, size: {rows}}}")
    text = text.replace("name: big", f"name: big_{executor}").replace("executor: inline", f"executor: {executor}")
    publish = "  - {id: out, publish: dataset, with: {licence: mit, views: [chat, sft, raw]}}\nrun:"
    file = big / f"pipelines/big_{executor}.yaml"
    file.write_text(text.replace("run:", publish))
    took = run_cli("run", file)
    started = time.perf_counter()
    stored = pl.scan_parquet([stage(big, name) / "traces-*.parquet" for name in ("long", "short")])
    chosen = stored.select("problem_id", "id", "reasoning", "answer_text").sort("problem_id", "id").head(rows)
    chosen.sink_parquet(tmp_path / "view.parquet")
    hand = time.perf_counter() - started
    seconds = seconds_in_run(big)
    by_hand = f"{seconds / hand:.1f} views by hand"
    print(f"\n{rows:,} rows, three views, card, {executor}: {seconds:.1f} s ({by_hand}), {took}")
    assert took.peak_mb < 2048


@pytest.mark.parametrize("samples", [1, 4])
def test_plan(tmp_path: Path, samples: int) -> None:
    problems = TRACES
    with (tmp_path / "many.jsonl").open("w") as file:
        for number in range(problems):
            question = f"Natalia sold {number} clips in May and {number % 97} in June; how many in all?"
            file.write(json.dumps({"question": question, "answer": str(number + number % 97)}) + "\n")
    pipeline = project(tmp_path, tail="run: {executor: inline}\n", filters=FILTERS)
    text = pipeline.read_text().replace("one.jsonl", "many.jsonl").replace("samples: 2", f"samples: {samples}")
    pipeline.write_text(re.sub(r"(?m)^  - \{id: (short|checked).*\n", "", text))
    took = run_cli("plan", pipeline)
    each = took.seconds / (problems * samples)
    print(f"\nplan of {problems:,} problems x {samples}, nothing run: {took}, {each * 1e6:.0f} us per request")
    assert took.peak_mb < 1024
    fill(pipeline, problems=problems, characters=200, shards=64, stages=["problems"])
    print(f"the same when the problems are read: {run_cli('plan', pipeline)}")
    fill(pipeline, problems=problems, characters=200, shards=64, stages=["problems", "long"])
    finished = run_cli("plan", pipeline)
    print(f"the same when it is finished: {finished}")
    assert finished.seconds < 0.2 * took.seconds + START_UP_S
