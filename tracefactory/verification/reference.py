"""math-verify on labelled pairs, in a process of its own.

math-verify reports a time-out as "not equal", and some expressions do not let it stop itself. Here a time-out is a
verifier error: its warnings are counted, and a process that does not answer is killed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import resource
from multiprocessing.connection import Connection
from types import TracebackType

from tracefactory.core.rows import Outcome
from tracefactory.maths.symbolic import library

SECONDS = 30.0
"""Time for one pair; math-verify's own limits are 5 seconds for each text and each comparison."""
_START_SECONDS = 120.0
_BYTES = 4 << 30
_DELIMITERS = ("$", "\\boxed", "\\(", "\\[")


def math_verify_accepts(gold: str, text: str) -> bool:
    """Return whether math-verify accepts an answer, in this process and with math-verify's defaults."""
    return bool(library().verify(library().parse(wrapped(gold)), library().parse(text)))


def wrapped(text: str) -> str:
    """Return a text between math delimiters, which math-verify's documentation requires; as it is if it has some."""
    return text if any(sign in text for sign in _DELIMITERS) else f"${text}$"


class MathVerify:
    """math-verify in a process that is killed and started again when a pair takes too long."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def __enter__(self) -> MathVerify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def judge(self, gold: str, text: str) -> Outcome:
        """Return the verdict on one text.

        Args:
            gold: the correct answer, with or without math delimiters.
            text: what math-verify searches for the answer.

        Returns:
            `UNVERIFIABLE` when it finds no answer in the text, `VERIFIER_ERROR` for a time-out.
        """
        self._connection.send((gold, text))
        with contextlib.suppress(EOFError):  # the process died
            if self._connection.poll(SECONDS):
                return Outcome(self._connection.recv())
        self._stop()
        self._start()
        return Outcome.VERIFIER_ERROR

    def _start(self) -> None:
        self._connection, other = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        if not self._connection.poll(_START_SECONDS):
            raise TimeoutError("math-verify did not start")
        self._connection.recv()

    def _stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


class _Timeouts(logging.Handler):
    """Counts the time-outs that math-verify logs."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning about a time-out."""
        self.count += "Timeout during" in record.getMessage()


def _serve(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    timeouts = _Timeouts(logging.WARNING)
    logger = logging.getLogger("math_verify")
    logger.addHandler(timeouts)
    logger.propagate = False
    library()
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            gold, text = connection.recv()
            timeouts.count = 0
            answer = library().parse(text)
            right = bool(answer) and library().verify(library().parse(wrapped(gold)), answer)
            if right:
                outcome = Outcome.CORRECT
            elif timeouts.count:
                outcome = Outcome.VERIFIER_ERROR
            else:
                outcome = Outcome.INCORRECT if answer else Outcome.UNVERIFIABLE
            connection.send(outcome.value)
