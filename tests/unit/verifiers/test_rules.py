"""Units, quantities, relations and sets of reals: one pair for each rule that nothing else in the tests needs."""

from __future__ import annotations

import pytest

from tracefactory.core.rows import Outcome
from tracefactory.verification.pool import quick_verdict
from tracefactory.verification.single import make_task, verify_one

Pairs = list[tuple[str, str, bool]]

UNITS: Pairs = [
    ("6 N m", "600 N cm", True),  # a product of units multiplies their factors
    ("5 hectares", "50000 m^2", True),
    ("2 L", "2000 cm^3", True),
    ("60 mph", "60 miles per hour", True),
    ("60 kph", "60 km/h", True),
    ("12平方米", "12 m^2", True),
    ("12平方米", "12米", False),
    ("5米每秒", "18 km/h", True),
    ("25 °C", "25 degrees C", True),
    ("77 °F", "77 degrees Fahrenheit", True),
    ("77 °C", "77 degrees F", False),
    ("77 °F", "77 °C", False),
    ("36 Square Feet", "4 square yards", True),
    ("36 ft^2", "36 feet squared", True),
    ("8 cm^3", "8 centimeters cubed", True),
    ("27 cu ft", "1 cubic yard", True),
    ("9 sq. ft", "1 square yard", True),
    ("6 N m^2", "6 square m N", True),  # `square` is said of the next unit alone
    ("1200 mm^2", "12cm2", True),
    ("5000 mm^3", "5cm3", True),
    ("18 km/h", "5 m s^{-1}", True),
    ("5 m/s^2", "5 meters per second squared", True),
    ("5 meters per second", "5m/s", True),
    ("9.8 meters per second squared", "9.8m/s^2", True),
    ("4 square meters", "4m²", True),
    ("18 km/h", "5 m/s downward", True),
    ("5 liters", "5 l", True),
    ("2 amps", "2 A", True),
    ("3 students", "3 A students", True),
    ("-5 meters", "-5 m", True),
    ("60 seconds", "60s", True),
    ("5 cm", "5 m (approximately)", False),
    (r"\sqrt{2} km", r"1000\sqrt{2} meters", True),
    (r"\sqrt{2} km", r"\sqrt{2} meters", False),
    ("5m", r"5 \cdot m", True),  # or the letter is a variable
    ("2xyz", "xyz + xyz", True),
    ("I(0)", "I(0) cm", False),
    ("45", r"\pi/4", False),
    (r"90^\circ", r"\pi/2 \text{ cm}", False),
]
NOUNS: Pairs = [
    ("8 apples", "8 apple", True),
    ("9 glasses", "9 glass", True),
    ("3 cities", "3 city", True),
    ("8 trees", "8 trays", False),
    ("8 apples", "8 kg", False),
    ("24棵树", "24 树", True),
    ("12 years", "12 years-old", True),
    ("5 meters", "five meters", True),
    ("5 meters", "five kilometers", False),
    ("24", "二十四个苹果", True),
    ("24", "twenty-four apples", True),
    ("5", "约5", True),
    ("5元", "人民币5元", True),
    ("5", r"\sim 5", True),
    ("5", "≈ 5", True),
]
PERCENT_AND_MONEY: Pairs = [
    ("0.28", "28 pct", True),
    ("0.28", "28 percentage points", True),
    ("$36", "US$36", True),
    ("$36", "USD $36", True),
    ("-$5", "$-5", True),
    ("5 euros", "5€", True),
    ("50 cents", "50¢", True),
    ("5元", "¥5", True),
    ("5 rupees", "Rs. 5", True),
    ("£45", "45 lbs", False),  # both are pounds, if they are spelled so
    ("$34 per month", "34 euros per month", False),
    ("$34 per month", "$34 per second", False),
    ("$34 per month", "$34 / month", True),
    ("$760 per week", "$760 a week", True),
    ("$18 per hour", "$18 each hour", True),
    ("$18 per day", "$18 every day", True),
]
ROUNDED: Pairs = [
    ("2/3", "0.666666", True),  # cut
    ("2/3", "0.666667", True),
    ("2/3", "0.666668", False),
    ("1/81", "0.012346", False),  # five significant digits
    ("285714.3", "285714", False),  # an integer rounds nothing
    ("0.333333 km", "1000/3 meters", True),
    ("1000/3 meters", "0.333333 km", True),
    ("0.333333 km", "999/3 meters", False),
    ("10^{70}", "10^{70}+1", False),
]
RELATIONS: Pairs = [
    ("5", r"\overline{AB} = 5", True),
    ("40", r"m\angle ABC = 40", True),
    ("6", r"\triangle ABC = 6", True),
    ("12", "面积 = 12", True),
    ("5", "abc^n = 5", False),
    ("2x", r"\frac{dy}{dx} = 2x", True),
    ("2x", "f'(x) = 2x", True),
    ("y=3x-2", "f(x)=3x-2", True),
    ("f(x)=3x-2", "y=3x-2", True),
    ("area A < area B", "area B > area A", True),
    ("12 < x < 13 < 14", "14 > 13 > x > 12", True),
    ("x + 1", r"x + 1 \approx 3.5", True),
    (r"40\pi", r"V = 40\pi \approx 125.66", True),
    (r"40\pi", r"V = 40\pi \approx 12.57", False),
    ("1 mile", r"1 mile \approx 1.609 km", True),
    ("1/3", r"1/3 \approx 33.3\%", True),
    ("x > 3", r"x > \pi", False),
    (r"(-\infty,\pi)", r"x < \pi", True),  # solved, although both sides are names
]
REGIONS: Pairs = [
    ("[0,3)", r"[0,3]\setminus\{3\}", True),
    ("[0,3)", r"[0,3]\setminus\{1\}", False),
    (r"(-\infty,1)\cup\{3\}", "x < 1 or x = 3", True),
    (r"(-\infty,1)\cup\{3\}", r"(-\infty,1)\cup\{5\}", False),
    (r"(-\infty,1)\cup\{3\}", r"(-\infty,1)", False),
    (r"[0,1]\cup[2,2.5)\cup(2.5,3]", r"([0,1]\cup[2,3])\setminus\{2.5\}", True),
    ("(4,-7)", "[5,-8]", False),  # neither is empty
    ("(1,2,3)", r"\{1\}\cup\{2\}\cup\{3\}", False),
    (r"\mathbb{R}\setminus\{2a\}", r"\mathbb{R}\setminus\{a+a\}", True),
    (r"[2a,b]\setminus\{c\}", r"[a+a,b]\setminus\{d\}", False),
    (r"\emptyset", "x > 3", False),
    (r"\{3i\}\cup\{1\}", r"\{5i\}\cup\{1\}", False),
    (r"(0,1)\cup\{3i\}", r"(0,1)\cup\{5i\}", False),
    ("-3 < x < 3", "3 > |x|", True),
    (r"x \ne 3", r"|x| \ne 3", False),
    (r"(-\infty,5)", r"-\infty < x < 5", True),
    ("x > 3", "i x > 3", False),
    ("1 < x < 4", "1 > x > 4", False),
    (r"[0,1)\cup(1,2]", "[0,2]", False),
    ("[0,2]", r"[0,1)\cup[1,2]", True),
    ("[0,2]", r"[0,1]\cup(1,2]", True),
    ("[0,2]", r"[0,2)\cup[1,2]", True),
    ("[0,2]", r"[0,2]\cup[1,2)", True),
    ("[0,2)", r"[0,2)\cup[1,2)", True),
    ("[0,5]", r"[0,5]\cup[1,2]", True),
    (r"[2a,\infty)", r"[a+a,\infty)", True),
    (r"[a,\infty)", "[a,b)", False),
    (r"[a,b]\cup[c,d]", r"[a,b]", False),
    ("(0,1)", "(-1,1)", False),
    ("(a,b)", "(a,c)", False),
]
PAIRS = [*UNITS, *NOUNS, *PERCENT_AND_MONEY, *ROUNDED, *RELATIONS, *REGIONS]


