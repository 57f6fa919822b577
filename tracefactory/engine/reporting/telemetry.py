"""The progress of a run as metrics: for OpenTelemetry, and as the text that Prometheus reads.

OpenTelemetry gets them if the package `opentelemetry-api` is installed (extra `otel`). Where they go is set up outside,
as for any program: with `opentelemetry-instrument` and the OTEL_... variables. For Prometheus, `MetricsPage` serves the
same metrics under the same names, with underscores for dots.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any, NamedTuple

from tracefactory.core.errors import UserError

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
    """Return a function that records a snapshot of `engine.reporting.progress`, None without OpenTelemetry."""
    if importlib.util.find_spec("opentelemetry") is None:
        return None
    from opentelemetry.metrics import get_meter

    meter = get_meter("tracefactory")
    stage = {name: meter.create_gauge(f"tracefactory.stage.{name}", unit) for name, unit in STAGE_METRICS.items()}
    server = {
        name: meter.create_gauge(f"tracefactory.endpoint.{name}", unit) for name, unit in ENDPOINT_METRICS.items()
    }

    gauges = {"stage": stage, "endpoint": server}

    def export(snapshot: Mapping[str, Any]) -> None:
        for one in _samples(snapshot):
            gauges[one.of][one.name].set(one.value, one.labels)

    return export


def prometheus_text(snapshot: Mapping[str, Any]) -> str:
    """Return a snapshot of `engine.reporting.progress` in the text format of Prometheus, version 0.0.4."""
    families: dict[str, list[str]] = {}
    for one in _samples(snapshot):
        name = f"tracefactory_{one.of}_{one.name}"
        labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in one.labels.items())
        families.setdefault(name, [f"# TYPE {name} gauge"]).append(f"{name}{{{labels}}} {float(one.value)!r}")
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


class MetricsPage:
    """Serves the newest progress of a run at `/metrics`, from a thread.

    Args:
        host: the address to listen at.
        port: the port; 0 takes a free one.

    Raises:
        UserError: when it cannot listen there.
    """

    def __init__(self, host: str, port: int) -> None:
        page = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds for a request to come

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/metrics"
                body = page.text.encode() if found else b"the metrics are at /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: stderr is the display's."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = AF_INET6 if ":" in host else ThreadingHTTPServer.address_family

            def server_bind(self) -> None:
                self.socket.bind(self.server_address)  # the original also looks up the host's name, which may hang
                self.server_address = self.socket.getsockname()

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: a client that goes away is no fault of the run."""

        self.text = ""
        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"run: metrics_port: cannot listen at {host}:{port} ({error}); choose another port, or 0 for a free one"
            ) from error
        self.port: int = self._server.server_address[1]
        self.host = host
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Sample(NamedTuple):
    """One value: of a stage or an endpoint, with the name of its metric."""

    of: str
    name: str
    value: float
    labels: dict[str, str]


def _samples(snapshot: Mapping[str, Any]) -> Iterator[_Sample]:
    of = {"pipeline": snapshot["pipeline"], "version": snapshot["version"]}
    for one in snapshot["stages"]:
        for name in STAGE_METRICS:
            if one[name] is not None:
                yield _Sample("stage", name, one[name], {**of, "stage": one["stage"]})
    for model in snapshot["models"]:
        for one in model["endpoints"]:
            for name in ENDPOINT_METRICS:
                yield _Sample("endpoint", name, one[name], {**of, "model": model["model"], "host": one["host"]})


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
