"""Servers of our own around a stand-in for vLLM: start, balance, death, hang, giving up, and no orphan ever."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.model import ChatRequest
from tracefactory.serving.client import ChatClient
from tracefactory.serving.vllm.log import first_error, last_message
from tracefactory.serving.vllm.placement import LocalPlacement, visible_gpus


def ask(seed=1):
    return ChatRequest(model_identity={}, messages=({"role": "user", "content": "3 + 4?"},), params={"seed": seed})


@pytest.fixture
async def client_of(stand_in):
    """Clients of the stand-in's models, closed with the test."""
    opened = []

    def connect(placement=None, **fields):
        spec = stand_in.spec(**fields)
        opened.append(ChatClient.connect(spec, stand_in.root / "logs", stand_in.environment(placement=placement)))
        return opened[-1]

    yield connect
    for client in opened:
        await client.close()
    assert stand_in.all_gone()


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.02)


async def test_a_request_starts_the_servers_once_and_close_ends_every_process(stand_in, client_of):
    client = client_of(replicas=2)
    answers = await asyncio.gather(*(client.complete(ask(seed)) for seed in range(20)))
    assert [answer.content for answer in answers] == [f"Answer {seed}: \\boxed{{7}}" for seed in range(20)]
    await until(lambda: len(stand_in.started) == 2)
    assert len(stand_in.living()) == 4
    assert sorted(path.name for path in (stand_in.root / "logs").iterdir()) == ["replica-0.log", "replica-1.log"]
    await client.close()
    assert stand_in.all_gone()


async def test_the_faster_replica_gets_more(stand_in, client_of):
    client = client_of(replicas=2, concurrency=8, environ={"STAND_IN_LATENCIES": "0.02,0.2"})
    await client.complete(ask())
    await until(lambda: len(client._endpoint.urls) == 2)
    await asyncio.gather(*(client.complete(ask(seed)) for seed in range(150)))
    asked = [one["server"] for one in stand_in.noted("asked.jsonl")]
    assert asked.count(0) > 3 * asked.count(1) > 0


async def test_progress_is_told_from_the_log_and_then_nothing(stand_in, client_of):
    client = client_of(replicas=2, environ={"STAND_IN_START_S": "3"})
    assert client.status.notice == ""
    waiting = asyncio.create_task(client.complete(ask()))
    await until(lambda: "Loading weights of" in client.status.notice)
    assert client.status.notice.startswith("0 of 2 servers up; starting, ")
    await waiting
    await until(lambda: client.status.notice == "")


@pytest.mark.parametrize("victim", ["pid", "engine", "guard", "between"])
async def test_a_killed_server_costs_a_retry_and_leaves_no_orphan(victim, stand_in, client_of):
    client = client_of(replicas=1, concurrency=4, environ={"STAND_IN_LATENCIES": "0.3"})
    await client.complete(ask())
    first = stand_in.started[0]
    guard = psutil.Process(first["pid"]).parent()
    victims = {**first, "guard": guard.pid, "between": guard.ppid()}
    waiting = [asyncio.create_task(client.complete(ask(seed))) for seed in range(8)]
    await asyncio.sleep(0.1)
    os.kill(victims[victim], signal.SIGKILL)
    if victim == "engine":
        (stand_in.folder / "engine_died").touch()
        await until(lambda: first["pid"] not in stand_in.living())
        (stand_in.folder / "engine_died").unlink()
    answers = await asyncio.gather(*waiting)
    assert len(answers) == 8
    await until(lambda: len(stand_in.started) == 2)
    assert set(stand_in.living()) == {stand_in.started[1]["pid"], stand_in.started[1]["engine"]}


async def test_a_hung_engine_is_noticed_killed_and_started_again(stand_in, client_of):
    client = client_of(concurrency=4)
    await client.complete(ask())
    (stand_in.folder / "hang").touch()
    waiting = [asyncio.create_task(client.complete(ask(seed))) for seed in range(4)]
    await until(lambda: "hung: no sign of life" in client.status.notice or len(stand_in.started) > 1)
    (stand_in.folder / "hang").unlink()
    await asyncio.gather(*waiting)
    assert len(stand_in.started) == 2


async def test_a_stopped_server_process_counts_as_hung(stand_in, client_of):
    client = client_of()
    await client.complete(ask())
    os.kill(stand_in.started[0]["pid"], signal.SIGSTOP)
    assert (await client.complete(ask(2))).content
    assert len(stand_in.started) == 2


async def test_an_idle_server_and_a_slow_one_do_not_count_as_hung(stand_in, client_of):
    client = client_of(hang_s=4.0, environ={"STAND_IN_LATENCIES": "1.5"})
    await client.complete(ask())
    await asyncio.sleep(6)
    await asyncio.gather(*(client.complete(ask(seed)) for seed in range(3)))
    assert len(stand_in.started) == 1


async def test_the_last_word_when_the_limit_is_reached(stand_in, client_of):
    client = client_of(restarts=1)
    for count in (1, 2):
        await client.complete(ask(count))
        os.kill(stand_in.started[-1]["pid"], signal.SIGKILL)
        if count == 1:
            await until(lambda: len(stand_in.started) == 2)
    with pytest.raises(
        RunError, match=r"all servers of vllm ./checkpoint failed: .* died and was started 2 times in total"
    ):
        await client.complete(ask(3))


