"""What `publish:` does about control tokens that somebody spelled in a text: drop, escape or keep them."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracefactory.core.rows import Trace
from tracefactory.publish.views import Row, Rows, Tracked, View, ViewError
from tracefactory.text.control_tokens import ControlTokens, Marks, RowMarks

REASON = "control_token_inside"
_JSON = frozenset({"arguments", "tools"})  # columns and fields that are JSON as text
_ASKED = frozenset({"prompt", "question"})  # texts without a role that no assistant wrote
_NAMED = 8  # control tokens that a sentence names

Visit = Callable[[str, Marks], str]


@dataclass(frozen=True)
class TokenCheck:
    """Applies a policy to traces and to the rows of views; `marks` are the control tokens that count."""

    policy: ControlTokens = ControlTokens.DROP
    marks: RowMarks = field(default_factory=RowMarks)

    def refuse(self, traces: Sequence[Trace]) -> dict[str, ViewError]:
        """Return the errors of traces that the policy drops, by id."""
        if self.policy is not ControlTokens.DROP:
            return {}
        found = {trace.id: self.marks.find(trace) for trace in traces}
        return {row_id: _error(*place) for row_id, place in found.items() if place is not None}

    def apply(self, view: View, made: Rows) -> tuple[Rows, dict[str, str]]:
        """Return the rows of a view under the policy, and by row id the first control token that a row spelled.

        Rows are dropped here for texts that are not the trace's own, such as the reasoning before it was pruned.

        Args:
            view: the view.
            made: its rows.
        """
        rows, refused = [], dict(made.refused)
        spelled: dict[str, str] = {}
        for row in made.rows:
            found = self._find(view, row)
            if found is not None and self.policy is ControlTokens.ESCAPE:
                row = self._mapped(view, row, lambda text, marks: marks.escape(text))
            left = found if self.policy is ControlTokens.DROP else None
            if found is not None and self.policy is ControlTokens.ESCAPE:
                left = self._find(view, row)  # a token of one character has no escaped form
            if left is not None:
                refused[row["id"]] = _error(f"view {view.name}", left)
                continue
            rows.append(row)
            spelled |= {} if found is None else {row["id"]: found}
        return Rows(rows, refused), spelled

    def _find(self, view: View, row: Row) -> str | None:
        found: list[str] = []

        def look(text: str, marks: Marks) -> str:
            found.extend(filter(None, [None if found else marks.find(text)]))
            return text

        self._mapped(view, row, look)
        return found[0] if found else None

    def _mapped(self, view: View, row: Row, visit: Visit) -> Row:
        """Return a row with every text that a student is shown replaced by what `visit` makes of it."""
        names = [name for name in row if name not in Tracked.model_fields] if view.texts is None else view.texts
        changed = {}
        for name in names:
            marks = self.marks.other if name in _ASKED else self.marks.assistant
            changed[name] = self._value(name, row[name], marks, visit)
        return {**row, **changed}

    def _value(self, name: str, value: Any, marks: Marks, visit: Visit) -> Any:
        if isinstance(value, str):
            return _in_json(value, marks, visit) if name in _JSON else visit(value, marks)
        if isinstance(value, list):
            return [self._value(name, one, marks, visit) for one in value]
        if not isinstance(value, dict):
            return value
        own = self.marks.of(value["role"]) if "role" in value else marks
        changed = {key: self._value(key, one, own, visit) for key, one in value.items()}
        if value.get("train_detail") and changed["content"] != value["content"]:
            changed["train_detail"] = _moved(value["train_detail"], own.places(value["content"]))
        return changed


def sentence(policy: ControlTokens, dropped: int, spelled: Mapping[str, Counter[str]]) -> str:
    """Return what the card says of control tokens in the texts of a dataset.

    Args:
        policy: the policy.
        dropped: the number of traces that were dropped for them.
        spelled: by view the published rows that spell, or spelled, one, counted by control token.
    """
    named = ", ".join(token for token, _ in sum(spelled.values(), Counter[str]()).most_common(_NAMED))
    views = ", ".join(f"{view} {counts.total():,}" for view, counts in spelled.items() if counts)
    gone = f" {dropped:,} traces that spell one were dropped." if dropped else ""
    if policy is ControlTokens.DROP:
        return f"No text to train on spells a control token of a common chat template, such as <|im_end|>.{gone}"
    if not views:
        return f"No row spells a control token of a common chat template, such as <|im_end|>.{gone}"
    if policy is ControlTokens.ESCAPE:
        return (
            f"Control tokens that texts spell are escaped by a backslash after their first character, as in "
            f"<\\|im_end|>, in these rows: {views} (tokens: {named}). A student learns to write them so.{gone}"
        )
    return f"These rows spell control tokens, which trainers turn into the real ones: {views} (tokens: {named}).{gone}"


def _error(where: str, token: str) -> ViewError:
    return ViewError(REASON, f"the {where} contains {token}, which trainers turn into the control token")


def _in_json(text: str, marks: Marks, visit: Visit) -> str:
    """Return a JSON text with its keys and texts replaced, unchanged where none of them is."""
    try:
        value = json.loads(text)
        changed = _leaves(value, lambda leaf: visit(leaf, marks))
    except (ValueError, RecursionError):
        return visit(text, marks)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _leaves(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _leaves(one, change) for key, one in value.items()}
    return [_leaves(one, change) for one in value] if isinstance(value, list) else value


def _moved(details: Iterable[Row], places: Sequence[int]) -> list[Row]:
    """Return the ranges of a text after backslashes were written before the characters at `places`.

    A backslash belongs to the range of the character after it.
    """
    return [
        {
            **one,
            "begin_offset": one["begin_offset"] + bisect_left(places, one["begin_offset"]),
            "end_offset": one["end_offset"] + bisect_right(places, one["end_offset"]),
        }
        for one in details
    ]
