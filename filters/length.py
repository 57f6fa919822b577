"""Drop traces that are too short or too long."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter


class LengthParams(Params):
    """Bounds, both inclusive; None is no bound, and at least one has to be given.

    Tokens are the server's count for the whole completion (the teacher's tokens, not the student's). Characters are
    counted in `part`: the reasoning, the answer text, or all of it.
    """

    min_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    min_characters: int | None = Field(default=None, ge=1)
    max_characters: int | None = Field(default=None, ge=1)
    part: Literal["reasoning", "answer", "all"] = "all"

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        tokens, characters = (self.min_tokens, self.max_tokens), (self.min_characters, self.max_characters)
        if not any((*tokens, *characters)):
            raise ValueError("give at least one of min_tokens, max_tokens, min_characters, max_characters")
        for low, high in (tokens, characters):
            if low is not None and high is not None and low > high:
                raise ValueError(f"the minimum {low} is above the maximum {high}")
        if self.part != "all" and any(tokens):
            raise ValueError(f"tokens are known for the whole completion only; bound the {self.part} in characters")
        return self


@trace_filter
def length(trace: Trace, params: LengthParams) -> Decision:
    """Keep traces whose length is within the bounds; tokens that the server did not count are a reason of their own."""
    if params.min_tokens is not None or params.max_tokens is not None:
        if trace.completion_tokens <= 0:
            return drop("tokens_unknown", "the server reported no usage; bound it in characters")
        decision = _within(trace.completion_tokens, params.min_tokens, params.max_tokens, "tokens")
        if not decision.keep:
            return decision
    parts = {
        "reasoning": (trace.reasoning,),
        "answer": (trace.answer_text,),
        "all": (trace.reasoning, trace.answer_text),
    }
    characters = sum(len(part) for part in parts[params.part])
    return _within(characters, params.min_characters, params.max_characters, f"characters in {params.part}")


def _within(size: int, low: int | None, high: int | None, unit: str) -> Decision:
    if low is not None and size < low:
        return drop("too_short", f"{size} {unit}, at least {low}")
    if high is not None and size > high:
        return drop("too_long", f"{size} {unit}, at most {high}")
    return KEEP
