"""The page for Prometheus: its text, what it listens at, and clients that misbehave."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tracefactory.core.errors import UserError
from tracefactory.engine.reporting.telemetry import ENDPOINT_METRICS, STAGE_METRICS, MetricsPage, prometheus_text

SAMPLE = re.compile(r'(tracefactory_\w+)\{(\w+="(?:[^"\\\n]|\\[\\"n])*"(?:,\w+="(?:[^"\\\n]|\\[\\"n])*")*)\} (\S+)')


def snapshot(host: str = "h:1", **values: Any) -> dict[str, Any]:
    stage = {**dict.fromkeys(STAGE_METRICS, 0), "stage": "short", **values}
    endpoint = {**dict.fromkeys(ENDPOINT_METRICS, 1.5), "host": host}
    models = [{"model": "teacher", "endpoints": [endpoint, {**endpoint, "host": "h:2"}]}]
    return {"pipeline": "p", "version": "1", "stages": [stage, {**stage, "stage": "long"}], "models": models}


def test_a_snapshot_is_text_that_prometheus_reads() -> None:
    text = prometheus_text(snapshot(requests=1234567890123, left_s=None, cost=1e-7))
    types = [line for line in text.splitlines() if line.startswith("#")]
    samples = [SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(samples)
    assert len(types) == len(set(types)) == len(STAGE_METRICS) - 1 + len(ENDPOINT_METRICS)
    values = {(one[1], one[2]): float(one[3]) for one in samples if one}
    assert len(values) == len(samples)
    assert values["tracefactory_stage_requests", 'pipeline="p",version="1",stage="short"'] == 1234567890123
    assert values["tracefactory_stage_cost", 'pipeline="p",version="1",stage="long"'] == 1e-7
    assert values["tracefactory_endpoint_limit", 'pipeline="p",version="1",model="teacher",host="h:2"'] == 1.5
    assert "left_s" not in text


def test_a_label_cannot_end_its_line() -> None:
    text = prometheus_text(snapshot(host='a"} 1\nfake{x="\\'))
    assert all(SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    assert prometheus_text({"pipeline": "p", "version": "1", "stages": [], "models": []}) == ""


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    with closing(MetricsPage("127.0.0.1", 0)) as found:
        yield found


def test_the_newest_text_is_served_and_nothing_else(page: MetricsPage) -> None:
    for text in ("", "a 1\n", "é 2\n"):
        page.text = text
        with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics?x=1", timeout=30) as answer:
            assert answer.read().decode() == text
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{page.port}/etc/passwd", timeout=30)


def test_a_client_that_misbehaves_harms_no_other(page: MetricsPage, capfd: pytest.CaptureFixture[str]) -> None:
    page.text = "a 1\n"
    hung = socket.create_connection(("127.0.0.1", page.port))
    for sent in (
        b"\xff\x00\r\n\r\n",
        b"GET " + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", page.port), timeout=30) as client:
            client.sendall(sent)
    with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=30) as answer:
        assert answer.read() == b"a 1\n"
    hung.close()
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_a_mistake(page: MetricsPage) -> None:
    with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{page.port}.*choose another"):
        MetricsPage("127.0.0.1", page.port)
    with pytest.raises(UserError, match="cannot listen at no such host"):
        MetricsPage("no such host", 0)
