"""GSM8K's calculator: works out the `<<3+4=7>>` annotations of an answer, as text so far or as a whole.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021 (arXiv 2110.14168), section 2.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

# An expression longer than this is a degenerate completion; the bound also keeps the parser's recursion shallow.
LONGEST_EXPRESSION = 100

ALLOWED = re.compile(r"[0-9.+\-*/() ]+")
OPEN_ANNOTATION = re.compile(r"<<([^<>=]*)=$")
ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")

OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, + - * / and parentheses; thousands separators are allowed.

    Returns:
        The value, or None where the text is no such expression or divides by zero.
    """
    expression = expression.replace(",", "").strip()
    if len(expression) > LONGEST_EXPRESSION or ALLOWED.fullmatch(expression) is None:
        return None
    try:
        # Leading zeros are no Python numbers, but "007" and "05" are numbers in an answer.
        tree = ast.parse(re.sub(r"(?<![\d.])0+(?=\d)", "", expression), mode="eval")
        return _value(tree.body)
    except (SyntaxError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))  # by way of its decimal digits: 0.1 is a tenth
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise SyntaxError(f"{ast.dump(node)} is no arithmetic")  # "2**3", "7//2", a call "2(3)"


def format_number(value: Fraction) -> str:
    """A number as GSM8K writes it: "7", "0.5"; 10 significant digits where the decimal expansion is longer."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.10g}"


def calculator_continuation(text: str) -> str | None:
    """What the calculator writes next: "7>>" where `text` ends with `<<3+4=`, None where it has nothing to say.

    Args:
        text: the completion so far.
    """
    found = OPEN_ANNOTATION.search(text)
    value = None if found is None else evaluate(found.group(1))
    return None if value is None else f"{format_number(value)}>>"


def apply_calculator(text: str) -> str:
    """Corrects every annotation of a finished answer, and the number right after it that repeats its result.

    "3 + 4 = <<3+4=8>>8" becomes "3 + 4 = <<3+4=7>>7". Annotations that are right, or cannot be evaluated, stay.
    """
    pieces: list[str] = []
    position = 0
    for found in ANNOTATION.finditer(text):
        value = evaluate(found.group(1))
        if value is None or value == evaluate(found.group(2)):  # "24.00" is right as it stands
            continue
        result = format_number(value)
        pieces += [text[position : found.start()], f"<<{found.group(1)}={result}>>"]
        position = found.end()
        repeated = NUMBER.match(text, position)
        if repeated is not None and evaluate(repeated.group()) == evaluate(found.group(2)):
            pieces.append(result)
            position = repeated.end()
    return "".join([*pieces, text[position:]])


def strip_annotations(text: str) -> str:
    """The text without its `<<...>>` annotations."""
    return re.sub(r"<<[^<>]*>>", "", text)
