"""Keys: the same thing has one key, different things have different ones, and nothing ambiguous has any."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.fingerprint import canonical, digest, digest_all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_equal_text_means_equal_json(one: object, two: object) -> None:
    assert (canonical(one) == canonical(two)) == (repr(_shape(one)) == repr(_shape(two)))


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shape(value[key]) for key in sorted(value)}
    return [_shape(one) for one in value] if isinstance(value, list) else value


def test_order_of_keys_does_not_count() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {None: 1}}, object(), b"bytes", {"a": {1, 2}}])
def test_what_has_no_canonical_form_raises(value: object) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"x": -math.inf}]])
def test_numbers_json_lacks_raise(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical(value)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_parts_do_not_run_together(one: list[str], two: list[str]) -> None:
    assert (digest_all(one) == digest_all(two)) == (one == two)
