from fractions import Fraction

import pytest

from tutelage.tasks.calculator import (
    apply_calculator,
    calculator_continuation,
    evaluate,
    format_number,
    strip_annotations,
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3+4", Fraction(7)),
        ("2 * (3 - 5)", Fraction(-4)),
        ("-3+5", Fraction(2)),
        ("10/4", Fraction(5, 2)),
        (".5*100", Fraction(50)),
        ("0.1+0.2", Fraction(3, 10)),
        ("1,000+24", Fraction(1024)),
        ("05+007", Fraction(12)),
        ("1.05", Fraction(21, 20)),
    ],
)
def test_evaluate(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["1/0", "", "3+", "2**3", "7//2", "2(3)", "abs(3)", "x", "20%", "(1", "1.2.3", "((((" * 90, "-" * 10_000 + "1"],
)
def test_evaluate_refuses(expression):
    assert evaluate(expression) is None


def test_format_number():
    assert [format_number(Fraction(*pair)) for pair in ((7, 1), (-4, 1), (1, 2), (10, 3))] == [
        "7",
        "-4",
        "0.5",
        "3.333333333",
    ]


def test_calculator_continuation():
    assert calculator_continuation("Tom has 3+4 = <<3+4=") == "7>>"
    assert calculator_continuation("<<1+1=2>>2 and <<9/2=") == "4.5>>"
    for text in ("<<3+4", "<<3+4=7", "<<3+4=7>>7", "3+4=", "<<1/0=", "<<x=", "<<1=1=", ""):
        assert calculator_continuation(text) is None


def test_apply_calculator_corrects_result_and_its_repetition():
    assert apply_calculator("3 + 4 = <<3+4=8>>8 apples. <<2*5=11>>11.") == "3 + 4 = <<3+4=7>>7 apples. <<2*5=10>>10."
    assert apply_calculator("<<3+4=8>>9 left") == "<<3+4=7>>9 left"  # 9 is another number, not the result repeated
    assert apply_calculator("<<1000*2=1>>1,000") == "<<1000*2=2000>>1,000"


def test_apply_calculator_leaves_what_is_right_or_unreadable():
    for text in ("<<18*.5=9.00>>9", "<<1/0=3>>3", "<<x+1=3>>3", "<<3+4=", "no annotation"):
        assert apply_calculator(text) == text


def test_strip_annotations():
    assert strip_annotations("48/2 = <<48/2=24>>24 clips\n#### 24") == "48/2 = 24 clips\n#### 24"
