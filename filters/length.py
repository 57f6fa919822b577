"""Drop traces that are too short or too long."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tracefactory.filters import Params, Rules, column, column_filter, drop_if


class LengthParams(Params):
    """Bounds, both inclusive; None is no bound, and at least one has to be given.

    Tokens are the server's count for the whole completion (the teacher's tokens, not the student's). Characters are
    counted in `part`: the reasoning, the answer text, or all of it.
    """

    min_tokens: int | None = Field(default=None, ge=1, description="Fewest tokens of the completion.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of the completion.")
    min_characters: int | None = Field(default=None, ge=1, description="Fewest characters of `part`.")
    max_characters: int | None = Field(default=None, ge=1, description="Most characters of `part`.")
    part: Literal["reasoning", "answer", "all"] = Field(default="all", description="What characters are counted in.")

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


@column_filter
def length(params: LengthParams) -> Rules:
    """Keep traces whose length is within the bounds; tokens that the server did not count are a reason of their own."""
    tokens = column("completion_tokens")
    if params.min_tokens is not None or params.max_tokens is not None:
        yield drop_if(tokens <= 0, "tokens_unknown", "the server reported no usage; bound it in characters")
    reasoning, answer = column("reasoning_characters"), column("answer_characters")
    characters = {"reasoning": reasoning, "answer": answer, "all": reasoning + answer}[params.part]
    bounds = (
        (tokens, params.min_tokens, params.max_tokens, "tokens"),
        (characters, params.min_characters, params.max_characters, f"characters in {params.part}"),
    )
    for size, low, high, unit in bounds:
        if low is not None:
            yield drop_if(size < low, "too_short", f"{{}} {unit}, at least {low}", size)
        if high is not None:
            yield drop_if(size > high, "too_long", f"{{}} {unit}, at most {high}", size)
