"""Numbers that users give: whole ones and real ones, of Python or of NumPy.

What they are for, and how large they may be, is the callers' business.
"""

from __future__ import annotations

import numbers
import operator
from typing import Any

import torch


def whole(
    name: str, value: Any, least: int | None = None, most: int | None = None, *, or_: str = ""
) -> int:
    """An int, also where NumPy made it; a torch.SymInt as it is.

    Args:
        name: of the argument, in messages.
        value: what was given.
        least, most: the smallest and the largest that are allowed.
        or_: what else the caller allows, in messages: " or None".

    Raises:
        TypeError: it is no int; a bool and a tensor are none.
        ValueError: it is below `least` or above `most`.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        number: Any = value
    elif isinstance(value, (bool, torch.Tensor)) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an int{or_}, got {type(value).__name__}")
    else:
        number = operator.index(value)
    if least is not None and number < least:
        raise ValueError(f"{name} must be >= {least}{or_}, got {number}")
    if most is not None and number > most:
        shown = number if number < 10**20 else f"an int of {len(str(number))} digits"
        raise ValueError(f"{name} must be <= {most}, got {shown}")
    return number


def real(name: str, value: Any, *, nan: bool = False, or_: str = "") -> float:
    """A float, infinities included.

    Args:
        name: of the argument, in messages.
        value: what was given.
        nan: NaN is allowed.
        or_: what else the caller allows, in messages: " or a tensor".

    Raises:
        TypeError: it is no real number of Python or NumPy; a bool is none.
        ValueError: it is NaN, or an int that is too large.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a float{or_}, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got an int of {len(str(value))} digits") from None
    if number != number and not nan:
        raise ValueError(f"{name} must not be NaN")
    return number
