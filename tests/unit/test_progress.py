"""Progress as data: rates, the state of servers, and OpenTelemetry metrics of both."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from rich.console import Console

from tracefactory.config import load_pipeline
from tracefactory.config.project import init_project
from tracefactory.engine.reporting import display
from tracefactory.engine.reporting.display import Display
from tracefactory.engine.reporting.telemetry import exporter
from tracefactory.engine.run import run_pipeline
from tracefactory.testing import fake_teacher

CANARY = "sk-canary-7f3a9c"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a run prints as JSON lines; the fake teacher is asked with a secret key."""
    monkeypatch.setattr(display, "_PLAIN_S", 0.2)
    monkeypatch.setattr(display, "_LOOK_S", 0.1)
    monkeypatch.setenv("TEACHER_KEY", CANARY)
    init_project(tmp_path / "project")
    out = io.StringIO()

    async def run() -> None:
        async with fake_teacher(accuracy=1.0, style="short", latency_s=0.3, rate_429=0.2) as teacher:
            entry = {**teacher.entry, "api_key": "env:TEACHER_KEY", "concurrency": 4}
            stages: list[dict[str, Any]] = [
                {"id": "sums", "source": "reasoning_gym", "with": {"size": 12, "tasks": [{"task": "chain_sum"}]}},
                {"id": "short", "sample": "chat", "with": {"model": "teacher", "prompt": "math_short", "samples": 2}},
            ]
            file = tmp_path / "project" / "pipelines" / "p.yaml"
            file.write_text(
                yaml.safe_dump({"name": "p", "version": "1", "models": {"teacher": entry}, "stages": stages})
            )
            await run_pipeline(load_pipeline(file), Display(Console(file=out), "json"))

    asyncio.run(run())
    return out.getvalue()


def test_json_lines_tell_rates_and_the_state_of_servers(shown: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in shown.splitlines()]
    stages = [stage for line in lines for stage in line["stages"] if stage["stage"] == "short"]
    assert max(stage["requests_per_s"] for stage in stages) > 0
    assert max(stage["tokens_per_s"] for stage in stages) > 0
    assert [stage for stage in stages if stage["left_s"] is not None and " requests in " in stage["left_basis"]]
    endpoints = [one for line in lines for model in line["models"] for one in model["endpoints"]]
    assert max(one["in_flight"] for one in endpoints) == 4
    assert max(one["refused"] for one in endpoints) > 0
    assert {one["host"].partition(":")[0] for one in endpoints} == {"127.0.0.1"}
    (log,) = (tmp_path / "project" / ".tracefactory" / "runs").glob("*/log.jsonl")
    assert [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "progress"]


def test_a_secret_is_nowhere_in_the_project(shown: str, tmp_path: Path) -> None:
    assert CANARY not in shown
    found = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert found == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"env:TEACHER_KEY" in path.read_bytes()]


def test_a_snapshot_becomes_metrics() -> None:
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    export = exporter()
    assert export is not None
    stage = {"stage": "short", "left_s": None, "in_flight": 3, "requests": 7, "requests_per_s": 2.5}
    rest = ("tokens_per_s", "prompt_tokens", "completion_tokens", "cost", "kept", "errors", "owed")
    endpoint = {"host": "h:1", "in_flight": 3, "limit": 4, "refused": 1, "paused_s": 0.0}
    export(
        {
            "pipeline": "p",
            "version": "1",
            "stages": [{**stage, **dict.fromkeys(rest, 0)}],
            "models": [{"model": "teacher", "endpoints": [endpoint]}],
        }
    )
    data = reader.get_metrics_data()
    assert data is not None
    values = {
        one.name: one.data.data_points[0].value  # type: ignore[union-attr]
        for scope in data.resource_metrics[0].scope_metrics
        for one in scope.metrics
    }
    assert values["tracefactory.stage.requests_per_s"] == 2.5
    assert values["tracefactory.endpoint.limit"] == 4
    assert "tracefactory.stage.left_s" not in values
