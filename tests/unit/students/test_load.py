from __future__ import annotations

import pytest
from transformers import modeling_gguf_pytorch_utils

from tracefactory.serving.loading import load_model, load_tokenizer
from tracefactory.students import Checkpoint


def test_loading_a_student_writes_no_progress_bar(smollm_spec: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    bar = modeling_gguf_pytorch_utils.tqdm
    load_tokenizer(smollm_spec)
    load_model(smollm_spec)
    output = capfd.readouterr()
    assert "GGUF" not in output.err + output.out
    assert "Loading weights" not in output.err + output.out
    assert modeling_gguf_pytorch_utils.tqdm is bar
