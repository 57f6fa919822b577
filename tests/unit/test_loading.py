"""What is proved of a release that was written, with `datasets`, which keeps settings of the whole process."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import datasets
import pytest

from tracefactory.core.errors import RunError
from tracefactory.core.imports import TRANSFORMERS
from tracefactory.publish.loading import check_loads


def test_two_stages_that_publish_at_once_use_datasets_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = 0, 0

    def names(folder: str) -> list[str]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return []

    monkeypatch.setattr(datasets, "get_dataset_config_names", names)
    before = datasets.are_progress_bars_disabled(), datasets.config.TORCH_AVAILABLE
    failures: list[str] = []

    def check() -> None:
        try:
            check_loads(tmp_path, ["sft"])
        except RunError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=check) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most == 1
    assert len(failures) == 4  # and the lock was given back each time
    assert "finds the configurations []" in failures[0]
    assert (datasets.are_progress_bars_disabled(), datasets.config.TORCH_AVAILABLE) == before


def test_datasets_is_not_used_while_another_thread_imports_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` asks for classes of transformers as soon as there is an unfinished module of that name."""
    asked = threading.Event()
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda folder: asked.set() or [])

    def check() -> None:
        with pytest.raises(RunError):
            check_loads(tmp_path, ["sft"])

    with TRANSFORMERS:
        thread = threading.Thread(target=check)
        thread.start()
        assert not asked.wait(0.3)
    thread.join()
    assert asked.is_set()
