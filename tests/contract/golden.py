"""What keys and ids hang on, as one JSON value; `python -m tests.contract.golden` writes it into golden.json.

It covers everything that is registered in the package: an operation, model kind, verifier, view, pruner, source or
decoder that is added later has to be added to golden_project too. Writing refuses to change a key, a digest or a
default whose thing keeps its version: users would pay again, or get other rows under an old key.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tracefactory.config import load_pipeline
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.columns import VERDICT, Column
from tracefactory.core.decisions import KEEP, Made
from tracefactory.core.digests import table_digest
from tracefactory.core.environment import Environment
from tracefactory.core.fingerprint import digest
from tracefactory.core.keys import model_digest
from tracefactory.core.model import MODELS, ChatRequest, RequestFailed
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import ID_DIGITS, Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.core.stage import STAGES, Batch, stage_of
from tracefactory.core.tables import Table, made_table
from tracefactory.decoding.decoder import DECODERS
from tracefactory.engine.identity import identities
from tracefactory.pruning import PRUNERS
from tracefactory.publish.views import VIEWS
from tracefactory.reading.base import SOURCES
from tracefactory.stages._sampling import SampleStage
from tracefactory.verification.base import VERIFIERS

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
PROJECT = HERE / "golden_project"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCORED = frozenset({"prune:answer_likelihood"})
"""Operations, besides `measure:`, whose student scores text, for which no completion is asked."""
MODEL_KINDS: Mapping[str, Mapping[str, Any]] = {
    "anthropic": {"model": "claude", "extra": {"thinking": {"type": "enabled", "budget_tokens": 2048}}},
    "fake": {"model": "teacher", "script": {"accuracy": 0.5, "seed": 1}},
    "local": {"model": str(PROJECT / "data" / "weights.gguf")},
    "openai": {"model": "big", "base_url": "http://localhost:1/v1", "extra": {"effort": "high"}},
    "transformers": {"model": "org/student", "revision": COMMIT},
    "vllm": {"model": "org/served", "revision": COMMIT, "engine_args": {"dtype": "bfloat16"}},
}
PROBLEM = Problem.make(question="What is 6 times 7?", answer="42", verifier="math", source="golden", domain="sums")
TRACE = Trace(
    id=digest("golden")[:ID_DIGITS],
    problem=PROBLEM,
    teacher="teacher",
    style="long",
    reasoning="6 * 7 is 6 * 5 + 6 * 2.\n\nThat is 30 + 12.\n\nSo it is 42.\n\nWait, let me check: 42 / 7 = 6.\n\nYes.",
    answer_text="The answer is 42.",
    thinking=Thinking.CLOSED,
    completion_tokens=60,
    verdict=Verdict(outcome=Outcome.CORRECT, extracted="42", method="given", verifier="math", version="1"),
    measures={"pass_rate": 0.5},
)


def pipeline() -> Pipeline:
    return load_pipeline(PROJECT / "pipelines" / "everything.yaml", environ={})


def golden() -> dict[str, Any]:
    """Return everything that is pinned, by what it is."""
    loaded = pipeline()
    keys = identities(loaded)
    return {
        "stages": {
            stage.id: {"op": stage.op, "version": _versions(stage, loaded), "key": keys[stage.id].key}
            for stage in loaded.stages
        },
        "requests": {
            stage.id: {"op": stage.op, "version": stage_of(stage).version, "keys": list(asked_by(stage, loaded))}
            for stage in loaded.stages
        },
        "models": {name: {"identity": model_digest(_model(name).identity(Environment()))} for name in MODELS},
        "scores": {
            "student": Checkpoint(model="org/student", revision=COMMIT).key(),
            **{name: _model(name).scores_key(Environment()) for name in ("transformers", "vllm")},
        },
        "operations": {name: _described(STAGES.get(name).version, STAGES.get(name).Params) for name in STAGES},
        "decoders": {name: _described(DECODERS.get(name).version, DECODERS.get(name)) for name in DECODERS},
        "pruners": {name: _described(PRUNERS.get(name).version, PRUNERS.get(name)) for name in PRUNERS},
        "sources": {name: _described(SOURCES.get(name).version, SOURCES.get(name).Params) for name in SOURCES},
        "verifiers": {name: _described(VERIFIERS.get(name).version, VERIFIERS.get(name).Params) for name in VERIFIERS},
        "views": {name: _view(name) for name in VIEWS},
        "rows": {
            "problem": PROBLEM.id,
            "problem in version 1": PROBLEM.id_v1,
            "digest of problems": table_digest(made_table(Table.PROBLEMS, [Made(PROBLEM, KEEP)])),
            "digest of traces": table_digest(made_table(Table.TRACES, [Made(TRACE, KEEP)])),
        },
    }


def asked_by(stage: StageSpec[Any], loaded: Pipeline) -> Iterator[list[str]]:
    """Yield the keys, of this version and of version 1, of what a stage asks first about one row."""
    op = stage_of(stage)
    kind = "problems" if stage.inputs and loaded.stage(stage.inputs[0]).verb == "source" else "traces"
    batch = Batch(problems=[PROBLEM]) if kind == "problems" else Batch(traces=[TRACE])
    if isinstance(op, SampleStage):
        for wanted in op.wanted(stage, loaded, batch) or ():
            yield [wanted.key, wanted.key_v1()]
    elif op.asks(stage, loaded) is not None and stage.verb != "measure" and stage.op not in SCORED:
        services = Recording(loaded)
        asyncio.run(op.run(stage, batch, services))  # type: ignore[arg-type]  # it has what these stages use
        for request in services.requests:
            yield [request.key, request.key_v1]


class Recording:
    """Services that write down what is asked, answer nothing and hold every answer for right."""

    run_id, environment, state_dir = "", Environment(root=PROJECT), PROJECT

    def __init__(self, loaded: Pipeline) -> None:
        self.pipeline, self.verifiers = loaded, self
        self.requests: list[ChatRequest] = []

    async def complete(self, model: str, requests: Sequence[ChatRequest], stage_id: str) -> list[RequestFailed]:
        self.requests += requests
        return [RequestFailed("timeout", "nothing is sent", attempts=1, retryable=True) for _ in requests]

    def left_failure(self, stage_id: str, row_id: str) -> None:
        return None

    async def verify(self, tasks: Sequence[Any]) -> list[Verdict]:
        return [TRACE.verdict for _ in tasks if TRACE.verdict]


def _versions(stage: StageSpec[Any], loaded: Pipeline) -> dict[str, Any]:
    """Return the versions that a stage's key holds, by stage: its own and those above it."""
    return {
        one.id: [stage_of(one).version, stage_of(one).uses(one, loaded).get("versions", {})]
        for one in (stage, *loaded.above(stage))
    }


