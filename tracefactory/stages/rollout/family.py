"""`rollout: <name>`: traces made by a registered rollout, an async function over one row with several requests."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tracefactory.core.columns import Column
from tracefactory.core.decisions import KEEP, Made, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Interrupted, Mistake, RunError, UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.gpus import unheld_gpus
from tracefactory.core.model import ChatRequest, Completion, RequestFailed, prompt_bytes
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.refs import find_refs
from tracefactory.core.rollout import ROLLOUTS, Rollout
from tracefactory.core.rows import ID_DIGITS, Kind, Parent, ParentRole, Row, Trace, Verdict
from tracefactory.core.stage import AtMost, Batch, Host, Record, Result, Services, Stage
from tracefactory.stages._measured import kind_taken
from tracefactory.stages._sampling import (
    continued,
    origin_fields,
    prefill_of,
    prefill_versions,
    reply_fields,
    seed_of,
    spent,
    turns_after,
)
from tracefactory.stages._templates import prompt_mistakes
from tracefactory.stages._verdicts import verdicts_by_rule, verifier_versions

Spec = StageSpec[Rollout]

REQUESTS = Column(
    name="rollout_requests", description="Requests of the rollout that the trace is from.", unit="requests"
)


class RolloutStage(Stage[Rollout]):
    """One registered rollout as an operation. It makes at least one row for every sample of every row it is given."""

    verb, version = "rollout", "1"
    takes, makes, judges = frozenset({Kind.PROBLEMS, Kind.TRACES}), Kind.TRACES, False
    host = Host.MODEL

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # one operation for every registered rollout
        self.Params = ROLLOUTS.get(name)  # type: ignore[misc]

    def asks(self, stage: Spec, pipeline: Pipeline) -> str | None:
        return stage.model_names[0] if stage.model_names else None

    def teachers(self, stage: Spec, pipeline: Pipeline) -> frozenset[str]:
        return frozenset(stage.model_names)

    def uses(self, stage: Spec, pipeline: Pipeline) -> Mapping[str, Any]:
        environment = Environment(root=pipeline.project.root)
        verifiers = {"verifiers": verifier_versions(stage, pipeline)} if stage.params.verifies else {}
        prefills = prefill_versions(pipeline, prompts_of(stage))
        return {
            "versions": {"rollout": stage.params.version, **verifiers, **prefills.get("versions", {})},
            "models": {name: pipeline.models[name].identity(environment) for name in sorted(stage.model_names)},
            "prompts": {name: pipeline.prompts[name].digest for name in prompts_of(stage)},
        }

    def columns(self, stage: Spec, pipeline: Pipeline) -> Sequence[Column]:
        return [REQUESTS]

    def check(self, stage: Spec, pipeline: Pipeline) -> list[Mistake]:
        kind = Kind.PROBLEMS if kind_taken(stage, pipeline) is Kind.PROBLEMS else Kind.TRACES
        found = [
            one for name in prompts_of(stage) for one in pipeline.prompts[name].check(kind, stage.params.variables)
        ]
        if not stage.model_names:
            found.append(Mistake(f"the rollout {self.name!r} has no parameter of the type `ModelName`"))
        found += unheld_gpus(stage.model_names, stage, pipeline)
        for model in stage.params.requests_at_most().keys() - set(stage.model_names):
            found.append(Mistake(f"the rollout {self.name!r} bounds requests to {model!r}, no parameter of it"))
        for model, prompts in stage.params.asked_with().items():
            for one in sorted({model} - set(stage.model_names) | (set(prompts) - set(prompts_of(stage)))):
                found.append(Mistake(f"the rollout {self.name!r} has {one!r} in `asked_with`, no parameter of it"))
        return found

    def template_mistakes(self, stage: Spec, pipeline: Pipeline) -> list[Mistake]:
        """Return what the chat template of each model does to the prompts that the rollout may give it."""
        asked_with, models = stage.params.asked_with(), sorted(set(stage.model_names))
        found: list[Mistake] = []
        for model in models:
            for prompt in asked_with.get(model, prompts_of(stage)):
                mistakes = prompt_mistakes(stage, pipeline, prompt, model)
                found += mistakes if len(models) == 1 or model in asked_with else map(_may_be_narrowed, mistakes)
        return found

    def at_most(self, stage: Spec, pipeline: Pipeline, batch: Batch) -> Mapping[str, AtMost]:
        """Return a bound: every request shows its longest prompt and all earlier replies of the rollout."""
        params = stage.params
        bounds = params.requests_at_most()
        replies = sum(bounds.values()) * params.max_tokens
        shown = dict.fromkeys(params.variables, "x" * params.max_tokens)
        prompts = [pipeline.prompts[name] for name in prompts_of(stage)]
        found = dict.fromkeys(bounds, AtMost())
        for row in batch.rows:
            sizes = [prompt_bytes(prompt.messages_for(row, **shown)) for prompt in prompts]
            longest = max(sizes, default=0) + replies
            for model, count in bounds.items():
                requests = count * params.samples
                found[model] += AtMost(requests, requests * longest, requests * params.max_tokens)
        return found

    async def run(self, stage: Spec, batch: Batch, services: Services) -> Result:
        models = services.pipeline.models
        identities = {name: models[name].identity(services.environment) for name in sorted(stage.model_names)}
        samples = range(stage.params.samples)
        asked = [RowAsk(stage, services, identities, row, index) for row in batch.rows for index in samples]
        outcomes = await asyncio.gather(*map(_roll, asked), return_exceptions=True)
        for outcome in outcomes:  # after all of them: what was in flight is stored
            if isinstance(outcome, BaseException):
                raise outcome
        made = [one for outcome in outcomes if not isinstance(outcome, BaseException) for one in outcome]
        records = {key: record for one in asked for key, record in one.records.items()}
        return Result(made=made, numbers=spent(list(records.values()), services.run_id))


def _may_be_narrowed(mistake: Mistake) -> Mistake:
    """Return a mistake with the way out where the rollout never gives this prompt to this model."""
    hint = "where the rollout never gives this model this prompt, say so in its `asked_with`"
    return replace(mistake, hint=f"{mistake.hint}; {hint}" if mistake.hint else hint)


def prompts_of(stage: Spec) -> list[str]:
    """Return the names of the prompts that the parameters of a rollout refer to."""
    return sorted({one.name for one in find_refs(type(stage.params), stage.params) if one.kind == "prompt"})


class RowAsk:
    """Asks the models of one rollout about one row, see `core.rollout.Ask`. It holds the rollout to its bounds."""

    def __init__(
        self, stage: Spec, services: Services, identities: Mapping[str, dict[str, Any]], row: Row, index: int
    ) -> None:
        self.stage, self.services, self.identities, self.row, self.index = stage, services, identities, row, index
        self.prompts = prompts_of(stage)
        self.problem = row.problem if isinstance(row, Trace) else row
        self.records: dict[str, Record] = {}
        self.owed: RequestFailed | None = None  # a failure that another run should try again
        self._left = dict(stage.params.requests_at_most())

    async def __call__(
        self,
        model: str,
        prompt: str,
        *,
        after: Trace | None = None,
        sample: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **variables: Any,
    ) -> Trace:
        params, pipeline = self.stage.params, self.services.pipeline
        tokens = params.max_tokens if max_tokens is None else max_tokens
        self._count(model, prompt, tokens)
        messages: list[Any] = pipeline.prompts[prompt].messages_for(self.row, **variables)
        if after is not None:
            messages = continued(after, messages)
        warmth = params.temperature if temperature is None else temperature
        seed = seed_of(params.seed, self.row, self.row.id, self.index)
        if sample:
            seed = int(digest({"seed": seed, "request": sample})[:8], 16) >> 1
        request = ChatRequest(
            model_identity=self.identities[model],
            messages=tuple(dict(message) for message in messages),
            params={"temperature": warmth, "top_p": params.top_p, "max_tokens": tokens, "seed": seed},
            sample_index=self.index,
            near=self.problem.id,
        )
        (answer,) = await self.services.complete(model, [request], self.stage.id)
        if isinstance(answer, RequestFailed):
            self.owed = answer if answer.retryable else self.owed
            raise answer
        self.records[request.key] = answer
        completion = Completion.model_validate(answer["completion"])
        return Trace(
            id=digest({"stage": self.stage.id, "problem": self.problem.id, "request": request.key})[:ID_DIGITS],
            problem=self.problem,
            parents=self.parents,
            turns=() if after is None else turns_after(after, messages),
            op=self.stage.op,
            stage=self.stage.id,
            sample_index=self.index,
            seed=seed,
            temperature=warmth,
            request_key=request.key,
            cost=answer["cost"],
            **origin_fields(model, prompt, messages, self.services),
            **reply_fields(completion, prefill_of(request), opened_in_prompt=pipeline.prompts[prompt].opened_in_prompt),
        )

    async def verify(self, reply: Trace) -> Verdict:
        if not self.stage.params.verifies:
            raise TypeError("it calls ask.verify without declaring `verifies = True`")
        (verdict,) = await verdicts_by_rule([reply], self.services)
        return verdict

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The parents of the traces of this rollout: the trace that it is about."""
        return (Parent(id=self.row.id, role=ParentRole.REVISES),) if isinstance(self.row, Trace) else ()

    def _count(self, model: str, prompt: str, max_tokens: int) -> None:
        """Raise an error for a request that the parameters of the rollout do not allow."""
        if prompt not in self.prompts:
            raise ValueError(f"it uses the prompt {prompt!r}, which is the value of none of its parameters")
        if prompt not in self.stage.params.asked_with().get(model, self.prompts):
            raise ValueError(f"it gives {prompt!r} to {model!r}, which is not in its `asked_with`")
        if max_tokens > self.stage.params.max_tokens:
            raise ValueError(f"it asks for {max_tokens} tokens, more than max_tokens: {self.stage.params.max_tokens}")
        if self._left.get(model, 0) < 1:
            bound = self.stage.params.requests_at_most().get(model, 0)
            raise ValueError(f"it sends more than the {bound} requests to {model!r} that requests_at_most() allows")
        self._left[model] -= 1


