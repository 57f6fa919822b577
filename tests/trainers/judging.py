"""Whether what carries loss is what we mean: the text of every message to train on, exactly, or a named finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from tests.trainers.students import Student


class Turn(NamedTuple):
    """One message of the assistant; of a masked one, `kept` is the text without what was cut."""

    reasoning: str
    answer: str
    kept: str | None = None


class Meant(NamedTuple):
    """What is to be trained: messages of the assistant, all of them or the last, and the kind of the row."""

    turns: tuple[Turn, ...]
    last_only: bool

    @property
    def kind(self) -> str:
        if len(self.turns) > 1:
            return "multi-turn"
        return "plain" if self.turns[-1].reasoning else "without reasoning"


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
        yield Turn(reasoning, answer if closed else content, "".join(kept) if detail else None)


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
    choices = product((False, True), _THINKING, ("", "\n\n"), (False, True), (False, True), (True, False), _HEADS)
    explained = []
    for last, thinking, gap, opened, filled, ended, head in choices:
        only_last = last or wanted.last_only
        turns = wanted.turns[-1:] if only_last else wanted.turns
        made = "".join(
            _written(turn, number < len(turns) - 1, thinking, gap, opened, filled, ended, head, student)
            for number, turn in enumerate(turns)
        )
        if made in texts:
            named = {
                "earlier messages are not trained": last and not wanted.last_only and len(wanted.turns) > 1,
                _THINKING[thinking]: any(turn.reasoning for turn in turns),
                "the opening tag is not trained": not opened
                and not student.opens
                and thinking != "lost"
                and _tagged(turns),
                "an empty thinking block is trained": filled and not all(turn.reasoning for turn in turns),
                "the end of the turn is not trained": not ended,
                _HEADS[head]: True,
            }
            explained.append([name for name, holds in named.items() if holds and name])
    if explained:
        best = min(explained, key=len)
        return (*best, *(dropped if "lost" not in " ".join(best) else ()))
    if supervised.strip() and supervised in student.end:
        return ("nothing is trained",)
    if any(turn.reasoning for turn in wanted.turns) and not any(
        line in supervised for turn in wanted.turns for line in turn.reasoning.splitlines() if line
    ):
        return ("the thinking is lost",)
    for turns in (wanted.turns, wanted.turns[-1:]):
        full = "".join(_written(turn, False, "kept", "", True, False, True, "", student) for turn in turns)
        if supervised.strip() and full.endswith(supervised):
            return ("the first tokens are not trained",)
    raise AssertionError(f"nothing explains what is trained: {supervised!r}, meant: {wanted}")


_THINKING = {"kept": "", "lost": "the thinking is lost", "lost before": "the thinking of earlier messages is lost"}
_HEADS = {"": "", "\n": "a newline of the header is trained", "<｜Assistant｜>": "the header is trained"}


def _tagged(turns: Sequence[Turn]) -> bool:
    return any(turn.reasoning for turn in turns)


def _written(
    turn: Turn,
    is_before: bool,
    thinking: str,
    gap: str,
    opened: bool,
    filled: bool,
    ended: bool,
    head: str,
    student: Student,
) -> str:
    """Return the text of a message as a trainer with some defects would train on it."""
    lost = thinking == "lost" or (thinking == "lost before" and is_before)
    reasoning = "" if lost else turn.reasoning
    text = (gap if lost and turn.reasoning else "") + turn.answer
    if turn.kept is not None and not lost:
        text = turn.kept if opened else turn.kept.removeprefix(_TAG)
    elif reasoning or (filled and not turn.reasoning):
        text = (_TAG if opened or not reasoning else "") + f"{reasoning}\n</think>\n\n{turn.answer}"
    return head + text + (student.end if ended else "")