def _model(name: str) -> Any:
    return MODELS.get(name).model_validate({"use": name, **MODEL_KINDS[name]})


def _described(version: str, params: type[BaseModel]) -> dict[str, Any]:
    """Return a version and the defaults under it: keys leave out what is at its default, so defaults are pinned."""
    found = {name: field for name, field in params.model_fields.items() if not field.is_required()}
    empty = params.model_construct()
    dumped = empty.model_dump(mode="json", include=set(found))
    return {"version": version, "defaults": dumped}


def _view(name: str) -> dict[str, Any]:
    view = VIEWS.get(name)
    columns: list[Column] = [VERDICT]
    return {"version": view.version, "schema": [str(field) for field in view.schema(columns)]}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what of `old` is another one in `new` though its version is the same; what is added is no change."""
    found = []
    for part, entries in old.items():
        for name, entry in entries.items():
            other = new.get(part, {}).get(name)
            same = not isinstance(entry, dict) or entry.get("version") == (other or {}).get("version")
            if other is not None and same and not _extends(entry, other):
                found.append(f"{part}: {name}")
    return found


def _extends(old: Any, new: Any) -> bool:
    """Tell whether a value is as it was, or a mapping with further entries."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _extends(value, new[name]) for name, value in old.items())
    return bool(old == new)


def main() -> None:
    """Write golden.json anew, where nothing changed under its version."""
    new = golden()
    changed = changes(json.loads(GOLDEN.read_text()), new) if GOLDEN.exists() else []
    if changed and "--force" not in sys.argv:
        sys.exit("changed, and their versions are the same:\n" + "\n".join(changed))
    GOLDEN.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
