"""False equations between numbers are found, and nothing else is taken for one."""

from __future__ import annotations

import random

import pytest

from tracefactory.maths.arithmetic import false_equations

FALSE = {
    "7 + 5 = 12. 12 - 1 = 13.": ["12 - 1 = 13"],
    "Check: 20 - 9 = 11, and 11 + 7 = 28.": ["11 + 7 = 28"],
    "10/2 = 6": ["10/2 = 6"],
    "1/3 + 1/3 = 1/5": ["1/3 + 1/3 = 1/5"],
    "2.5 * 4 = 11": ["2.5 * 4 = 11"],
    "15840 / 1440 = 11.0625": ["15840 / 1440 = 11.0625"],
    "3 + 4 = 7 + 5 = 12": ["3 + 4 = 7 + 5"],
    "8 = 3 + 4": ["8 = 3 + 4"],
    "f(3) = 3 + 4 = 8": ["3 + 4 = 8"],
    "2^3 = 9 and 2**3 = 9": ["2^3 = 9", "2^3 = 9"],
    r"so $3 \times 4 = 13$": ["3 * 4 = 13"],
    r"\frac{1}{2} + \frac{1}{2} = \boxed{2}": ["(1/2) + (1/2) = 2"],
    "3 × 4 = 13, 3 x 4 = 13, 12 ÷ 4 = 4, 3 − 4 = 1": [
        "3 * 4 = 13",
        "3 * 4 = 13",
        "12 / 4 = 4",
        "3 - 4 = 1",
    ],
    "$5 + $3 = $9.": ["5 + 3 = 9"],
    "**7 + 5 = 13**": ["7 + 5 = 13"],
    "1,200 + 300 = 1,600": ["1200 + 300 = 1600"],
    "Step 1: 3 + 4 = 8\n2. 4 + 4 = 9\n- 5 + 3 = 9": ["3 + 4 = 8", "4 + 4 = 9", "5 + 3 = 9"],
    "-3 + 4 = -1": ["-3 + 4 = -1"],
    "7+5=12，12-1=13。": ["12-1 = 13"],
    "so 3 + 4 = 8 and we go on": ["3 + 4 = 8"],
}
NOT_FALSE = [
    *("", "no numbers", "5 = 6", "3 + 4 = 7", "3 + 4 == 7", "0.1 + 0.2 = 0.30", "-3 + 4 = 1", "3^2 + 4^2 = 5^2"),
    *("10/3 = 3.33, 22/7 = 3.14 and 7/2 = 3", "3.14 * 2 = 6.3", "1624 / 28 = 57.999...", "2 / 3 = 0.66…"),
    *("x + 3 = 5 + 1", "2x = 3 + 4", "2*3 = 6x", "AC2 = 196 + 49", "x_1 + 3 = 5 * 2", "LCM(275,157) = 275*157"),
    *("7 + 8 = 3 (mod 12)", "7 + 8 = 3 mod 12", "17 / 5 = 3 remainder 2", "30 + 45 = 1 hour", "100 - 30 = 60 apples"),
    *("half of 6 + 4 = 7", "50% of 20 + 5 = 15", "20% + 5% = 26%", "3 less than 5 + 1 = 3"),
    *("3 + 4 = 8?", "3 + 4 != 8", "3 + 4 = 8 is wrong", "3 + 4 ≠ 8", "5! = 120", "sqrt(16) = 4", "|3 - 5| = 2"),
    *("12:30 + 1 = 1:30", "3:4 + 1 = 2", "1,2+3 = 4", "2024-01-15", "60 / 2*3 = 10", "- 5 + 3 = -2", "1/0 = 2 + 3"),
    *("9" * 5000 + " + 1 = 3", "9^9^9 = 3 + 4", "9^999999999 = 3 + 4", "(" * 5000 + "3 + 4 = 8"),
]


@pytest.mark.parametrize("text", FALSE)
def test_a_false_equation_is_found(text: str) -> None:
    assert false_equations(text) == FALSE[text]


@pytest.mark.parametrize("text", NOT_FALSE)
def test_what_is_true_or_no_arithmetic_is_left_alone(text: str) -> None:
    assert false_equations(text) == []


def test_every_wrong_result_of_an_exact_equation_is_found() -> None:
    dice = random.Random(1)
    for _ in range(2000):
        numbers = [str(dice.randint(0, 999)) for _ in range(dice.randint(2, 5))]
        left = numbers[0] + "".join(f" {dice.choice('+-*')} {number}" for number in numbers[1:])
        value = eval(left)  # digits and signs of ours
        off = dice.choice([-10, -1, 1, 2, 100])
        assert false_equations(f"We have {left} = {value}.") == []
        assert false_equations(f"We have {left} = {value + off}.") == [f"{left} = {value + off}"]
