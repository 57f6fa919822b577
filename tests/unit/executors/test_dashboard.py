"""`run: ray_dashboard` where Ray came without its dashboard."""

from __future__ import annotations

import pytest

from tracefactory.core.errors import UserError
from tracefactory.core.pipeline import RunOptions
from tracefactory.engine.executors import ray_cluster


def test_a_dashboard_that_is_not_installed_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ray\[default\]'"):
        ray_cluster.connect(RunOptions(executor="ray", ray_dashboard=True))
