"""Notations that the exact path reads by itself: what they mean, and what they must not be taken for."""

from __future__ import annotations

import pytest

from tracefactory.maths.expression import parse_expression as parse
from tracefactory.maths.tokens import UnparsedError


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_the_power_minus_one_of_a_trigonometric_function_is_its_inverse(name: str) -> None:
    assert parse(rf"\{name}^{{-1}}(x)") == parse(rf"\arc{name}(x)")
    assert parse(rf"\{name}^{{-1}}(x)") != parse(rf"\{name}(x)^{{-1}}")
    assert parse(rf"\{name}^{{2}}(x)") == parse(rf"(\{name}(x))^2")


def test_letters_under_an_accent_are_one_symbol_and_digits_are_none() -> None:
    assert parse(r"\vec v") == parse(r"\vec{v}") != parse("v")
    with pytest.raises(UnparsedError, match="accent over '3'"):
        parse(r"\hat 3")
    with pytest.raises(UnparsedError, match="repeating decimal"):
        parse(r"\overline{3}")
