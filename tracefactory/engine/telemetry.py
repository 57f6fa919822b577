"""The progress of a run as OpenTelemetry metrics, if the package `opentelemetry-api` is installed (extra `otel`).

Where they go is set up outside, as for any program: with `opentelemetry-instrument` and the OTEL_... variables.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

STAGE_METRICS = {
    "in_flight": "{request}",
    "requests": "{request}",
    "requests_per_s": "{request}/s",
    "tokens_per_s": "{token}/s",
    "prompt_tokens": "{token}",
    "completion_tokens": "{token}",
    "cost": "USD",
    "kept": "{row}",
    "errors": "{row}",
    "owed": "{row}",
    "left_s": "s",
}
"""The metrics of every stage, `tracefactory.stage.<name>`, with their units."""
ENDPOINT_METRICS = {"in_flight": "{request}", "limit": "{request}", "refused": "{request}", "paused_s": "s"}
"""The metrics of every server, `tracefactory.endpoint.<name>`, with their units."""


def exporter() -> Callable[[Mapping[str, Any]], None] | None:
    """Return a function that records a snapshot of `engine.progress`, None without OpenTelemetry."""
    if importlib.util.find_spec("opentelemetry") is None:
        return None
    from opentelemetry.metrics import get_meter

    meter = get_meter("tracefactory")
    stage = {name: meter.create_gauge(f"tracefactory.stage.{name}", unit) for name, unit in STAGE_METRICS.items()}
    server = {
        name: meter.create_gauge(f"tracefactory.endpoint.{name}", unit) for name, unit in ENDPOINT_METRICS.items()
    }

    def export(snapshot: Mapping[str, Any]) -> None:
        of = {"pipeline": snapshot["pipeline"], "version": snapshot["version"]}
        for one in snapshot["stages"]:
            for name, gauge in stage.items():
                if one[name] is not None:
                    gauge.set(one[name], {**of, "stage": one["stage"]})
        for model in snapshot["models"]:
            for one in model["endpoints"]:
                for name, gauge in server.items():
                    gauge.set(one[name], {**of, "model": model["model"], "host": one["host"]})

    return export