async def test_one_replica_given_up_leaves_the_others_at_work(stand_in, client_of):
    client = client_of(replicas=2, restarts=0)
    await client.complete(ask())
    await until(lambda: len(client._endpoint.urls) == 2)
    os.kill(stand_in.started[0]["pid"], signal.SIGKILL)
    answers = await asyncio.gather(*(client.complete(ask(seed)) for seed in range(10)))
    assert len(answers) == 10
    await until(lambda: client.status.notice == "1 of 2 servers up; 1 failed")


async def test_a_server_that_cannot_start_is_tried_once_and_says_why(stand_in, client_of):
    (stand_in.root / "broken").mkdir()
    (stand_in.root / "broken" / "config.json").write_text("{}")
    client = client_of(model="./broken")
    outcomes = await asyncio.gather(*(client.complete(ask(seed)) for seed in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, RunError) for outcome in outcomes)
    assert "exited while starting (ValueError: cannot load this checkpoint); see its log " in str(outcomes[0])
    assert (stand_in.root / "logs" / "replica-0.log").read_text().count("ValueError") == 1


async def test_a_start_that_takes_too_long_is_ended(stand_in, client_of):
    client = client_of(start_timeout_s=0.5, environ={"STAND_IN_START_S": "60"})
    with pytest.raises(RunError, match=r"did not answer within 0\.5 s"):
        await client.complete(ask())
    assert stand_in.all_gone()


OWNER = """
import asyncio, os, sys
from pathlib import Path
from tracefactory.core.environment import Environment
from tracefactory.core.model import ChatRequest
from tracefactory.serving.client import ChatClient
from tracefactory.models.vllm import VLLMSpec

async def main():
    spec = VLLMSpec.model_validate_json(sys.argv[1])
    client = ChatClient.connect(spec, Path(sys.argv[2]) / "logs", Environment(root=Path(sys.argv[2])))
    await client.complete(ChatRequest(model_identity={}, messages=({"role": "user", "content": "x"},)))
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("children_too", [False, True])
def test_kill_9_of_the_owner_leaves_no_process(children_too, stand_in):
    command = [sys.executable, "-c", OWNER, stand_in.spec().model_dump_json(), str(stand_in.root)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "up\n"
    assert len(stand_in.living()) == 2
    for child in psutil.Process(owner.pid).children() * children_too:  # as Ray does with the children of its workers
        child.kill()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert stand_in.all_gone()


async def test_replicas_get_gpus_of_their_own_and_give_them_back(stand_in, client_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    placement = LocalPlacement()
    one, two = client_of(placement, gpus=2), client_of(placement, gpus=1, engine_args={"seed": 1})
    await asyncio.gather(one.complete(ask()), two.complete(ask()))
    assert sorted(started["gpus"] for started in stand_in.started) == ["2,3", "5"]
    assert "--tensor-parallel-size 2" in " ".join(next(s["argv"] for s in stand_in.started if s["gpus"] == "2,3"))
    three = client_of(placement, gpus=1, engine_args={"seed": 2})
    with pytest.raises(UserError, match="needs 1 GPUs, but only 0 GPUs of this machine are free"):
        await three.complete(ask())
    await two.close()
    await three.complete(ask())
    assert stand_in.started[-1]["gpus"] == "5"
    await one.close()  # the first one: its GPUs must not be lost because others were placed after it
    await client_of(placement, gpus=2, engine_args={"seed": 3}).complete(ask())
    assert stand_in.started[-1]["gpus"] == "2,3"


def test_gpus_are_those_that_are_visible():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1a,GPU-2b"}) == ["GPU-1a", "GPU-2b"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_last_words_are_the_last_line_of_this_start(tmp_path):
    log = tmp_path / "replica-0.log"
    assert last_message(log, 0) == ""
    log.write_text("old words\n")
    start = log.stat().st_size
    assert last_message(log, start) == ""
    with log.open("a") as file:
        file.write("(Worker pid=7) INFO 11-21 05:02:25 [default_loader.py:501] Loading weights took 5.87 s\n")
    assert last_message(log, start) == "Loading weights took 5.87 s"
    with log.open("a") as file:
        file.write("Loading shards:  33% | 1/3\rLoading shards:  66% | 2/3")
    assert last_message(log, start) == "Loading shards:  66% | 2/3"
    with log.open("a") as file:
        file.write("\n  warnings.warn(\n")
    assert last_message(log, start) == "Loading shards:  66% | 2/3"


def test_the_first_error_of_this_start_is_the_cause(tmp_path):
    log = tmp_path / "replica-0.log"
    assert first_error(log, 0) is None
    log.write_text("OldError: of another start\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("(APIServer pid=1) WARNING 11-21 05:48:46 [s.py:255] fd limit errors like `OSError: [Errno 24]`\n")
    assert first_error(log, start) is None
    with log.open("a") as file:
        for line in ("Traceback (most recent call last):", "torch.OutOfMemoryError: CUDA out of memory."):
            file.write(f"(Worker pid=7) ERROR 11-21 05:48:47 [multiproc_executor.py:1063] {line}\n")
        file.write("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n")
    assert first_error(log, start) == "torch.OutOfMemoryError: CUDA out of memory."
