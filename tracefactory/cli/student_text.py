"""Print a student's view of a trace: its unlikely tokens and the surprisal of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import indent

import typer

from tracefactory.students.view import StudentView, UnlikelyToken

_BEFORE, _AFTER = 24, 16  # characters around a token that is quoted
_BAR = 20  # characters of the longest bar


def view_lines(view: StudentView, *, colour: bool) -> Iterator[str]:
    """Yield the lines of a view: the marked text, its least likely tokens, and its steps.

    Args:
        view: the view.
        colour: whether the terminal shows colours.
    """
    least = "the least likely" if not view.below else f"{view.below} below p = {view.threshold:g}"
    yield (
        f"\nunder the student {view.student}: {view.tokens} tokens, {least}; mean surprisal "
        f"{view.mean_surprisal:.3f} nats, rank-surprisal {view.rank_surprisal:.3f}"
    )
    yield indent(marked(view, colour=colour), "  ")
    yield "  least likely tokens"
    width = max((len(quoted(view.text, one)) for one in view.least), default=0)
    for one in view.least:
        likeliest = "" if one.instead is None else f"  the student's likeliest token is {one.instead!r}"
        yield f"    {quoted(view.text, one):<{width}}  p {one.p:.2g}, rank {one.rank:,}{likeliest}"
    yield "  steps, by mean surprisal in nats per token"
    highest = max((step.surprisal or 0.0 for step in view.steps), default=0.0)
    for number, step in enumerate(view.steps, start=1):
        text = " ".join(step.text.split())[:60]
        if step.surprisal is None:
            yield f"    {number:>3} {'-':>6} {'':<{_BAR}} {'':>4}  {text}"
        else:
            bar = "█" * round(_BAR * step.surprisal / highest) if highest else ""
            yield f"    {number:>3} {step.surprisal:6.3f} {bar:<{_BAR}} {step.tokens:>4} tokens  {text}"


def marked(view: StudentView, *, colour: bool) -> str:
    """Return the text with its unlikely spans in red, or, without colours, between ⟪ and ⟫."""
    parts, done = [], 0
    for start, end in view.marked:
        span = view.text[start:end]
        parts += [view.text[done:start], typer.style(span, fg="red", bold=True) if colour else f"⟪{span}⟫"]
        done = end
    return "".join([*parts, view.text[done:]]).rstrip("\n")


def quoted(text: str, one: UnlikelyToken) -> str:
    """Return a token with the text before and after it, on one line."""
    before, after = text[max(0, one.start - _BEFORE) : one.start], text[one.end : one.end + _AFTER]
    return f"...{before}⟪{one.token}⟫{after}...".replace("\n", "⏎")
