"""The words filters are written in."""

import pickle

import pytest
from pydantic import ValidationError

from tracefactory.filters import (
    KEEP,
    Decision,
    Files,
    FilterFailed,
    Params,
    Rules,
    column,
    column_filter,
    drop,
    drop_if,
    trace_filter,
)
from tracefactory.filters.api import FilterMark, mark_of


def test_a_decision_has_no_truth_value():
    for decision in (KEEP, drop("too_long")):
        with pytest.raises(TypeError, match="no truth value"):
            bool(decision)
        with pytest.raises(TypeError, match="no truth value"):
            [row for row in ["row"] if decision]
    assert KEEP.keep
    assert not drop("too_long").keep


def test_a_drop_carries_its_reason_and_detail():
    assert drop("too_long", "12 tokens") == Decision("too_long", "12 tokens")
    assert drop("x2_y").reason == "x2_y"


@pytest.mark.parametrize(
    "reason", ["", "Too long", "too-long", "TooLong", "_x", "x_", "x__y", "2x", "zu_lang\n", "über"]
)
def test_a_drop_reason_must_be_an_identifier(reason: str):
    with pytest.raises(ValueError, match="not snake_case"):
        drop(reason)
    with pytest.raises(ValueError, match="not snake_case"):
        drop_if(column("cost") > 1, reason)


def test_decorated_filters_stay_callable_and_are_marked():
    def unmarked(trace: object) -> Decision:
        return KEEP

    @trace_filter
    def plain(trace: object) -> Decision:
        return KEEP

    @trace_filter(files=("names.txt",))
    def reading(trace: object, *, files: Files) -> Decision:
        return drop("never", files["names.txt"])

    @column_filter
    def ruled() -> Rules:
        return [drop_if(column("cost") > 1, "dear")]

    assert plain(object()).keep
    assert reading(object(), files={"names.txt": "x"}) == drop("never", "x")
    (rule,) = ruled()
    assert rule.reason == "dear"
    assert mark_of(plain) == FilterMark(columns=False, files=())
    assert mark_of(reading) == FilterMark(columns=False, files=("names.txt",))
    assert mark_of(ruled) == FilterMark(columns=True, files=())
    assert mark_of(unmarked) is None


def test_filter_parameters_are_frozen_and_validated_with_their_defaults():
    class Good(Params):
        rate: float = 0.5

    with pytest.raises(ValidationError, match="frozen"):
        Good().rate = 0.1
    with pytest.raises(ValidationError, match="Extra inputs"):
        Good.model_validate({"rat": 1})

    class Bad(Params):
        rate: float = "high"  # type: ignore[assignment]

    with pytest.raises(ValidationError, match="rate"):
        Bad()


def test_a_filter_failure_can_be_pickled():
    failed = pickle.loads(pickle.dumps(FilterFailed("length", "t1", "ZeroDivisionError")))
    assert (failed.name, failed.row_id, failed.traceback_text) == ("length", "t1", "ZeroDivisionError")
