"""Which numbers in a graph know the size of the batch: a small lattice. Pure functions; no graphs
and no rules here.

Time is folded into the batch. A number that is, or was computed from, the first size of a spiking
tensor is then T times what forward means by it. A number that never saw that size is the same in
the ANN and in the spiking network. So each number is one of

    PLAIN   it does not know the batch: a constant, or another size
    BATCH   it is the size of the batch
    SHAPE   all sizes of a tensor, the first of which is the batch
    MIXED   it may be anything

The order is flat: MIXED is above the three others, which are not comparable. `join` is the least
upper bound.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable


class Size(enum.Enum):
    """What a number knows of the batch."""

    PLAIN = "plain"
    BATCH = "batch"
    SHAPE = "shape"
    MIXED = "mixed"


def join(first: Size, second: Size) -> Size:
    """What is known of a number that is one or the other."""
    return first if first is second else Size.MIXED


def computed(numbers: Iterable[Size]) -> Size:
    """What is known of a number that is computed from others: 2 * B is no size of a batch."""
    return functools.reduce(join, numbers, Size.PLAIN)


def dimension(dim: object, rank: int | None) -> Size:
    """The size of dimension `dim` of a tensor that begins with the batch and has `rank` dimensions.

    A negative dimension can only be told from the batch where the rank is known.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        return Size.MIXED
    if dim == 0 or (rank is not None and dim == -rank):
        return Size.BATCH
    return Size.PLAIN if dim > 0 or rank is not None else Size.MIXED


def item(shape: Size, index: object, rank: int | None) -> Size:
    """What `shape[index]` knows; shape may be any number, rank is that of the tensor it is of."""
    if shape is not Size.SHAPE:
        return shape
    if not isinstance(index, slice):
        return dimension(index, rank)
    start, step = index.start, index.step
    if step not in (None, 1) or isinstance(start, bool) or not isinstance(start, int):
        return Size.MIXED
    beyond_the_batch = start > 0 or (start < 0 and rank is not None and start > -rank)
    return Size.PLAIN if beyond_the_batch else Size.MIXED