async def _roll(ask: RowAsk) -> list[Made]:
    """Run one rollout of one row; return its traces, or one failed row."""
    stage, failure = ask.stage, None
    row_id = digest({"stage": stage.id, "row": ask.row.id, "rollout": ask.index})[:ID_DIGITS]  # of a failed one
    traces: list[Trace] = []
    try:
        if (left := ask.services.left_failure(stage.id, row_id)) is not None:
            raise left
        returned = await stage.params.run(ask.row, ask)
        traces = [returned] if isinstance(returned, Trace) else list(returned)
        _check_traces(traces, ask)
    except RequestFailed as error:
        failure = error
    except (Interrupted, RunError, UserError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{frame.filename}:{frame.lineno}"
        message = f"{stage.id}: the rollout {stage.name!r} failed on problem {ask.problem.id}: "
        raise RunError(f"{message}{type(error).__name__}: {error} ({at})") from error
    failure = ask.owed or failure  # a rollout that catches a failure would give other traces when it succeeds
    if failure is not None:
        trace = Trace(
            id=row_id,
            problem=ask.problem,
            parents=ask.parents,
            op=stage.op,
            stage=stage.id,
            sample_index=ask.index,
            finish_reason="error",
        )
        return [Made(trace, fail(failure.kind, str(failure), owed=failure.retryable))]
    costs = [record["cost"] for record in ask.records.values()]
    cost = None if None in costs else sum(costs) / len(traces)
    requests = float(len(ask.records))
    changed = (
        one.model_copy(update={"cost": cost, "measures": {**one.measures, REQUESTS.name: requests}}) for one in traces
    )
    return [Made(one, KEEP) for one in changed]


def _check_traces(traces: Sequence[Trace], ask: RowAsk) -> None:
    """Raise ValueError unless the traces of a rollout are replies to its own requests, each once."""
    if not traces:
        raise ValueError("it returned no trace; a row must not disappear")
    if foreign := [one for one in traces if one.request_key not in ask.records or one.problem_id != ask.problem.id]:
        raise ValueError(f"it returned the trace {foreign[0].id}, which is no reply to a request of this rollout")
    if len({one.id for one in traces}) < len(traces):
        raise ValueError("it returned one reply twice; number equal requests with `sample=`")


make = RolloutStage
"""Returns the operation of one rollout."""
