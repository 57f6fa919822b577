"""The limits of one server against simulated servers, on a clock of the test: nothing of the machine is timed."""

from __future__ import annotations

import heapq
import random
from itertools import pairwise

import pytest

from tracefactory.serving.adaptive_limits import LONGEST_PROBE_S, OPENS_AFTER, AdaptiveLimits


class Limited:
    """A server that accepts `rate` requests per second, with a token bucket of `burst` requests."""

    def __init__(self, rate: float, burst: float, retry_after_s: float | None) -> None:
        self.rate, self.burst, self.retry_after_s = rate, burst, retry_after_s
        self.tokens, self.at = burst, 0.0

    def accepts(self, now: float) -> bool:
        self.tokens, self.at = min(self.burst, self.tokens + (now - self.at) * self.rate), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def simulate(server: Limited, seconds: float, *, most: int = 256, latency_s: float = 0.5) -> list[float]:
    """Send as much as the limits allow; return the times of accepted requests."""
    draw, now, number = random.Random(1), 0.0, 0
    limits, accepted = AdaptiveLimits(most), list[float]()
    ends: list[tuple[float, int, float, bool]] = []
    while now < seconds:
        wait = limits.wait_s(now)
        if wait == 0:
            number += 1
            limits.sent(now)
            good = server.accepts(now)
            if good:
                accepted.append(now)
            heapq.heappush(ends, (now + (latency_s * draw.uniform(0.5, 1.5) if good else 0.02), number, now, good))
            continue
        next_end = ends[0][0] if ends else float("inf")
        now = min(next_end, now + wait if wait is not None else float("inf"))
        while ends and ends[0][0] <= now:
            end, which, sent_at, good = heapq.heappop(ends)
            limits.ended()
            if good:
                limits.answered(end)
            else:
                limits.failed(end, sent_at, which, "429", refused=True, retry_after_s=server.retry_after_s)
    return accepted


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
@pytest.mark.parametrize("burst", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("rate", [5.0, 50.0, 300.0])
def test_the_sustainable_rate_is_found_within_ten_percent(
    rate: float, burst: float, retry_after_s: float | None
) -> None:
    accepted = simulate(Limited(rate, burst, retry_after_s), 300)
    later = [at for at in accepted if at >= 60]
    assert 0.9 * rate <= len(later) / 240 <= 1.02 * rate


def test_a_rate_that_rises_is_used() -> None:
    server = Limited(20, 20, None)
    accepted = simulate(server, 100)
    assert len([at for at in accepted if at >= 60]) / 40 == pytest.approx(20, rel=0.1)

    class Rising(Limited):
        def accepts(self, now: float) -> bool:
            self.rate = 20 if now < 100 else 40
            return super().accepts(now)

    accepted = simulate(Rising(20, 20, None), 400)
    assert len([at for at in accepted if at >= 300]) / 100 == pytest.approx(40, rel=0.1)


def test_single_faults_do_not_slow_a_run_down() -> None:
    limits, draw = AdaptiveLimits(64), random.Random(2)
    for step in range(2000):
        now = step * 0.01
        limits.sent(now)
        limits.ended()
        if draw.random() < 0.2:
            limits.failed(now, now, step, "500", refused=False, retry_after_s=None)
        else:
            limits.answered(now)
    assert limits.limit > 48
    assert limits.opened_at is None


def test_more_is_sent_at_once_only_while_a_server_takes_it() -> None:
    limits = AdaptiveLimits(64)
    for step in range(40):
        limits.failed(float(step), float(step), step % 2, "503", refused=False, retry_after_s=None)
    assert limits.limit < 8
    for step in range(40, 4000):
        limits.answered(float(step))
    assert limits.limit == 64


def test_the_breaker_sends_one_request_at_growing_intervals() -> None:
    limits, now, sent = AdaptiveLimits(16), 0.0, list[float]()
    for request in range(OPENS_AFTER):
        limits.sent(now)
        limits.failed(now, now, request, "refused", refused=False, retry_after_s=None)
        limits.ended()
    assert limits.opened_at is not None
    while now < 600:
        wait = limits.wait_s(now)
        assert wait is not None
        now += wait
        sent.append(now)
        limits.sent(now)
        assert limits.wait_s(now) is None  # one at a time
        limits.ended()
        limits.failed(now + 0.1, now, 1, "refused", refused=False, retry_after_s=None)
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert gaps == sorted(gaps)
    assert max(gaps) == pytest.approx(LONGEST_PROBE_S + 0.1)
    assert len(sent) < 20
    limits.answered(now)
    assert limits.opened_at is None


def test_failures_of_few_requests_do_not_open_the_breaker() -> None:
    limits = AdaptiveLimits(16)
    for step in range(100):
        limits.failed(float(step), float(step), step % 3, "500", refused=False, retry_after_s=None)
    assert limits.opened_at is None
