"""Every field of the trace: problem, reasoning, answer, verdict and provenance. No trace is refused for its content."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tracefactory.core.model import public_name
from tracefactory.core.rows import Frozen, Outcome, Parent, Passage, StepLabel, Tool, Trace, Turn
from tracefactory.publish.views import Row, declared_values, trace_view


class RawProblem(Frozen):
    """The problem of a trace."""

    id: str = Field(description="A hash of question and gold answer.")
    question: str = Field(description="The question.")
    answer: str | None = Field(description="The gold answer.")
    answers: list[str] = Field(description="Further answers that are as good.")
    context: list[Passage] = Field(description="Passages that belong to the problem.")
    tests: list[str] = Field(description="Programs that check an answer.")
    tools: list[Tool] = Field(description="Tools that may be called.")
    verifier: str = Field(description="The verifier that the source names.")
    spec: str = Field(description="The verifier's parameters, a JSON object.")
    domain: str = Field(description="The domain.")
    source: str = Field(description="Where the problem came from.")
    licence: str = Field(description="The licence of the problem.")
    meta: str = Field(description="What else the source knows, a JSON object.")


class RawVerdict(Frozen):
    """The verdict on the answer."""

    outcome: str = Field(description="correct, incorrect, unverifiable or verifier_error.")
    extracted: str | None = Field(description="The answer that was found in the text.")
    span_start: int | None = Field(description="Where it starts in the answer text.")
    span_end: int | None = Field(description="Where it ends.")
    confidence: float | None = Field(
        default=None, description="How surely the text states that answer, from 0 to 1 (docs/verdicts.md)."
    )
    method: str = Field(description="The rule that decided.")
    verifier: str = Field(description="The verifier.")
    version: str = Field(description="Its version.")
    detail: str | None = Field(description="More, for a person; null for a verifier_error.")


class RawRow(Frozen):
    """One trace with all of its fields."""

    id: str = Field(description="The id of the trace.")
    problem_id: str = Field(description="The id of its problem.")
    problem: RawProblem = Field(description="The problem.")
    parents: list[Parent] = Field(description="The traces it was made from, and what it is to them.")
    op: str = Field(description="The kind of operation that wrote it.")
    stage: str = Field(description="The stage of the pipeline that wrote it.")
    teacher: str = Field(description="The model that wrote it, by its name in the pipeline.")
    model: str = Field(description="The model; of a path, the last part alone.")
    revision: str = Field(description="Its revision.")
    prompt: str = Field(description="The prompt, by its name in the project.")
    prompt_digest: str = Field(description="The digest of the prompt's template.")
    messages_digest: str = Field(description="The digest of the messages that were sent; empty where none were.")
    system: str | None = Field(description="The system message that the teacher was given.")
    style: str = Field(description="The style of the prompt.")
    sample_index: int = Field(description="The number of the sample, from 0.")
    seed: int | None = Field(description="The seed of the request.")
    temperature: float | None = Field(description="The sampling temperature.")
    request_key: str = Field(description="The key of the completion in the request store.")
    reasoning: str = Field(description="The reasoning of the last turn.")
    answer_text: str = Field(description="The text after the reasoning.")
    turns: list[Turn] = Field(description="The turns between the question and the last one.")
    steps: list[StepLabel] = Field(description="Labels on steps of the reasoning.")
    thinking: str = Field(description="How the reasoning was delimited: closed, open or none.")
    finish_reason: str = Field(description="The server's word for why the completion ended.")
    refusal: str | None = Field(description="The text of a refusal.")
    prompt_tokens: int = Field(description="Tokens of the prompt, as the server counted them.")
    completion_tokens: int = Field(
        description="Tokens of the completion, as the server counted them; of a pruned trace an estimate from that."
    )
    cost: float | None = Field(description="US dollars; null where the price is unknown.")
    verdict: RawVerdict | None = Field(description="The verdict on the answer.")
    derivation: str = Field(description="How a pruned trace came from its parent, a JSON object.")


@trace_view(
    name="raw",
    version="5",
    summary="Every field of the trace: problem, reasoning, answer text, verdict, provenance, tokens, cost, measures.",
    row=RawRow,
    columns_too=True,
    texts=(),
)
def raw(trace: Trace) -> Row:
    """Return all fields of the trace, with the declared columns of stages in `measures` and `fields`."""
    if trace.verdict is not None and trace.verdict.outcome is Outcome.VERIFIER_ERROR:
        # It may tell of the machine: a message with paths or addresses, the end of a log.
        trace = trace.model_copy(update={"verdict": trace.verdict.model_copy(update={"detail": None})})
    private = {"seconds", "log"}
    excluded: Any = {"problem": {"fields", "measures"}, "verdict": private, "fields": True, "measures": True}
    return {
        **trace.model_dump(mode="json", exclude=excluded),
        "model": public_name(trace.model),
        "problem_id": trace.problem_id,
        **declared_values(trace),
    }
