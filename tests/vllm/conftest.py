"""A real vLLM on the CPU: its environment, and SmolLM2-135M as a checkpoint (made once, from the packaged GGUF).

TRACEFACTORY_TEST_VLLM names another environment than `.venv-vllm`, TRACEFACTORY_TEST_CHECKPOINT another checkpoint.
"""

import os
from pathlib import Path

import pytest

from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.models.local import LocalSpec
from tracefactory.serving.gguf_checkpoint import convert

ROOT = Path(__file__).parents[2]
# Float32 and eager are the fastest here to start and to answer; two threads leave a small machine usable.
FIELDS = {
    "use": "vllm",
    "model": "env:TRACEFACTORY_TEST_CHECKPOINT",
    "env": "env:TRACEFACTORY_TEST_VLLM",
    "gpus": 0,
    "concurrency": 16,
    "retries": 20,
    "start_timeout_s": 900,
    "engine_args": {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
    },
    "environ": {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
}


@pytest.fixture(scope="session")
def vllm_environ():
    """The variables that name vLLM's environment and the checkpoint, also set for child processes."""
    env = Path(os.environ.get("TRACEFACTORY_TEST_VLLM", ROOT / ".venv-vllm"))
    if not (env / "bin" / "python").exists():
        pytest.skip("needs an environment with vLLM: make test-vllm")
    checkpoint = Path(os.environ.get("TRACEFACTORY_TEST_CHECKPOINT", env / "smollm2-135m"))
    if not checkpoint.exists():
        try:
            convert(LocalSpec(model="packaged:smollm2-135m").weights(Environment()), checkpoint)
        except UserError as error:
            pytest.skip(str(error))
    named = {"TRACEFACTORY_TEST_VLLM": str(env), "TRACEFACTORY_TEST_CHECKPOINT": str(checkpoint)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in named.items():
            patch.setenv(name, value)
        yield named
