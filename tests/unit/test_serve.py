"""The serve command starts servers only for kinds of models whose servers several runs can share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracefactory.cli.serve import Shareable, serve
from tracefactory.core.errors import UserError
from tracefactory.core.model import MODELS

PIPELINE = """\
name: t
version: "1"
models:
  teacher: {use: openai, model: big, base_url: "http://127.0.0.1:9/v1"}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl}}
"""


def pipeline(root: Path) -> Path:
    (root / "pipelines").mkdir()
    (root / "problems.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    (root / "pipelines" / "t.yaml").write_text(PIPELINE)
    return root / "pipelines" / "t.yaml"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("teacher", "runs cannot share the servers of 'teacher', a `use: openai` model"),
        ("techer", "has no model 'techer' (did you mean 'teacher'?)"),
    ],
)
def test_a_model_without_shareable_servers_is_refused(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        serve(model, pipeline(tmp_path))
    assert message in str(refused.value)


def test_vllm_models_are_shareable_and_other_kinds_are_not() -> None:
    shareable = {kind for kind in MODELS if isinstance(MODELS.get(kind).model_construct(model="m"), Shareable)}
    assert shareable == {"vllm"}
