"""Multi-step word problems with worked answers, drawn at random from sentence templates.

A problem follows one count ("Tom has 12 apples.") through events that add, subtract, multiply or share equally.
Some events take two equations: "He buys 3 bags of 4." is 3 * 4 = 12, then the sum. Every intermediate result is an
integer in 1..999.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

LARGEST = 999

HE_NAMES = ("Tom", "Ben", "Sam", "Max", "Leo", "Dan", "Jack", "Paul")
SHE_NAMES = ("Ann", "Eva", "Mia", "Zoe", "Amy", "Lucy", "Kate", "Rosa")
ITEMS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cups", "eggs",
    "lemons", "marbles", "nuts", "pears", "pens", "shells", "stamps", "stones",
)  # fmt: skip
CONTAINERS = ("bags", "boxes", "baskets", "packs")

GAINS = (
    "{He} buys {n} more.",
    "{He} finds {n} {items}.",
    "{friend} gives {him} {n} more.",
    "{He} wins {n} {items}.",
    "Then {he} gets {n} from {friend}.",
)
LOSSES = (
    "{He} gives {n} to {friend}.",
    "{He} loses {n} of them.",
    "{He} sells {n} {items}.",
    "{friend} takes {n} of them.",
    "Then {he} uses {n} of them.",
)
PRODUCTS = ("{He} trades each one for {n} new ones.", "A machine turns each one into {n}.")
QUOTIENTS = (
    "{He} puts them in {n} equal piles and keeps one pile.",
    "{He} shares them equally with friends in a group of {n}.",
)
HALVES = ("{He} keeps half and sells the rest.", "{friend} takes half of them.")
CONTAINER_GAINS = ("{He} buys {k} {containers} of {n}.", "{friend} brings {k} {containers} with {n} each.")
CONTAINER_LOSSES = ("{He} sells {k} {containers} of {n}.", "{He} fills {k} {containers} with {n} each for {friend}.")
MORE_THAN = ("{friend} has {n} more than {him} and gives {him} all.",)
FEWER_THAN = ("{friend} has {n} fewer than {him} and gives {him} all.",)


@dataclass(frozen=True)
class Equation:
    """One worked step: `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A word problem and the equations that solve it; the last result is the answer."""

    question: str
    equations: tuple[Equation, ...]

    @property
    def result(self) -> int:
        """The final number."""
        return self.equations[-1].result

    @property
    def answer(self) -> str:
        """The worked answer: "12 + 7 = 19. 19 - 4 = 15. #### 15"."""
        return " ".join(f"{equation}." for equation in self.equations) + f" #### {self.result}"

    @property
    def content(self) -> str:
        """The canonical content: the computation, without names, things and wording."""
        return "; ".join(str(equation) for equation in self.equations)


@dataclass(frozen=True)
class _Event:
    templates: Sequence[str]
    equations: tuple[Equation, ...]
    n: int
    k: int = 0


def apply(left: int, operator: str, right: int) -> Equation | None:
    """The equation, or None where its result is no integer in 1..999."""
    if operator == "/":
        return Equation(left, "/", right, left // right) if left % right == 0 else None
    result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return Equation(left, operator, right, result) if 1 <= result <= LARGEST else None


def _gain(rng: Random, count: int, largest_operand: int) -> _Event | None:
    return _single(GAINS, count, "+", rng.randint(2, largest_operand))


def _loss(rng: Random, count: int, largest_operand: int) -> _Event | None:
    return _single(LOSSES, count, "-", rng.randint(2, largest_operand))


def _product(rng: Random, count: int, largest_operand: int) -> _Event | None:
    return _single(PRODUCTS, count, "*", rng.randint(2, 5))


def _quotient(rng: Random, count: int, largest_operand: int) -> _Event | None:
    divisors = [n for n in range(2, 10) if count % n == 0]
    if not divisors:
        return None
    divisor = rng.choice(divisors)
    return _single(HALVES if divisor == 2 and rng.random() < 0.5 else QUOTIENTS, count, "/", divisor)


def _containers(rng: Random, count: int, largest_operand: int) -> _Event | None:
    k, n = rng.randint(2, 5), rng.randint(2, min(largest_operand, 9))
    operator, templates = rng.choice((("+", CONTAINER_GAINS), ("-", CONTAINER_LOSSES)))
    first = Equation(k, "*", n, k * n)
    second = apply(count, operator, first.result)
    return None if second is None else _Event(templates, (first, second), n, k)


def _comparison(rng: Random, count: int, largest_operand: int) -> _Event | None:
    n = rng.randint(2, largest_operand)
    operator, templates = rng.choice((("+", MORE_THAN), ("-", FEWER_THAN)))
    first = apply(count, operator, n)
    second = None if first is None else apply(count, "+", first.result)
    return None if first is None or second is None else _Event(templates, (first, second), n)


def _single(templates: Sequence[str], count: int, operator: str, n: int) -> _Event | None:
    equation = apply(count, operator, n)
    return None if equation is None else _Event(templates, (equation,), n)


_ONE_EQUATION: tuple[Callable[[Random, int, int], _Event | None], ...] = (_gain, _loss, _product, _quotient)
_TWO_EQUATIONS: tuple[Callable[[Random, int, int], _Event | None], ...] = (_containers, _comparison)


def draw_problem(rng: Random, steps: tuple[int, int], largest_operand: int) -> Problem:
    """Draws a problem.

    Args:
        rng: the source of randomness; equal states give equal problems.
        steps: fewest and most equations of the worked answer.
        largest_operand: the largest number that is added or subtracted; the first count goes up to twice that.
    """
    he = rng.random() < 0.5
    name = rng.choice(HE_NAMES if he else SHE_NAMES)
    friend = rng.choice([other for other in HE_NAMES + SHE_NAMES if other != name])
    words = {
        "name": name, "friend": friend, "items": rng.choice(ITEMS),
        "He": "He" if he else "She", "he": "he" if he else "she", "him": "him" if he else "her",
    }  # fmt: skip
    budget = rng.randint(*steps)
    count = rng.randint(3, 2 * largest_operand)
    sentences = [f"{name} has {count} {words['items']}."]
    equations: list[Equation] = []
    while len(equations) < budget:
        kinds = _ONE_EQUATION + _TWO_EQUATIONS if budget - len(equations) >= 2 else _ONE_EQUATION
        event = rng.choice(kinds)(rng, count, largest_operand)
        if event is None:  # not possible from this count, such as losing more than there are: draw another
            continue
        template = rng.choice(event.templates)
        sentences.append(template.format(n=event.n, k=event.k, containers=rng.choice(CONTAINERS), **words))
        equations.extend(event.equations)
        count = equations[-1].result
    sentences.append(f"How many {words['items']} does {name} have now?")
    return Problem(" ".join(sentences), tuple(equations))
