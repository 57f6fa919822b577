"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracefactory.core.errors import Mistake, UserError, nearest

PipelineFile = Annotated[Path, typer.Argument(help="A pipeline: one YAML file.", show_default=False)]
Profile = Annotated[str | None, typer.Option(help="Overlay one of the pipeline's profiles.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change one value, e.g. stages.long.with.samples=8. May be repeated.", metavar="PATH=VALUE"
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="Cap what the pipeline spends: usd, tokens, requests, gpu_hours or wall, e.g. usd=5; of one model as "
        "NAME.usd=5. May be repeated.",
        metavar="WHAT=LIMIT",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N problems of every source.")]
RetryFailed = Annotated[
    str | None,
    typer.Option(
        "--retry-failed",
        metavar="KIND",
        help="Try only the failed rows of one kind again, final ones too, e.g. timeout or bad_request.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ProjectFolder = Annotated[Path, typer.Option("--project", help="A folder of the project.")]


def with_budget(sets: list[str] | None, budget: list[str] | None) -> list[str]:
    """Return the values of `--set` with those of `--budget` as such: `NAME.usd=5` is that of the model NAME."""
    found = list(sets or ())
    for text in budget or ():
        path, equals, value = text.partition("=")
        model, _, what = path.rpartition(".")
        found.append(f"{f'models.{model}.budget' if model else 'budget'}.{what}{equals}{value}")
    return found


def check_kind(kind: str | None) -> None:
    """Check the value of `--retry-failed`.

    Raises:
        UserError: when there is no such kind of failure.
    """
    from tracefactory.serving.failures import FAILURES  # not needed for `--help`

    if kind is not None and kind not in FAILURES:
        raise UserError(Mistake(f"--retry-failed: no kind of failure {kind!r}", hint=nearest(kind, FAILURES)))
