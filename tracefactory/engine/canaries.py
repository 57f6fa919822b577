"""Run the canary of every model and stage once; that it passed is on file, so that other processes and runs skip it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunStopped
from tracefactory.core.files import write_json
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.stage import Record
from tracefactory.serving.canary import CHECKS, OF_ANY_STAGE, Answered, chosen, faults
from tracefactory.serving.logprobs_mode import Ask, logprobs_fault

Pay = Callable[[ChatRequest], Awaitable[Record]]


class Canaries:
    """The canaries of one process; `folder` holds one file for each that passed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._passed: set[str] = set()

    async def check(
        self,
        model: str,
        spec: ModelSpec,
        stage: tuple[str, str],
        requests: Sequence[ChatRequest],
        pay: Pay,
        ask: Ask,
        *,
        samples: bool,
    ) -> None:
        """Send the first requests of a stage and look at the answers, unless that was done before.

        Args:
            model: the name of the model in the pipeline.
            spec: the model.
            stage: the id and the key of the stage.
            requests: requests that have no completion yet.
            pay: sends a request and stores its completion.
            ask: sends a request whose completion is not stored.
            samples: whether the stage samples traces, so that all checks apply.

        Raises:
            RunStopped: when a check finds a fault; it says what was seen and what to change.
        """
        name = digest({"model": requests[0].model_identity, "stage": stage[1]})[:32]
        file = self.folder / f"{name}.json"
        async with self._locks[name]:
            if name in self._passed or file.exists():
                self._passed.add(name)
                return
            if requests[0].params.get("logprobs") and "logprobs" not in spec.skip_checks:
                await _check_logprobs(model, stage[0], requests[0], ask)
            first = chosen(requests)
            outcomes: list[Any] = await asyncio.gather(*map(pay, first), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, RequestFailed):
                    raise outcome
            answers = [
                Answered(request, Completion.model_validate(outcome["completion"]))
                for request, outcome in zip(first, outcomes, strict=True)
                if not isinstance(outcome, BaseException)
            ]
            if not answers:
                return  # failures have their own rules; the next batch is the canary
            if found := faults(answers, spec, CHECKS if samples else OF_ANY_STAGE):
                seen = "; ".join(f"{one.seen} ({one.remedy})" for one in found)
                skipped = ", ".join(dict.fromkeys(one.check for one in found))
                raise RunStopped(
                    f"{stage[0]}: the first answers of {model} show a fault: {seen}. {len(answers)} requests "
                    f"were paid and are stored. If this is right, set `skip_checks: [{skipped}]` of the model"
                )
            write_json(file, {"model": model, "stage": stage[0], "requests": [one.key for one, _ in answers]})
            self._passed.add(name)


async def _check_logprobs(model: str, stage_id: str, request: ChatRequest, ask: Ask) -> None:
    """Raise RunStopped unless the server of a model reports the model's own log-probabilities."""
    if (fault := await logprobs_fault(request, ask)) is not None:
        seen, remedy = fault
        raise RunStopped(f"{stage_id}: the server of {model}: {seen}; {remedy}. Nothing else was paid for")
