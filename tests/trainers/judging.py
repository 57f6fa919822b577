"""Whether what carries loss is what we mean: the text of every message to train on, exactly, or a named finding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from tests.trainers.students import Student, called


class Turn(NamedTuple):
    """One message of the assistant; of a masked one, `kept` is the text without what was cut.

    `calls` are the tools that it calls, with their arguments.
    """

    reasoning: str
    answer: str
    kept: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()


class Meant(NamedTuple):
    """What is to be trained: messages of the assistant, all of them or the last, and the kind of the row."""

    turns: tuple[Turn, ...]
    last_only: bool

    @property
    def kind(self) -> str:
        if len(self.turns) > 1 and not any(turn.calls for turn in self.turns):
            return "multi-turn"
        return "plain" if any(turn.reasoning for turn in self.turns) else "without reasoning"


def meant(view: str, row: Mapping[str, Any]) -> list[Meant]:
    """Return what we mean with a row of a view; a pair is two."""
    if view in ("preference", "ranking"):
        before = row["prompt"] if view == "preference" else row["messages"]
        sides = [row[side][0] if view == "preference" else row[side] for side in ("chosen", "rejected")]
        return [Meant(tuple(_turns([*before, side])), last_only=True) for side in sides]
    messages = [*row["prompt"], *row["completion"]] if view == "sft" else row[_COLUMN.get(view, "messages")]
    return [Meant(tuple(_turns(messages)), last_only=view in ("sft", "masked"))]


_COLUMN = {"masked": "masked_messages"}
_TAG = "<think>\n"


def _turns(messages: Sequence[Mapping[str, Any]]) -> Iterator[Turn]:
    for message in messages:
        if message["role"] != "assistant":
            continue
        content, detail = str(message["content"]), message.get("train_detail")
        kept = [content[one["begin_offset"] : one["end_offset"] + 1] for one in detail or () if one["train"]]
        before, closed, answer = content.partition("\n</think>\n\n")
        reasoning = before.removeprefix(_TAG) if closed else str(message.get("reasoning_content") or "")
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = tuple((one["name"], json.loads(one["arguments"])) for one in functions)
        yield Turn(reasoning, answer if closed else content, "".join(kept) if detail else None, calls)


class Defects(NamedTuple):
    """What a trainer may do otherwise than meant. Each field is a key of the table of its findings below."""

    last: bool
    thinking: str
    gap: str
    opened: str
    filled: bool
    ended: bool
    head: str
    calls: str


_THINKING = {"kept": "", "lost": "the thinking is lost", "lost before": "the thinking of earlier messages is lost"}
_OPENED = {
    "": "",
    "never": "the opening tag is not trained",
    "not last": "the opening tag of the last message is not trained",
}
_HEADS = {"": "", "\n": "a newline of the header is trained", "<｜Assistant｜>": "the header is trained"}
_CALLS = {
    "kept": "",
    "lost": "the tool calls are lost",
    "ends": "the tool calls are lost, and the end of the turn is trained in their place",
}


def findings(wanted: Meant, supervised: str, student: Student, whole: str = "") -> tuple[str, ...]:
    """Return what is wrong with the text that carries loss; nothing if it is what we mean.

    A finding is exact too: the text is what the finding says, character by character.

    Args:
        wanted: what we mean.
        supervised: the decoded tokens that carry loss.
        student: the markers of its template.
        whole: the decoded sequence, to see whether earlier thinking is in it.

    Raises:
        AssertionError: for a text that no finding explains.
    """
    texts = (supervised, supervised.replace(f"{student.end}\n", student.end))  # a newline after the turn does no harm
    earlier = [turn.reasoning for turn in wanted.turns[:-1] if turn.reasoning]
    dropped = ("earlier thinking is not in the prompt",) if earlier and earlier[0] not in whole else ()
    calling = any(turn.calls for turn in wanted.turns)
    calls = _CALLS if calling else ("kept",)
    opened = _OPENED if calling else ("", "never")
    choices = product((False, True), _THINKING, ("", "\n\n"), opened, (False, True), (True, False), _HEADS, calls)
    explained = []
    for defects in map(Defects._make, choices):
        turns = wanted.turns[-1:] if defects.last or wanted.last_only else wanted.turns
        if _all_written(turns, defects, student) in texts:
            explained.append([name for name, holds in _named(wanted, turns, defects, student) if holds and name])
    if explained:
        best = min(explained, key=len)
        return (*best, *(dropped if "lost" not in " ".join(best) else ()))
    return _vague(wanted, supervised, student)


def _named(wanted: Meant, turns: Sequence[Turn], defects: Defects, student: Student) -> Iterator[tuple[str, bool]]:
    """Yield the findings of some defects, and whether they show in these messages."""
    thinks = any(turn.reasoning for turn in turns)
    yield "earlier messages are not trained", defects.last and not wanted.last_only and len(wanted.turns) > 1
    yield _THINKING[defects.thinking], thinks
    yield _OPENED[defects.opened], not student.opens and defects.thinking != "lost" and thinks
    yield "an empty thinking block is trained", defects.filled and not all(turn.reasoning for turn in turns)
    yield "the end of the turn is not trained", not defects.ended
    yield _HEADS[defects.head], True
    yield _CALLS[defects.calls], True


def _vague(wanted: Meant, supervised: str, student: Student) -> tuple[str, ...]:
    """Return what is wrong with a text that is not exactly what any defect makes of the messages.

    Raises:
        AssertionError: when nothing explains it.
    """
    if supervised.strip() and supervised in student.end:
        return ("nothing is trained",)
    lost = [
        name
        for name, parts in (
            ("the thinking is lost", [line for turn in wanted.turns for line in turn.reasoning.splitlines() if line]),
            ("the tool calls are lost", [str(one) for turn in wanted.turns for call in turn.calls for one in call]),
        )
        if parts and not any(part in supervised for part in parts)
    ]
    if lost:
        return tuple(lost)
    for turns in (wanted.turns, wanted.turns[-1:]):
        full = _all_written(turns, Defects(False, "kept", "", "", False, True, "", "kept"), student)
        if supervised.strip() and full.endswith(supervised):
            return ("the first tokens are not trained",)
    raise AssertionError(f"nothing explains what is trained: {supervised!r}, meant: {wanted}")


def _all_written(turns: Sequence[Turn], defects: Defects, student: Student) -> str:
    made = (_written(turn, number < len(turns) - 1, defects, student) for number, turn in enumerate(turns))
    return "".join(made)


def _written(turn: Turn, is_before: bool, defects: Defects, student: Student) -> str:
    """Return the text of a message as a trainer with some defects would train on it."""
    lost = defects.thinking == "lost" or (defects.thinking == "lost before" and is_before)
    opened = defects.opened == "" or (defects.opened == "not last" and is_before)
    reasoning = "" if lost else turn.reasoning
    text = (defects.gap if lost and turn.reasoning else "") + turn.answer
    if turn.kept is not None and not lost:
        text = turn.kept if opened else turn.kept.removeprefix(_TAG)
    elif reasoning or (defects.filled and not turn.reasoning):
        text = (_TAG if opened or not reasoning else "") + f"{reasoning}\n</think>\n\n{turn.answer}"
    if turn.calls and defects.calls == "kept":
        text += ("\n" if turn.answer else "") + called(turn.calls, student.calls)
    elif turn.calls and defects.calls == "lost" and not text:
        return ""
    return defects.head + text + (student.end if defects.ended else "")
