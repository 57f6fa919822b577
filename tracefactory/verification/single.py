"""Verify a single answer from Python."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from tracefactory.answers.thinking import split_thinking
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import canonical
from tracefactory.core.rows import Problem, Thinking, Verdict
from tracefactory.verification.base import VerifyTask, resolve
from tracefactory.verification.pool import VerifierPool

_lock = threading.Lock()
_shared: VerifierPool | None = None


def verify_one(
    gold: str | None,
    answer: str | None = None,
    response: str | None = None,
    kind: str = "auto",
    *,
    question: str = "",
    spec: Mapping[str, Any] | None = None,
    finish_reason: str = "stop",
    **policy: Any,
) -> Verdict:
    """Return the verdict on one answer.

    Args:
        gold: the correct answer, or a worked solution that ends with it.
        answer: the answer itself. Give either this or `response`.
        response: a whole completion that states the answer; thinking in `<think>` tags is not searched.
        kind: the name of a verifier; "auto" selects it by the gold answer.
        question: the question, if options or a test harness need it.
        spec: parameters of the problem (options, unit tests, a reasoning_gym entry).
        finish_reason: the finish reason of the server; "length" means that the response was truncated.
        policy: parameters of the verifier, such as `percent="strict"`.

    Raises:
        UserError: when not exactly one of `answer` and `response` is given, or for unknown kinds and parameters.
    """
    task = make_task(gold, answer, response, kind, question, spec or {}, finish_reason, policy)
    resolve(task)
    global _shared
    with _lock:  # the worker of this pool is started when needed and ends with this process
        if _shared is None:
            _shared = VerifierPool(workers=1)
        pool = _shared
    return pool.verify_now(task)


def make_task(
    gold: str | None,
    answer: str | None,
    response: str | None,
    kind: str,
    question: str,
    spec: Mapping[str, Any],
    finish_reason: str,
    policy: Mapping[str, Any],
) -> VerifyTask:
    """Return the task of one pair; `verify_one` describes the arguments.

    Raises:
        UserError: when not exactly one of `answer` and `response` is given.
    """
    if (answer is None) == (response is None):
        raise UserError("give either `answer` or `response`")
    problem = Problem.make(question=question, answer=gold, verifier=kind, spec=canonical(dict(spec)))
    if response is None:
        text = answer or ""
        return VerifyTask(problem=problem, answer_text=text, policy=json.dumps({"bare": True, **policy}))
    parts = split_thinking(response)
    thinking = Thinking.OPEN if parts.open else Thinking.CLOSED if parts.reasoning else Thinking.NONE
    return VerifyTask(
        problem=problem,
        answer_text=parts.answer,
        reasoning=parts.reasoning,
        thinking=thinking,
        finish_reason=finish_reason,
        policy=json.dumps(dict(policy)),
    )
