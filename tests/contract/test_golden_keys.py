"""Keys, ids and digests are those of golden.json: an upgrade of the package must not pay again or compute again."""

from __future__ import annotations

import copy
import json
from typing import Annotated, Any

import pytest
from pydantic import Field, create_model

from tests.contract import golden
from tracefactory.core.keys import Later, pinned
from tracefactory.core.model import MODELS, ChatRequest
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import STAGES
from tracefactory.decoding.decoder import DECODERS
from tracefactory.engine.identity import identities
from tracefactory.pruning import PRUNERS
from tracefactory.publish.views import VIEWS
from tracefactory.reading.base import SOURCES
from tracefactory.verification.base import VERIFIERS

STORED: dict[str, Any] = json.loads(golden.GOLDEN.read_text())
UPDATE = "if that is meant: raise the version of what changed, then run `python -m tests.contract.golden`"


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return golden.golden()


@pytest.mark.parametrize("part", sorted(STORED))
def test_everything_that_is_pinned_is_as_it_was(part: str, now: dict[str, Any]) -> None:
    assert now[part] == STORED[part], UPDATE


def test_everything_that_is_registered_is_pinned() -> None:
    kinds = {"decoders": DECODERS, "pruners": PRUNERS, "sources": SOURCES, "verifiers": VERIFIERS, "views": VIEWS}
    for part, registry in {"operations": STAGES, "models": MODELS, **kinds}.items():
        assert set(STORED[part]) == set(registry), part
    assert {one["op"] for one in STORED["stages"].values()} == set(STAGES), "golden_project lacks an operation"
    asked = {one["op"] for one in STORED["requests"].values() if one["keys"]}
    silent = {"prune:after_answer", "prune:low_information", *golden.SCORED}
    assert {name for name in STAGES if name.startswith(("sample:", "prune:"))} - silent <= asked
    assert "verify:judge" in asked


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("stages", "checked", "key"), "0" * 64, ["stages: checked"]),
        (("requests", "long", "keys"), [], ["requests: long"]),
        (("operations", "sample:chat", "defaults", "temperature"), 0.6, ["operations: sample:chat"]),
        (("views", "sft", "schema"), ["id: int64"], ["views: sft"]),
        (("rows", "digest of traces"), "0" * 32, ["rows: digest of traces"]),
        (("models", "openai", "identity"), "0" * 64, ["models: openai"]),
        (("operations", "sample:chat", "defaults", "tools"), [], []),  # a further parameter is no change
    ],
)
def test_a_change_under_the_same_version_is_found(path: tuple[str, ...], value: Any, found: list[str]) -> None:
    changed = copy.deepcopy(STORED)
    entry = changed
    for name in path[:-1]:
        entry = entry[name]
    entry[path[-1]] = value
    assert golden.changes(STORED, changed) == found


def test_a_change_with_another_version_is_none() -> None:
    changed = copy.deepcopy(STORED)
    changed["operations"]["sample:chat"] = {"version": "2", "defaults": {}}
    changed["stages"]["long"]["version"]["long"] = ["2", {}]
    changed["stages"]["long"]["key"] = "0" * 64
    assert golden.changes(STORED, changed) == []


def test_a_further_field_with_a_default_changes_no_request_key() -> None:
    wider: Any = create_model("Wider", __base__=ChatRequest, tools=(tuple[str, ...], ()))
    given: dict[str, Any] = {"model_identity": {"model": "m"}, "messages": ({"role": "user", "content": "2 + 2?"},)}
    assert wider(**given).key == ChatRequest(**given).key


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_further_parameter_with_a_default_changes_no_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = STAGES.get(name)
    added = (Annotated[int, Later()], Field(default=3))
    later: Any = create_model("WiderParams", __base__=op.Params, later_added=added)
    monkeypatch.setattr(op, "Params", later)
    loaded = golden.pipeline()
    keys = identities(loaded)
    stages = [stage for stage in loaded.stages if stage.op == name]
    assert stages
    for stage in stages:
        assert stage.params.later_added == 3
        assert keys[stage.id].key == STORED["stages"][stage.id]["key"]
        assert list(golden.asked_by(stage, loaded)) == STORED["requests"][stage.id]["keys"]


def test_a_marked_parameter_is_pinned_where_it_is_not_at_its_default() -> None:
    class Params(Frozen):
        tokens: int = 10
        gate: Annotated[float, Later()] = 0.5

    assert pinned(Params()) == {"tokens": 10}
    assert pinned(Params(gate=0.7)) == {"tokens": 10, "gate": 0.7}


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_another_version_of_a_verifier_that_is_not_used_changes_no_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VERIFIERS.get(name), "version", "another")
    keys = {stage: identity.key for stage, identity in identities(golden.pipeline()).items()}
    changed = {stage for stage, key in keys.items() if key != STORED["stages"][stage]["key"]}
    assert ("checked" in changed) == (name == "math")  # the problems of the golden project are all `math`
