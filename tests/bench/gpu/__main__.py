"""Measure what needs a GPU, on a machine that needs no network: `make gpu`, or `python -m tests.bench.gpu`.

    --out gpu.json        the file that is written; it is written again after every part
    --shapes real|tiny    tiny runs every part on the CPU in seconds, to test the script
    --teacher --student   checkpoints with one tokenizer, in place of random weights
    --minutes 20          no part begins after this time
    --vllm ENV            an environment with vLLM: also measures served teachers (part two)

Part one needs torch, transformers, pyarrow and small wheels. A part that fails is written with its error, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.bench.gpu import decoding, scoring
from tests.bench.gpu.models import Pair, disturbed, loaded_pair, random_model, random_pair


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description="Measure what needs a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--shapes", choices=["real", "tiny"], default="real")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--vllm", type=Path)
    options = parser.parse_args(arguments)
    if (options.teacher is None) != (options.student is None):
        parser.error("--teacher and --student are given together")
    if options.shapes == "real" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --shapes tiny tests the script on the CPU")
    started = time.monotonic()
    found: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(options, Path(folder)).items():
            began = time.monotonic()
            if began - started > 60 * options.minutes:
                found[name] = {"skipped": f"{options.minutes:g} minutes were over"}
                continue
            try:
                found[name] = {"result": part()}
            except Exception as error:  # noqa: BLE001  # the other parts are measured all the same
                failed = True
                found[name] = {"failed": repr(error), "traceback": traceback.format_exc()}
            scoring.free(device_of(options))
            found[name]["seconds"] = round(time.monotonic() - began, 1)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {json.dumps(found[name].get('result', found[name]))}", flush=True)
    return int(failed)


def parts(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the parts by name."""
    real, device = options.shapes == "real", device_of(options)
    big, small = ("qwen2.5-7b", "qwen2.5-0.5b") if real else ("tiny-teacher", "tiny-student")
    dtype = torch.bfloat16 if real else torch.float32
    words = [200, 400, 800, 1600, 3200] * 8 if real else [20, 40, 80]
    budgets = [8192, 32768, 131072] if real else [256, 1024]
    rows, tokens = ([1, 4, 16, 64, 256], 128) if real else ([3], 24)

    def pair() -> Pair:
        if options.teacher is not None:
            return loaded_pair(options.teacher, options.student, dtype, device)
        return random_pair(big, small, dtype, device)

    def agreeing(kind: torch.dtype, noise: float) -> Pair:
        made = random_pair(small, small, kind, device)
        student = disturbed(made.teacher, small, kind, device, noise)
        return Pair(
            made.teacher, student, made.tokenizer, f"random weights of the shape of {small}, and a copy with noise"
        )

    def decode(make: Callable[[], Pair]) -> Any:
        made = make()
        return {"models": made.origin, "by_rows": decoding.measure(made, rows, tokens, device)}

    name = str(dtype).removeprefix("torch.")
    found: dict[str, Callable[[], Any]] = {
        "scoring": partial(scoring.measure, small, name, device, folder / "student", words, budgets),
        "decoding": partial(decode, pair),
        "decoding_agreeing": partial(decode, partial(agreeing, dtype, 0.02)),
        "decoding_agreeing_less": partial(decode, partial(agreeing, dtype, 0.2)),
        "exact_float64": lambda: decoding.exactness(agreeing(torch.float64, 0.2), min(8, rows[-1]), tokens, device),
        f"exact_{name}": lambda: decoding.exactness(agreeing(dtype, 0.2), min(8, rows[-1]), tokens, device),
    }
    if options.vllm is not None:
        from tests.bench.gpu import served

        model = options.teacher or folder / "teacher"
        make = None if options.teacher else partial(random_model, big, dtype, device, 1)
        found["served"] = partial(served.measure, options.vllm, model, make, folder, real=real)
    return found


def device_of(options: argparse.Namespace) -> str:
    """Return the torch device."""
    return "cuda" if torch.cuda.is_available() and options.shapes == "real" else "cpu"


def machine() -> dict[str, Any]:
    """Return the hardware and the versions."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": None if gpu is None else gpu.name,
        "gpu_bytes": None if gpu is None else gpu.total_memory,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
