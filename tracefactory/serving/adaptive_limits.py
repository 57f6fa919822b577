"""How fast one server is asked: limits that adapt to what it refuses, and a circuit breaker.

`AdaptiveLimits` holds the state of one server and has no clock; `serving.dispatch` waits by it.

- Concurrency: additive increase, multiplicative decrease (Chiu and Jain, 1989) while more than `BUSY` of the requests
  fail; single faults do not slow a run down. Failures that were sent before the last decrease do not count again.
- Rate: after a 429 the rate at which the server accepts requests is measured and kept for a while, and then raised
  slowly until the next one. Waits that the server asks for (Retry-After) hold for all requests to it.
- Circuit breaker: after several failures in a row, of several requests and without an answer between them, one request
  at a time is sent, after growing pauses, until one is answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

DECREASE = 0.7
BUSY = 0.4
"""Share of failures, of about the last 20 requests, above which fewer are sent at once."""
STEP = 0.97
"""Factor of the rate after a refusal; the rate is lower where the server has accepted less."""
SLOW_START_STEP = 0.65
"""The factor at the first refusal after a slow start, in which the rate has doubled every second."""
STEPS = 6
"""Steps down after which the rate goes by what the server has accepted meanwhile."""
GROWTH = 0.01
"""Growth of the rate per second after a time without refusals; it doubles every 4 s without one."""
HOLD_S, LONGEST_HOLD_S = 2.0, 60.0
"""Seconds without growth after a refusal; they double every time."""
OPENS_AFTER = 8
"""Failures in a row, of at least `OPENS_REQUESTS` requests, that open the breaker."""
OPENS_REQUESTS = 4
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 60.0
_WEIGHT = 0.05
_LATE_S = 0.02  # timers fire late; that much is made up for
_REFUSED_S = 0.5  # pause after a 429 without Retry-After


@dataclass
class AdaptiveLimits:
    """The limits of requests to one server. Times are seconds of any one clock.

    Attributes:
        most: the greatest number of requests in flight.
        in_flight: requests sent and not ended.
        answered_at: when it last answered, None before the first answer.
        paused_until: nothing is sent before this time.
        opened_at: when the breaker opened, None while it is closed.
        reason: why nothing or little is sent, for the display.
    """

    most: int
    in_flight: int = 0
    answered_at: float | None = None
    paused_until: float = 0.0
    opened_at: float | None = None
    reason: str = ""
    limit: float = 0.0
    answers: int = 0
    refusals: int = 0  # 429
    faults: int = 0  # other failures
    rate: float | None = None  # requests per second, None without a limit
    _next_at: float = 0.0
    _hold_s: float = HOLD_S
    _grown_at: float = 0.0  # the rate has grown until then
    _held_since: float = 0.0
    _held_until: float = 0.0
    _found: bool = False  # a rate was refused before; until then it doubles every second
    _sent: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    _steps: list[float] = field(default_factory=list)  # the rates of this hold
    _changed_at: float = float("-inf")
    _counts: list[int] = field(default_factory=lambda: [0, 0])  # sent and refused in this hold
    _decreased_at: float = float("-inf")
    _probe_s: float = FIRST_PROBE_S
    _failed: set[object] = field(default_factory=set)  # requests that failed since the last answer
    _failures: int = 0
    _share: float = 0.0  # of failures, a moving average

    def __post_init__(self) -> None:
        self.limit = float(self.most)

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until a request may be sent, 0 for now, None until one in flight has ended."""
        if self.in_flight >= (1 if self.opened_at is not None else int(self.limit)):
            return None
        return max(0.0, self.paused_until - now, self._next_at - now if self.rate is not None else 0.0)

    def sent(self, now: float) -> None:
        """Count a request that is sent."""
        self.in_flight += 1
        self._sent.append(now)
        self._counts[0] += 1
        if self.rate is None:
            return
        if now > self._grown_at:
            # Otherwise the limit of requests in flight is the lower one.
            bound = now - self._next_at < max(1 / self.rate, _LATE_S)
            seconds = min(now - self._grown_at, 1.0) if bound else 0.0
            growth = GROWTH * 2.0 ** ((now - self._held_until) // 4) if self._found else 1.0
            self.rate *= 1 + min(growth, 0.2 if self._found else 1.0) * seconds
            self._grown_at = now
            self._steps.clear()
        late = now - self._next_at <= _LATE_S  # no more than a timer is: keep to the times that were planned
        self._next_at = (self._next_at if late else now) + 1 / self.rate

    def ended(self) -> None:
        """Count a request that has ended, with an answer or without."""
        self.in_flight -= 1

    def answered(self, now: float) -> None:
        """Note an answer to a request; a refusal of a single request is one too, because the server works."""
        self.answered_at, self.opened_at, self._probe_s, self._failures, self.reason = now, None, FIRST_PROBE_S, 0, ""
        self._failed.clear()
        self.answers += 1
        self._share *= 1 - _WEIGHT
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def failed(
        self, now: float, sent_at: float, request: object, reason: str, *, refused: bool, retry_after_s: float | None
    ) -> None:
        """Note a failure that tells of the state of the server.

        Args:
            now: when it was noticed.
            sent_at: when the request was sent.
            request: the request, to count how many different ones fail.
            reason: what happened.
            refused: whether the server refused it because of its rate (429).
            retry_after_s: the wait that the server asks for.
        """
        self._failed.add(request)
        self._failures += 1
        self.refusals += refused
        self.faults += not refused
        self.reason = reason
        pause = retry_after_s if retry_after_s is not None else _REFUSED_S if refused else 0.0
        self.paused_until = max(self.paused_until, now + pause)
        self._share += _WEIGHT * (1 - self._share)
        if self._share > BUSY and sent_at >= self._decreased_at:
            self._decreased_at = now
            self.limit = max(1.0, self.limit * DECREASE)
        if refused:
            self._counts[1] += 1
            # Refusals that cost no wait need no rate, while they are few.
            costs = self.rate is not None or pause > 0 or self._share > BUSY / 2
            if costs and sent_at >= self._changed_at:
                self._lower_rate(now)
        if self.opened_at is not None:
            if sent_at >= self.opened_at:  # a probe; the others were sent before
                self._probe_s = min(LONGEST_PROBE_S, 2 * self._probe_s)
        elif self._failures >= OPENS_AFTER and len(self._failed) >= OPENS_REQUESTS:
            self.opened_at = now
        if self.opened_at is not None:
            self.paused_until = max(self.paused_until, now + self._probe_s)

    def silent_s(self, now: float) -> float:
        """Return the seconds since the breaker opened; 0 while it is closed."""
        return 0.0 if self.opened_at is None else now - self.opened_at

    def _lower_rate(self, now: float) -> None:
        """Lower the rate after a refusal of a request that was sent at the present one."""
        self._changed_at = now
        sent, refused = self._counts
        if self.rate is None:  # the first refusal: start slowly
            self.rate, self._grown_at, self._counts = float(max(1, sent - refused)), now + _REFUSED_S, [0, 0]
            return
        if not self._steps:
            self._hold_s = min(LONGEST_HOLD_S, 2 * self._hold_s) if self._found else HOLD_S
            self._counts, self._held_since = [0, 0], now
        first = not self._found
        self._found, self._grown_at, self._held_until = True, now + self._hold_s, now + self._hold_s
        self._steps.append(self.rate)
        # The rate may be far above what is sent, where the requests in flight are the lower limit.
        step = SLOW_START_STEP if first else STEP if len(self._steps) == 1 else STEP**2
        self.rate = min(step * self.rate, 1.1 * len(self._sent) / max(now - self._sent[0], 1e-3))
        if len(self._steps) > STEPS:
            accepted = (sent - refused) / (now - self._held_since)
            if accepted > DECREASE * self._steps[0]:  # fewer requests are not refused less: it is not the rate
                self.rate, self._changed_at = self._steps[0], self._held_until
            else:
                self.rate = min(self.rate, 1.25 * accepted)