@pytest.mark.parametrize(("gold", "answer", "right"), PAIRS)
def test_a_pair_gets_the_expected_verdict_from_the_exact_rules(gold: str, answer: str, right: bool) -> None:
    verdict = quick_verdict(make_task(gold, answer, None, "math", "", {}, "stop", {}))
    assert verdict is not None
    assert verdict.outcome is (Outcome.CORRECT if right else Outcome.INCORRECT), verdict


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("x = 3m", "6m = 2x", True),
        ("x < 0", "i x > 0", False),
        ("x > 1", "x^2 > 1", False),  # not linear
        ("x > 3", "2|x| > 6", False),
        ("x < 2", "2|x-3| > 2", False),
    ],
)
def test_unsolved_relations_are_compared_as_what_they_say(gold: str, answer: str, right: bool) -> None:
    verdict = verify_one(gold, answer, kind="math", relations="equivalent")
    assert verdict.outcome is (Outcome.CORRECT if right else Outcome.INCORRECT), verdict


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("$34 per month", "$34", False),
        ("34", "$34 a month", True),
        ("5 cm", "5%", False),
        ("5 cm", "5 cm or 50 mm", True),
    ],
)
def test_a_required_unit_is_that_of_the_gold_answer(gold: str, answer: str, right: bool) -> None:
    verdict = verify_one(gold, answer, kind="math", units="required")
    assert verdict.outcome is (Outcome.CORRECT if right else Outcome.INCORRECT), verdict


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", r"9^{9^{9^9}} \approx 5"),
        (r"x = 9^{9^{9^9}} y", r"y = 9^{9^{9^9}} x"),
        ("x > 3", r"x > 9^{9^{9^9}}"),
        (r"(3, 9^{9^{9^9}})", "x > 3"),
    ],
)
def test_numbers_beyond_bounds_are_no_error_of_the_exact_rules(gold: str, answer: str) -> None:
    verdict = quick_verdict(make_task(gold, answer, None, "math", "", {}, "stop", {}))
    assert verdict is None or verdict.outcome is not Outcome.VERIFIER_ERROR, verdict
