"""Positions of tokens that a writer did not choose."""

from tutelage.eval.insertions import Insertions


def test_positions_of_what_was_inserted() -> None:
    insertions = Insertions({(1,): (7, 8), (1, 7, 8, 2): (9,)}.get)
    # As the engine asks: behind the first token, then behind the last inserted one and every other.
    assert [insertions(prefix) for prefix in ((1,), (1, 7, 8), (1, 7, 8, 2))] == [(7, 8), None, (9,)]
    assert insertions.positions((1, 7, 8, 2, 9, 3)) == {1, 2, 4}
    assert insertions.positions((1, 7)) == {1}  # cut at the limit
    assert insertions.positions((2, 7, 8)) == frozenset()


def test_nothing_is_inserted_where_nothing_is_forced() -> None:
    insertions = Insertions(None)
    assert insertions((1,)) is None
    assert insertions.positions((1, 2, 3)) == frozenset()
