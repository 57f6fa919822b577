"""What a vLLM model is by its declaration: identity, checks, the command line, and servers shared between runs."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from tracefactory.core.environment import Environment, env_names
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ChatRequest
from tracefactory.models.vllm import VLLMSpec, command_line
from tracefactory.serving.client import ChatClient
from tracefactory.serving.vllm import shared
from tracefactory.serving.vllm.shared import SharedLookup, SharedServers, announce, identity_label, withdraw
from tracefactory.store.heartbeats import Heartbeats

PINNED = {"use": "vllm", "model": "Qwen/Qwen2.5-32B-Instruct", "revision": "5ede1c9"}


def pinned(**changes):
    return VLLMSpec.model_validate({**PINNED, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus": 2, "replicas": 4},
        {"env": "env:VLLM"},
        {"environ": {"HF_TOKEN": "env:HF_TOKEN"}},
        {"restarts": 1, "start_timeout_s": 60, "hang_s": 30, "concurrency": 8},
        {"engine_args": {"gpu_memory_utilization": 0.8, "max_num_seqs": 64, "enforce_eager": True}},
    ],
)
def test_what_only_changes_speed_is_not_in_the_identity(changes):
    assert pinned(**changes).identity() == pinned().identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": "1234567"},
        {"reasoning_parser": "deepseek_r1"},
        {"engine_args": {"dtype": "bfloat16"}},
        {"engine_args": {"quantization": "fp8"}},
        {"engine_args": {"max_model_len": 4096}},
        {"engine_args": {"generation_config": "auto"}},
        {"engine_args": {"some_future_argument": 1}},
        {"extra": {"top_k": 20}},
    ],
)
def test_what_may_change_completions_is_in_the_identity(changes):
    assert pinned(**changes).identity() != pinned().identity()


def test_a_local_checkpoint_and_a_template_count_by_their_bytes(stand_in):
    environment, spec = stand_in.environment(), stand_in.spec(chat_template="t.jinja")
    (stand_in.root / "t.jinja").write_text("one")
    first = spec.identity(environment)
    assert spec.recorded_revision(environment) == first["model"]
    os.rename(stand_in.root / "checkpoint", stand_in.root / "moved")
    moved = stand_in.spec(chat_template="t.jinja", model="env:CHECKPOINT")
    elsewhere = Environment(root=stand_in.root, environ={"CHECKPOINT": str(stand_in.root / "moved")})
    assert moved.identity(elsewhere) == first
    (stand_in.root / "t.jinja").write_text("two")
    other_template = moved.identity(elsewhere)
    assert other_template != first
    (stand_in.root / "moved" / "model.safetensors").write_bytes(b"other weights")
    assert moved.identity(elsewhere) != other_template


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "org/name"}, "model 'org/name' has no revision"),
        ({"model": "org/name", "revision": "main"}, "revision 'main' moves"),
        ({"model": "./nowhere"}, "no checkpoint folder"),
        ({"env": "no-such-env"}, "there is no Python environment"),
        ({"env": sys.executable}, "has no package vllm"),
        ({"chat_template": "t.jinja"}, "there is no chat template"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_paid(changes, message, stand_in):
    mistakes = stand_in.spec(**changes).check(stand_in.environment())
    assert [message in str(mistake) for mistake in mistakes] == [True]
    with pytest.raises(UserError, match=message.split("'")[0]):
        stand_in.spec(**changes).plan(stand_in.environment())


def test_a_sound_model_has_nothing_to_tell_and_unset_variables_are_told_elsewhere(stand_in):
    assert stand_in.spec().check(stand_in.environment()) == []
    unset = stand_in.spec(model="env:NOWHERE", env="env:NEITHER")
    assert unset.check(Environment(root=stand_in.root, environ={})) == []
    assert env_names(stand_in.spec(environ={"HF_TOKEN": "env:TOKEN"}, env="env:VLLM")) == ["TOKEN", "VLLM"]


@pytest.mark.parametrize("taken", ["model", "port", "tensor_parallel_size", "reasoning_parser", "disable_log_stats"])
def test_arguments_with_a_field_of_their_own_are_refused(taken):
    with pytest.raises(ValidationError, match="cannot be set here"):
        pinned(engine_args={taken: 1})
    with pytest.raises(ValidationError, match="such as max_model_len"):
        pinned(engine_args={"--max-model-len": 1})


def test_python_arguments_become_command_line_arguments():
    fields = {"max_model_len": 4096, "enforce_eager": True, "enable_prefix_caching": False, "dtype": None}
    fields |= {"served_model_name": ["a", "b"], "hf_overrides": {"rope": 1}}
    assert command_line(fields) == (
        *("--max-model-len", "4096", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--served-model-name", "a", "b", "--hf-overrides", '{"rope": 1}'),
    )


def test_the_plan_pins_the_revision_and_passes_everything_on(stand_in):
    spec = stand_in.spec(model="org/name", revision="abc1234", gpus=4, reasoning_parser="qwen3", environ={"A": "1"})
    plan = spec.plan(stand_in.environment())
    words = " ".join(plan.arguments)
    label = identity_label(spec.sharing_key(stand_in.environment()))
    for expected in (
        "--model org/name --revision abc1234 --tensor-parallel-size 4 --reasoning-parser qwen3",
        f"--served-model-name org/name {label}",
        "--generation-config vllm",
    ):
        assert expected in words
    assert plan.python == str(stand_in.root / "env" / "bin" / "python")
    assert plan.environ["A"] == "1"
    assert "STAND_IN" not in repr(plan)  # variables may be secrets


def test_a_prefill_is_continued():
    user = {"role": "user", "content": "x"}
    body = pinned().body(ChatRequest(model_identity={}, messages=(user, {"role": "assistant", "content": "<think>"})))
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in pinned().body(ChatRequest(model_identity={}, messages=(user,)))


def test_servers_that_go_by_another_name_are_not_shared(stand_in):
    environment = Environment(root=stand_in.root, environ={"CHECKPOINT": "./checkpoint"})
    one, other = stand_in.spec(), stand_in.spec(model="env:CHECKPOINT")
    assert one.identity(environment) == other.identity(environment)
    assert one.sharing_key(environment) != other.sharing_key(environment)
    assert one.sharing_key(environment) == stand_in.spec(replicas=3, restarts=0).sharing_key(environment)


def servers(identity, **changes):
    fields = {"model": "m", "identity": identity, "pid": os.getpid(), "host": socket.gethostname()}
    return SharedServers(**{**fields, "started": time.time(), **changes})


def dead_pid():
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


async def test_shared_servers_are_believed_only_as_far_as_they_answer(stand_in, tmp_path):
    folder, environment = tmp_path / "servers", stand_in.environment()
    identity = stand_in.spec().sharing_key(environment)
    assert await SharedLookup(folder, identity).urls() is None
    keeper = ChatClient.connect(stand_in.spec(), tmp_path / "logs", environment)
    try:
        request = ChatRequest(model_identity={}, messages=({"role": "user", "content": "x"},))
        await keeper.complete(request)
        announce(folder, servers(identity, urls=keeper._endpoint.urls))
        assert await SharedLookup(folder, identity).urls() == keeper._endpoint.urls
        shared = ChatClient.connect(stand_in.spec(), tmp_path / "logs", stand_in.environment(servers=folder))
        await shared.complete(request)
        assert len(stand_in.started) == 1
        await shared.close()
        assert len(stand_in.living()) == 2  # not ours to end
        other = digest("another model")
        announce(folder, servers(other, urls=keeper._endpoint.urls))
        assert await SharedLookup(folder, other).urls() == []  # somebody else answers there
    finally:
        await keeper.close()
    assert await SharedLookup(folder, identity).urls() == []  # kept, but nothing answers just now
    withdraw(folder, identity)
    announce(folder, servers(identity, pid=dead_pid()))
    assert await SharedLookup(folder, identity).urls() is None  # its keeper is gone


@pytest.mark.parametrize("clock", [0.0, 4e9])
async def test_a_keeper_on_another_host_lives_while_its_file_changes_whatever_the_clocks_say(
    tmp_path, monkeypatch, clock
):
    monkeypatch.setattr(shared, "STALE_S", 0.4)
    monkeypatch.setattr(shared, "_LOOK_S", 0.02)
    monkeypatch.setattr(shared, "_HEARTBEATS", Heartbeats())
    identity = "i" * 64
    path = tmp_path / f"{identity[:16]}.json"
    announce(tmp_path, servers(identity, host="elsewhere"))

    async def beat(times):
        for number in range(times):
            os.utime(path, (clock + number, clock + number))
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat(10))
    with pytest.raises(UserError, match=r"process \d+ on elsewhere"):
        await asyncio.to_thread(announce, tmp_path, servers(identity))
    await beating
    assert await SharedLookup(tmp_path, identity).urls() == []
    announce(tmp_path, servers(identity))  # once it has been silent for long enough
    assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_a_second_keeper_is_refused(tmp_path):
    announce(tmp_path, servers("i" * 64, urls=("http://127.0.0.1:1/v1",)))
    with pytest.raises(UserError, match=f"already served by process {os.getpid()}"):
        announce(tmp_path, servers("i" * 64, pid=1))
    announce(tmp_path, servers("i" * 64))  # the same one may move
    assert json.loads((tmp_path / f"{'i' * 16}.json").read_text())["urls"] == []
