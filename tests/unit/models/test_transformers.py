"""`use: transformers`: what is missing is told before a run; nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.models.transformers import TransformersSpec

FROM_VARIABLE = TransformersSpec.model_validate({"model": "env:WEIGHTS", "device": "cpu", "chunk": 64})


def test_a_checkpoint_that_a_variable_names_is_looked_for_once_it_is_set(tmp_path: Path) -> None:
    def said(value: str | None) -> list[str]:
        environ = {} if value is None else {"WEIGHTS": value}
        return [str(one) for one in FROM_VARIABLE.check(Environment(environ=environ, root=tmp_path))]

    (tmp_path / "weights").mkdir()
    assert said("./weights") == []
    (missing,) = said("./other")
    assert missing.startswith(f"there is no checkpoint {tmp_path / 'other'}")
    assert said(None) == []  # told where variables are checked


def test_a_checkpoint_is_loaded_as_it_is_declared(tmp_path: Path) -> None:
    found = FROM_VARIABLE.checkpoint(Environment(environ={"WEIGHTS": "./weights"}, root=tmp_path))
    assert (found.model, found.revision) == (str(tmp_path / "weights"), None)
    assert (found.device, found.chunk, found.dtype, found.reasoning) == ("cpu", 64, "float32", "inline")
    with pytest.raises(UserError, match="needs a revision"):
        FROM_VARIABLE.checkpoint(Environment(environ={"WEIGHTS": "org/name"}, root=tmp_path))
