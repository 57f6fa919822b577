"""Identities, keys and secrets of models."""

import json
import pickle

import pytest
from pydantic import ValidationError

from tracefactory.core.environment import Environment, EnvStr, env_names
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import canonical
from tracefactory.core.model import MODELS, ChatRequest, Completion, RequestFailed
from tracefactory.models.fake import FakeSpec
from tracefactory.models.local import LocalSpec
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.fake_script import FakeScript

HOSTED = {"use": "openai", "model": "m", "base_url": "env:TEACHER_URL", "api_key": "env:TEACHER_KEY"}


def hosted(**changes):
    return MODELS.get("openai").model_validate({**HOSTED, **changes})


def request(**changes):
    fields = {"model_identity": {"model": "m"}, "messages": ({"role": "user", "content": "hi"},), "params": {"seed": 1}}
    return ChatRequest.model_validate({**fields, **changes})


def test_every_kind_is_filed_under_its_use():
    assert {"openai": OpenAISpec, "local": LocalSpec, "fake": FakeSpec}.items() <= {
        k: MODELS.get(k) for k in MODELS
    }.items()
    assert all(MODELS.get(kind).model_fields["use"].default == kind for kind in MODELS)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://elsewhere/v1"},
        {"api_key": "env:OTHER"},
        {"concurrency": 3},
        {"timeout_s": 5},
        {"retries": 1},
        {"price": {"input": 2.0, "output": 3.0}},
        {"budget": {"usd": 1}},
        {"licence": "mit"},
    ],
)
def test_what_does_not_change_rows_is_not_in_the_identity(changes):
    assert hosted(**changes).identity() == hosted().identity()


@pytest.mark.parametrize(
    "changes", [{"model": "n"}, {"revision": "2"}, {"provider": "p"}, {"extra": {"top_k": 5}}, {"prefill": "vllm"}]
)
def test_what_changes_rows_is_in_the_identity(changes):
    assert canonical(hosted(**changes).identity()) != canonical(hosted().identity())


def test_the_identity_of_the_fake_holds_its_answers_and_not_its_faults():
    def identity(**script):
        return FakeSpec(script=FakeScript(**script)).identity()

    assert identity(rate_429=0.5, rate_drop=0.1, hang_s=9, latency_s=1, max_faults=9) == identity()
    for change in ({"accuracy": 0.5}, {"seed": 1}, {"reasoning": "reasoning"}, {"rate_refuse": 0.1}, {"style": "long"}):
        assert identity(**change) != identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_identity": {"model": "n"}},
        {"messages": ({"role": "system", "content": "hi"},)},
        {"params": {"seed": 2}},
        {"params": {}},
        {"sample_index": 1},
    ],
)
def test_the_key_is_of_all_that_makes_the_request(changes):
    assert request(**changes).key != request().key
    assert request().key == ChatRequest.model_validate_json(request().model_dump_json()).key


def test_a_copied_request_has_its_own_key():
    first = request()
    assert first.key != first.model_copy(update={"sample_index": 7}).key


@pytest.mark.parametrize("params", [{"n": 4}, {"stream": True}, {"messages": []}, {"model": "other"}])
def test_what_the_factory_sets_is_neither_a_parameter_nor_extra(params):
    with pytest.raises(ValidationError, match=next(iter(params))):
        request(params=params)
    with pytest.raises(ValidationError, match=next(iter(params))):
        hosted(extra=params)


def test_a_parameter_of_the_request_wins_over_extra():
    spec = hosted(extra={"temperature": 0.1, "top_k": 9})
    body = spec.body(request(params={"temperature": 0.7}))
    assert (body["temperature"], body["top_k"], body["model"]) == (0.7, 9, "m")


