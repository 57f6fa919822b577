"""Digests of tables: of the rows as a set with repeats, whatever the order, the chunks and the memory they come in."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracefactory.core.digests import combined_digest, draws, table_digest

NOTHING = "0" * 32
FEWER = settings(max_examples=60, deadline=None)  # an example is a whole table
INNER = pa.struct(
    [pa.field("start", pa.int64()), pa.field("label", pa.string()), pa.field("of", pa.list_(pa.string()))]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("number", pa.float64()),
        pa.field("count", pa.int64()),
        pa.field("flag", pa.bool_()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("place", pa.struct([pa.field("where", pa.string()), pa.field("steps", pa.list_(INNER))])),
        pa.field("steps", pa.list_(INNER)),
    ]
)
Row = dict[str, Any]

TEXTS = st.none() | st.text(max_size=4) | st.sampled_from(["", "a", "0123456789abcdef", "x" * 65, "x" * 64 + "y" * 9])
INTEGERS = st.none() | st.integers(-2, 2) | st.integers(-(2**63), 2**63 - 1)
INNERS = st.none() | st.fixed_dictionaries(
    {"start": INTEGERS, "label": TEXTS, "of": st.none() | st.lists(TEXTS, max_size=3)}
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.none() | st.integers(0, 2**64 - 1).map("{:016x}".format),
    "text": TEXTS,
    "number": st.none() | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]) | st.floats(),
    "count": INTEGERS,
    "flag": st.none() | st.booleans(),
    "tags": st.none() | st.lists(TEXTS, max_size=3),
    "place": st.none() | st.fixed_dictionaries({"where": TEXTS, "steps": st.none() | st.lists(INNERS, max_size=2)}),
    "steps": st.none() | st.lists(INNERS, max_size=3),
}
ROWS: st.SearchStrategy[list[Row]] = st.lists(st.fixed_dictionaries(VALUES), max_size=24)


def table(rows: list[Row], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def one_column(values: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"x": pa.array(values, kind)})


def plain(value: Any) -> Any:
    """Return a value so that what counts as the same is equal: nothing is None, and so is a struct of nothing."""
    if isinstance(value, dict):
        inner = {name: plain(one) for name, one in value.items()}
        return inner if any(one is not None for one in inner.values()) else None
    if isinstance(value, list):
        return [plain(one) for one in value] or None
    if isinstance(value, float):
        return "NaN" if value != value else value + 0.0
    return None if value == "" else value


@FEWER
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_and_the_chunks_do_not_count(rows: list[Row], chance: random.Random) -> None:
    whole = table(rows)
    expected = table_digest(whole)
    columns = chance.sample(SCHEMA.names, len(SCHEMA.names))
    assert table_digest(whole.select(columns)) == expected
    assert table_digest(table(chance.sample(rows, len(rows)))) == expected
    cuts = sorted(chance.randrange(len(rows) + 1) for _ in range(3))
    pieces = [whole.slice(start, stop - start) for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    chance.shuffle(pieces)
    assert table_digest(pa.concat_tables(pieces)) == expected
    assert combined_digest(map(table_digest, pieces)) == expected  # slices, which start in the middle of their buffers
    assert combined_digest(table_digest(table([row])) for row in rows) == expected


@FEWER
@given(ROWS.filter(bool), st.data())
def test_a_digest_changes_exactly_when_a_value_does(rows: list[Row], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(SCHEMA.names))
    value = data.draw(VALUES[column])
    changed = [*rows[:number], {**rows[number], column: value}, *rows[number + 1 :]]
    same = plain(rows[number][column]) == plain(value)
    assert (table_digest(table(changed)) == table_digest(table(rows))) == same


EMPTY = [*((one.type, None) for one in SCHEMA), (pa.string(), ""), (pa.list_(pa.int64()), []), (INNER, {"label": ""})]


@FEWER
@given(ROWS, st.sampled_from(EMPTY))
def test_an_empty_column_does_not_change_the_digest(rows: list[Row], empty: tuple[pa.DataType, Any]) -> None:
    whole, (kind, value) = table(rows), empty
    assert table_digest(whole.append_column("later", pa.array([value] * len(rows), kind))) == table_digest(whole)


@FEWER
@given(ROWS.filter(bool))
def test_a_duplicate_row_counts_twice(rows: list[Row]) -> None:
    digests = {table_digest(table(found)) for found in (rows, [*rows, rows[0]], [*rows, rows[0], rows[0]], rows[1:])}
    assert len(digests) == 4


def test_an_empty_table_and_an_empty_row_have_different_digests() -> None:
    assert table_digest(table([])) == combined_digest([]) == NOTHING
    assert table_digest(table([{}])) != NOTHING


LONG = "It follows that " * 5
CHANGES: list[tuple[pa.DataType, Any, Any]] = [
    (pa.string(), "short", "shorT"),
    (pa.string(), LONG, LONG[:-1] + "!"),
    (pa.string(), "a", None),
    (pa.string(), "a", "a\0"),
    (pa.string(), "00000000000000aa", "00000000000000AA"),
    (pa.int64(), 0, None),
    (pa.int64(), 0, 1),
    (pa.int64(), -(2**63), 2**63 - 1),
    (pa.float64(), 0.0, None),
    (pa.float64(), 0.0, 5e-324),
    (pa.float64(), 0.1 + 0.2, 0.3),
    (pa.float64(), float("nan"), None),
    (pa.float64(), float("nan"), float("inf")),
    (pa.float64(), float("-inf"), float("inf")),
    (pa.bool_(), False, True),
    (pa.bool_(), False, None),
    (pa.list_(pa.string()), ["a", "b"], ["b", "a"]),
    (pa.list_(pa.string()), ["a", "b"], ["ab"]),
    (pa.list_(pa.string()), ["a"], ["a", ""]),
    (pa.list_(pa.string()), [None], []),
    (pa.list_(pa.float64()), [0.5, 0.5], [0.5]),
    (INNER, {"start": 1, "label": "a"}, {"start": 2, "label": "a"}),
    (INNER, {"start": 1, "label": "a"}, {"start": 1}),
    (INNER, {"of": ["a"]}, {"label": "a"}),
    (pa.struct([("a", pa.string()), ("b", pa.string())]), {"a": "x"}, {"b": "x"}),
    (pa.list_(INNER), [{"start": 1}, {"start": 2}], [{"start": 2}, {"start": 1}]),
    (pa.list_(INNER), [{"start": 1}, {"label": "a"}], [{"start": 1, "label": "a"}]),
    (pa.list_(INNER), [{"of": ["a", "b"]}], [{"of": ["a"]}, {"of": ["b"]}]),
    (pa.list_(pa.list_(pa.int64())), [[1], [2]], [[1, 2]]),
    (pa.list_(pa.list_(pa.int64())), [[1], []], [[], [1]]),
]


@pytest.mark.parametrize(("kind", "one", "other"), CHANGES)
def test_a_changed_value_changes_the_digest(kind: pa.DataType, one: Any, other: Any) -> None:
    for rows in (1, 40):  # a value that is repeated is hashed once
        assert table_digest(one_column([one] * rows, kind)) != table_digest(one_column([other] * rows, kind))
        assert table_digest(one_column([one] * rows + [other], kind)) != table_digest(
            one_column([one] * (rows + 1), kind)
        )


@pytest.mark.parametrize(("kind", "one", "other"), CHANGES)
def test_swapped_values_change_the_digest(kind: pa.DataType, one: Any, other: Any) -> None:
    def of(*values: Any) -> str:
        return table_digest(pa.table({"name": ["first", "second"], "x": pa.array(values, kind)}))

    assert of(one, other) != of(other, one)
    both = pa.table({"x": pa.array([one], kind), "y": pa.array([other], kind)})
    assert table_digest(both) != table_digest(both.rename_columns(["y", "x"]))


@pytest.mark.parametrize("other", [pa.large_string(), pa.string_view()])
@pytest.mark.parametrize(
    "values",
    [["a", None, "", LONG, "0123456789abcdef"], ["a", "b"] * 40, [LONG, LONG + "."] * 40, ["0123456789abcdef"] * 3],
)
def test_the_memory_layout_of_texts_does_not_change_the_digest(values: list[Any], other: pa.DataType) -> None:
    expected = table_digest(one_column(values, pa.string()))
    assert table_digest(one_column(values, other)) == expected
    decoded = pa.array(values, pa.string()).dictionary_encode().dictionary_decode()
    assert table_digest(pa.table({"x": decoded})) == expected
    assert combined_digest(table_digest(one_column([one], other)) for one in values) == expected
    inside = [[one] for one in values]
    expected = table_digest(one_column(inside, pa.list_(pa.string())))
    assert table_digest(one_column(inside, pa.large_list(pa.large_string()))) == expected


def test_the_width_of_a_number_type_does_not_change_the_digest() -> None:
    assert len({table_digest(one_column([1, None, 7], kind)) for kind in (pa.int8(), pa.uint16(), pa.int64())}) == 1
    assert len({table_digest(one_column([0.5, -0.0], kind)) for kind in (pa.float32(), pa.float64())}) == 1


def test_every_nan_is_the_same_value() -> None:
    payloads = [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001]  # as written, as computed on x86, another
    numbers = np.array(payloads, np.uint64).view(np.float64)
    assert np.isnan(numbers).all()
    assert len({table_digest(pa.table({"x": [number]})) for number in numbers}) == 1


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"bytes"]),
        pa.array([None], pa.null()),
        pa.array([0], pa.timestamp("us")),
        pa.array(["a"]).dictionary_encode(),
        pa.array([[b"bytes"]]),
        pa.array([{"inner": b"bytes"}]),
    ],
)
def test_values_of_other_types_have_no_digest(values: pa.Array) -> None:
    with pytest.raises(TypeError, match="no digest of values of type"):
        table_digest(pa.table({"x": values}))


def test_digests_are_the_same_as_in_all_versions() -> None:
    rows = [
        {"id": "0123456789abcdef", "text": "a", "number": 0.5, "count": -1, "flag": True, "tags": ["x", ""]},
        {"id": None, "text": LONG, "place": {"where": "here", "steps": [{"start": 1, "of": ["a"]}, None]}},
        {"steps": [{"label": "b"}]},
    ]
    assert table_digest(table(rows)) == "e126fa3611303550b11b2d08c9f79262"


IDS = [f"{number:016x}" for number in (0, 0x0123456789ABCDEF, 2**64 - 1)]


def test_draws_are_the_same_as_in_all_versions() -> None:
    assert draws(pa.array(IDS), 0).tolist() == [5197578548964807871, 2113303908147009044, 4922461756044938104]
    assert draws(pa.array(IDS), 7).tolist() == [16286370144149697678, 7679488813099898287, 7634353079654224585]


def test_a_draw_does_not_depend_on_the_position_of_its_id() -> None:
    expected = dict(zip(IDS, draws(pa.array(IDS), 3).tolist(), strict=True))
    chunks = pa.chunked_array([[IDS[2]], [], IDS[:2]], pa.string())
    assert draws(chunks, 3).tolist() == [expected[one] for one in (IDS[2], *IDS[:2])]
    assert draws(pa.array([*IDS, IDS[0]], pa.large_string()).slice(1), 3).tolist() == [
        expected[one] for one in (*IDS[1:], IDS[0])
    ]
    assert draws(pa.array([], pa.string()), 3).tolist() == []


def test_two_ids_never_draw_the_same_and_another_seed_draws_another_order() -> None:
    ids = pa.array([f"{number:016x}" for number in range(20_000)])
    drawn = draws(ids, 0)
    assert len(np.unique(drawn)) == 20_000
    assert 0.49 < (drawn < np.uint64(2**63)).mean() < 0.51  # neighbouring ids are spread over all numbers
    other = draws(ids, 1)
    assert (drawn != other).all()
    assert abs(np.corrcoef(np.argsort(drawn), np.argsort(other))[0, 1]) < 0.05


@pytest.mark.parametrize(
    "wrong", ["", "x", None, "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef0", "é" * 8, "0x23456789abcdef"]
)
def test_a_draw_for_a_value_that_is_not_an_id_is_refused(wrong: str | None) -> None:
    with pytest.raises(ValueError, match="ids are 16 hexadecimal digits"):
        draws(pa.array([*IDS, wrong], pa.string()), 0)
