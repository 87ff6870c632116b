import pytest

from tutelage.tasks.base import cut


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("a Q: b A: c", ("A:", "Q:"), "a "), ("a b", ("Q:",), "a b"), ("a b", (), "a b"), ("Q: a", ("Q:",), "")],
)
def test_cut(text: str, stops: tuple[str, ...], expected: str) -> None:
    assert cut(text, stops) == expected