def test_secrets_are_names_until_they_are_needed_and_are_never_shown():
    spec = hosted()
    assert env_names(spec) == ["TEACHER_KEY", "TEACHER_URL"]
    assert env_names(hosted(base_url=["env:A", "http://b/v1"], api_key="")) == ["A"]
    environment = Environment(environ={"TEACHER_URL": "http://x/v1", "TEACHER_KEY": "sk-very-secret"})
    secret = spec.secret(environment)
    assert secret is not None
    assert secret.get_secret_value() == "sk-very-secret"
    shown = (
        repr((spec, secret, environment, spec.endpoint(environment)))
        + spec.model_dump_json()
        + str(spec.identity(environment))
    )
    assert "sk-very-secret" not in shown
    assert json.loads(spec.model_dump_json())["api_key"] == "env:TEACHER_KEY"
    assert type(spec.model_dump()["api_key"]) is str


def test_an_unset_variable_is_the_users_mistake():
    with pytest.raises(UserError, match="TEACHER_URL is not set"):
        hosted().endpoint(Environment(environ={}))
    with pytest.raises(UserError, match="TEACHER_KEY is not set"):
        hosted().secret(Environment(environ={"TEACHER_KEY": ""}))


@pytest.mark.parametrize(
    "changes", [{"api_key": "sk-literal"}, {"base_url": "env:NOT A NAME"}, {"base_url": "host:80"}, {"base_url": []}]
)
def test_a_key_in_a_file_and_a_malformed_address_are_refused(changes):
    with pytest.raises(ValidationError):
        hosted(**changes)


def test_a_server_that_asks_for_no_key_gets_none():
    assert hosted(api_key="").secret(Environment(environ={})) is None


def test_plain_strings_resolve_to_themselves():
    assert EnvStr("http://x").resolve({}) == "http://x"
    assert EnvStr("http://x").env_name is None


def test_cost_is_by_million_tokens():
    spec = hosted(price={"input": 2.0, "output": 8.0})
    done = Completion(content="", finish_reason="stop", prompt_tokens=1000, completion_tokens=500, created=0, seconds=0)
    assert spec.cost(done, spec.price_used(Environment(environ={}))) == pytest.approx(0.006)


def test_a_failure_survives_the_way_from_a_worker():
    failed = pickle.loads(pickle.dumps(RequestFailed("rate_limited", "slow down", attempts=3, retryable=True)))
    assert (failed.kind, failed.message, failed.attempts, failed.retryable) == ("rate_limited", "slow down", 3, True)
    assert "3 attempts" in str(failed)


SECRET = "hunter2hunter2"
WITH_CREDENTIALS = [
    f"https://me:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"https://:{SECRET}@host:8000/v1",
    f"https://host/v1?api_key={SECRET}",
    f"https://host/v1?version=2&KEY={SECRET}",
    f"https://host/v1?a=1;access_token={SECRET}",
    f"https://host/v1?X-Amz-Signature={SECRET}",
    f"https://host/v1?subscription-key={SECRET}",
    f"https://host/v1#token={SECRET}",
    f"https://host/v1?x={SECRET}0123456789abcdefABCDEF",
    f"https://host/sk-{SECRET}0123/v1",
    f"https://host/v1/hf_{SECRET}0123",
]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_an_address_are_refused_and_not_repeated(address, several):
    with pytest.raises(ValidationError) as refused:
        hosted(base_url=["http://a/v1", address] if several else address)
    (error,) = refused.value.errors()
    assert "would be shown and published" in error["msg"]
    assert "api_key: env:NAME" in error["msg"]
    assert SECRET not in error["msg"]


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_an_address_of_the_environment_are_refused_when_it_is_read(address):
    with pytest.raises(UserError, match="TEACHER_URL: a base URL with") as refused:
        hosted().endpoint(Environment(environ={"TEACHER_URL": address, "TEACHER_KEY": "k"}))
    assert SECRET not in str(refused.value)
    assert "api_key: env:NAME" in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:8000/v1",
        "https://[::1]:8000/v1",
        "https://x.openai.azure.com/openai/deployments/d?api-version=2026-01-01-preview",
        "https://api.cloudflare.com/client/v4/accounts/023e105f4ecef8ad9ca31a8372d0c353/ai/v1",
    ],
)
def test_other_addresses_are_taken(address):
    assert hosted(base_url=address).base_url == address


@pytest.mark.parametrize("address", ["http://[::1", "http://h:99999999/v1", "ftp://h", "http://", "host:80"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValidationError, match="a base URL"):
        hosted(base_url=address)
