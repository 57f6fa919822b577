"""A value that stands written against an expression that has yet to be calculated."""

import pytest

from tracefactory.pruning.evaluated import is_evaluated, unevaluated_end


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("18", "18"),
        ("18.0", "18"),
        ("$18", "18"),
        ("1,250", "1250"),
        ("18 eggs", "18"),
        ("6 ways to place the medals", "6"),
        ("3 times as many", "3"),
        ("60 km/h", "60"),
        ("9.8 m/s^2", "9.8"),
        ("50%", "0.5"),
        ("-3", "-3"),
        ("x = 5", "5"),
        ("a_{2003} = 5", "5"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("exactly 18 eggs", "18"),
        ("x = 3 and y = 4", "(3, 4)"),
        ("3/4 cup", "3/4"),
        ("137\\frac{1}{2}", "137 \\frac{1}{2}"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("\\frac{\\sqrt{3}}{3}", "\\sqrt{3}/3"),
        ("3 \\sqrt{13}", "3\\sqrt{13}"),
        ("12*pi", "12\\pi"),
        ("-80 + 15x", "15x - 80"),
        ("\\frac{9a+11}{20}", "\\frac{9a+11}{20}"),
        ("7!", "7!"),
        ("2^{10}", "2^{10}"),
        ("3 \\times 10^8", "300000000"),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("[-2, 7]", "x \\in [-2,7]"),
        ("the north-east corner", "north-east"),
        ("\\text{Evelyn}", "Evelyn"),
        ("30^\\circ", "30"),
        ("42 eggs", "42 eggs"),
        ("四十二", "42"),
    ],
)
def test_a_value_stands_written(value: str, gold: str) -> None:
    assert is_evaluated(value, [gold])


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("3*4+6", "18"),
        ("3 * 4 + 6 eggs", "18"),
        ("765/3", "255"),
        ("$765/3 = $255", "255"),
        ("\\frac{765}{3}", "255"),
        ("2/6", "\\frac{1}{3}"),
        ("5 times 45", "225"),
        ("half of 36", "18"),
        ("50% of 36", "18"),
        ("twice 9", "18"),
        ("6 squared", "36"),
        ("\\frac65 \\cdot 5", "6"),
        ("(3/2) * 834", "1251"),
        ("2**10", "1024"),
        ("7!", "5040"),
        ("16 - 7", "9"),
        ("16-7", "9"),
        ("(3)(4)", "12"),
        ("3(4)", "12"),
        ("\\sqrt{65536}", "256"),
        ("\\sqrt{117}", "3\\sqrt{13}"),
        ("\\binom{7}{4}", "35"),
        ("19x + 1 - 4x - 81", "15x - 80"),
        ("6x^2/x", "6x"),
        ("2x = 6", "3"),
        ("(3, 4 - 2)", "(3, 2)"),
        ("\\sin(30)", "\\frac{1}{2}"),
        ("3×4+6", "18"),
        ("0.25", "\\frac14"),
        ("\\frac{3}{4}", "0.75"),
        ("40\\pi", "125.66"),
        ("\\pi", "3.14"),
        ("x - 1", "1"),
    ],
)
def test_an_expression_is_not_yet_calculated(value: str, gold: str) -> None:
    assert not is_evaluated(value, [gold])


def test_any_of_several_gold_answers_may_be_the_expression() -> None:
    assert not is_evaluated("2^{10}", ["1024"])
    assert is_evaluated("2^{10}", ["1024", "2^{10}"])


@pytest.mark.parametrize(
    "text",
    [
        "So we need 3*4+6",
        "So we need 3 * 4 + 6.",
        "Each pays $765/3.",
        "Each pays 765/3 =",
        "That is $765/3 =$",
        "We get x = 1,500,000/1200",
        "This gives me: $x = \\frac65 \\cdot 5$",
        "Therefore:\n\\[ 2 \\times 3 + 4 \\]",
        "So a_2003 = 1 + 2 * 2002.",
        "共有 3×4+6。",
        "The total is 12 +",
        "P = 5 - 2.",
        "It is 2^{10}.",
    ],
)
def test_a_text_that_stops_before_the_result_is_found(text: str) -> None:
    assert unevaluated_end(f"Take 6 rows.\n\n{text}") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "So it is 18.",
        "So 3 * 4 + 6 = 18.",
        "So 3 * 4 + 6 = 18 eggs.",
        "They are 3/4 of all.",
        "So P = 3/4",
        "P = 2/6.",
        "It takes 137 1/2 hours.",
        "It weighs 3 * 10^8.",
        "So x = 2y + 3.",
        "He read pages 5-7.",
        "We use C++.",
        "**So it is 18.**",
        "So it is \\boxed{18}.",
        "\\[ x = 18 \\]",
        "It is 18!",
        "On day 3, he has 4.",
        "That is 18 - as we said",
    ],
)
def test_other_ends_are_left_alone(text: str) -> None:
    assert unevaluated_end(text) is None


def test_a_gold_answer_may_be_a_calculation() -> None:
    assert unevaluated_end("So it is 2^{10}.", ["2^{10}"]) is None
    assert unevaluated_end("So it is 2^{10}.", ["1024"]) is not None
