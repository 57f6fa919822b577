"""`use: transformers`: what is missing is told before a run; nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.models import transformers
from tracefactory.models.transformers import TransformersSpec

FROM_VARIABLE = TransformersSpec.model_validate({"model": "env:WEIGHTS", "device": "cpu", "chunk": 64})


def test_a_checkpoint_that_a_variable_names_is_looked_for_once_it_is_set(tmp_path: Path) -> None:
    def messages_with(value: str | None) -> list[str]:
        environ = {} if value is None else {"WEIGHTS": value}
        return [str(one) for one in FROM_VARIABLE.check(Environment(environ=environ, root=tmp_path))]

    (tmp_path / "weights").mkdir()
    assert messages_with("./weights") == []
    (missing,) = messages_with("./other")
    assert missing.startswith(f"there is no checkpoint {tmp_path / 'other'}")
    assert messages_with(None) == []  # told where variables are checked


def test_a_checkpoint_is_loaded_as_it_is_declared(tmp_path: Path) -> None:
    found = FROM_VARIABLE.checkpoint(Environment(environ={"WEIGHTS": "./weights"}, root=tmp_path))
    assert (found.model, found.revision) == (str(tmp_path / "weights"), None)
    assert (found.device, found.chunk, found.dtype, found.reasoning) == ("cpu", 64, "float32", "inline")
    with pytest.raises(UserError, match="needs a revision"):
        FROM_VARIABLE.checkpoint(Environment(environ={"WEIGHTS": "org/name"}, root=tmp_path))


def test_a_trained_folder_answers_under_the_digest_of_its_files(tmp_path: Path) -> None:
    environment = Environment(environ={})
    for name, weights in (("one", "a"), ("other", "b"), ("copy", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(weights)
    one, other, copy = (TransformersSpec.model_validate({"model": str(tmp_path / n)}) for n in ("one", "other", "copy"))
    assert one.takes_weights == "folder"
    assert one.identity(environment) == copy.identity(environment) != other.identity(environment)
    assert one.recorded_revision(environment) == copy.recorded_revision(environment)
    assert one.recorded_revision(environment).startswith("checkpoint:")
    assert one.recorded_revision(environment) != other.recorded_revision(environment)
    remote = TransformersSpec.model_validate({"model": "org/name", "revision": "v1"})
    assert remote.recorded_revision(environment) == "v1"


def test_what_joins_its_requests_is_in_its_identity_and_no_other_entry_is_new(tmp_path: Path) -> None:
    spec = TransformersSpec.model_validate({"model": "org/name", "revision": "v1"})
    warm = spec.model_copy(update={"extra": {"temperature": 0.3}})
    assert warm.identity() == {**spec.identity(), "extra": {"temperature": 0.3}}


def test_its_server_does_not_stream() -> None:
    with pytest.raises(ValueError, match="does not stream"):
        TransformersSpec.model_validate({"model": "org/name", "revision": "v1", "stream": True})


def test_a_server_needs_the_libraries_and_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        TransformersSpec.model_validate({"model": str(tmp_path / "gone")}).endpoint(Environment())
    monkeypatch.setattr(transformers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="it needs torch and transformers"):
        TransformersSpec.model_validate({"model": str(tmp_path)}).endpoint(Environment())
