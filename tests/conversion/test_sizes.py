"""What a number knows of the batch: the lattice, and its claims on shapes of two batch sizes."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ext.conversion.sizes import Size, computed, dimension, item, join

SIZES = tuple(Size)


def below(a: Size, b: Size) -> bool:
    return join(a, b) is b


def test_join_is_a_least_upper_bound():
    for a, b, c in product(SIZES, repeat=3):
        assert join(a, a) is a and join(a, b) is join(b, a)
        assert join(join(a, b), c) is join(a, join(b, c))
        assert below(a, join(a, b)) and below(b, join(a, b))
        if below(a, c) and below(b, c):
            assert below(join(a, b), c)
    assert all(below(a, Size.MIXED) for a in SIZES)


def test_knowing_less_of_the_operands_is_never_knowing_more_of_the_result():
    for a, b, c in product(SIZES, repeat=3):
        if below(a, b):
            assert below(computed([a, c]), computed([b, c]))


def test_what_is_computed_of_numbers():
    assert computed([]) is Size.PLAIN and computed([Size.PLAIN] * 3) is Size.PLAIN
    assert computed([Size.BATCH, Size.PLAIN]) is Size.MIXED  # 2 * B is no size of a batch
    assert computed([Size.BATCH, Size.BATCH]) is Size.MIXED


@pytest.mark.parametrize(
    ("dim", "rank", "expected"),
    [
        (0, None, Size.BATCH),
        (0, 3, Size.BATCH),
        (-3, 3, Size.BATCH),
        (-3, None, Size.MIXED),
        (-2, 3, Size.PLAIN),
        (2, None, Size.PLAIN),
        ("a node", 3, Size.MIXED),
        (True, 3, Size.MIXED),
        (None, 3, Size.MIXED),
    ],
)
def test_a_dimension(dim, rank, expected):
    assert dimension(dim, rank) is expected


INDICES = st.integers(-3, 2) | st.builds(
    slice,
    st.none() | st.integers(-3, 3),
    st.none() | st.integers(-3, 3),
    st.sampled_from((None, 1, 2)),
)


@given(INDICES, st.booleans())
def test_claims_hold_for_every_batch(index, known):
    """A shape of rank 3 with two batches: PLAIN is the same in both, BATCH is each one's own."""
    found = item(Size.SHAPE, index, 3 if known else None)
    one, other = (7, 5, 6)[index], (11, 5, 6)[index]
    if found is Size.PLAIN:
        assert one == other
    elif found is Size.BATCH:
        assert (one, other) == (7, 11)


@given(st.integers(-3, 2))
def test_a_known_rank_leaves_nothing_open(index):
    assert item(Size.SHAPE, index, 3) is (Size.BATCH if index in (0, -3) else Size.PLAIN)


def test_an_item_of_a_number_is_as_known_as_the_number():
    for size in (Size.PLAIN, Size.BATCH, Size.MIXED):
        assert item(size, 0, None) is size
