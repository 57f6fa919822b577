"""A stand-in for vLLM's API server with its processes, endpoints and ways to fail; copied into a made-up environment.

It keeps an "engine" process that outlives it when only the server is killed, as vLLM's does. Files in the folder named
by STAND_IN steer it: `hang` stops all answers but /health, `engine_died` makes /health report it; `started.jsonl` and
`asked.jsonl` say what it did. STAND_IN_START_S delays its start, STAND_IN_LATENCIES gives one latency per server.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

FOLDER = Path(os.environ["STAND_IN"])
tokens = 0


def note(file, **what):
    with (FOLDER / file).open("a") as log:
        log.write(json.dumps(what) + "\n")


def number():
    """Count the servers started in this folder, this one included, from 0."""
    for index in range(1000):
        try:
            os.close(os.open(FOLDER / f"server-{index}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return index
    raise AssertionError("too many servers")


async def completion(request):
    global tokens
    body = await request.json()
    while (FOLDER / "hang").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(request.app["latency"])
    tokens += 1
    if "messages" in body:
        note("asked.jsonl", server=request.app["number"], seed=body.get("seed"), body=body)
    message = {"role": "assistant", "content": f"Answer {body.get('seed')}: \\boxed{{7}}", "reasoning_content": None}
    choice = {"index": 0, "message": message, "text": "x", "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return web.json_response({"model": body["model"], "choices": [choice], "usage": usage})


async def health(request):
    return web.Response(status=503 if (FOLDER / "engine_died").exists() else 200)


async def metrics(request):
    return web.Response(text=f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}.0\n')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", nargs="+")
    options, _ = parser.parse_known_args()
    if options.model.endswith("broken"):
        sys.exit("ValueError: cannot load this checkpoint")
    mine = number()
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(
        f"(EngineCore pid={engine.pid}) INFO 11-21 05:02:38 [loader.py:1] Loading weights of {options.model}",
        flush=True,
    )
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    note("started.jsonl", pid=os.getpid(), engine=engine.pid, gpus=gpus, argv=sys.argv[1:], number=mine)
    time.sleep(float(os.environ.get("STAND_IN_START_S", "0")))
    latencies = [float(one) for one in os.environ.get("STAND_IN_LATENCIES", "0.01").split(",")]
    app = web.Application()
    app["latency"], app["number"] = latencies[mine % len(latencies)], mine
    app.router.add_post("/v1/chat/completions", completion)
    app.router.add_post("/v1/completions", completion)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    models = {"data": [{"id": name} for name in options.served_model_name]}
    app.router.add_get("/v1/models", lambda request: web.json_response(models))
    web.run_app(app, host=options.host, port=options.port, print=None, reuse_address=True, handle_signals=True)


if __name__ == "__main__":
    main()
