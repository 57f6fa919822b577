"""Keys: the same thing has one key, different things have different ones, and nothing ambiguous has any."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.fingerprint import canonical, digest, digest_all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Word(StrEnum):
    WORD = "wörd"


class Number(IntEnum):
    SEVEN = 7


class Text(str):
    """A text that is not exactly a `str`, as YAML readers give them."""

    __slots__ = ()


class Count(int):
    """A number that is not exactly an `int`."""


class Share(float):
    """A number that is not exactly a `float`, as numpy gives them."""

    __slots__ = ()


class Pair(NamedTuple):
    one: Any
    two: Any


ANY_TEXT = st.text() | st.text(st.characters(codec=None, categories=["Cs", "Cc", "Po", "Lu", "Zl"]), max_size=4)
ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [9.999999999999999e-05, 1e-4, 9999999999999998.0, 1e16, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 2.0**53]
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, Word.WORD, Number.SEVEN, Count(5), Share(0.1)])
    | ANY_FLOAT
    | ANY_FLOAT.map(Share)
    | ANY_TEXT
    | ANY_TEXT.map(Text),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
        | st.dictionaries(ANY_TEXT | ANY_TEXT.map(Text) | st.just(Word.WORD), inner, max_size=3)
        | st.dictionaries(ANY_TEXT, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


def by_json(value: Any) -> bytes:
    """Return the text that every key was made from since version 1."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def assert_as_json(value: Any) -> None:
    expected = by_json(value)
    assert canonical(value).encode("utf-8", "surrogatepass") == expected
    assert digest(value) == hashlib.sha256(expected).hexdigest()


@given(ANYTHING)
def test_the_canonical_text_is_that_of_json(value: Any) -> None:
    assert_as_json(value)


def test_the_canonical_text_is_that_of_json_for_thousands_of_values() -> None:
    chance = random.Random(20_25)
    for _ in range(5000):
        assert_as_json(_anything(chance, depth=3))


def _anything(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.4:
        inner = [_anything(chance, depth - 1) for _ in range(chance.randrange(5))]
        return chance.choice([inner, tuple(inner), {_text(chance): one for one in inner}])
    return chance.choice(_SCALARS)(chance)


def _text(chance: random.Random) -> str:
    half = chance.random() < 0.05  # half a surrogate pair now and then
    ranges = [(0, 0x80), (0, 0x3000), (0xE000, 0x110000), (0x2028, 0x2029), (0xD800, 0xE000) if half else (0x22, 0x5D)]
    return "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(chance.randrange(6)))


_SCALARS: list[Callable[[random.Random], Any]] = [
    lambda chance: chance.choice([None, True, False, Word.WORD, Number.SEVEN, -0.0]),
    lambda chance: chance.getrandbits(chance.choice([4, 53, 62, 63, 64, 80])) * chance.choice([1, -1]),
    lambda chance: chance.choice([-1, 1]) * chance.random() * 10.0 ** chance.randrange(-320, 300),
    lambda chance: chance.choice([1, -1]) * chance.random() * 10.0 ** chance.randrange(-6, 18),
    lambda chance: 10.0 ** chance.randrange(-30, 30),
    lambda chance: float(chance.getrandbits(60)),
    _text,
    _text,
    lambda chance: Text(_text(chance)),
]


def test_values_nested_too_deep_for_orjson_are_encoded() -> None:
    value: Any = "deep"
    for _ in range(300):
        value = {"in": [value]}
    assert_as_json(value)


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
def test_a_value_without_a_canonical_form_raises(value: object) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"x": -math.inf}]])
def test_nan_and_infinities_raise(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical(value)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_the_boundaries_of_parts_change_the_digest(one: list[str], two: list[str]) -> None:
    assert (digest_all(one) == digest_all(two)) == (one == two)
