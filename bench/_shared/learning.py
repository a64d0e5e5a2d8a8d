"""What the benchmarks of training share: rows held against a base, and the bytes that a forward
keeps. Which rows there are is the scripts' business.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import tables
from .timing import Call, interleaved, median_ratio, seconds_of


def measure(
    what: str, calls: Mapping[str, Call], base: str, repeats: int, own: str
) -> dict[str, Any]:
    """A record of the rows in milliseconds and as ratios to `base`; prints them, and the rows that
    are no base beside `own`.
    """
    wall = partial(seconds_of, clock="wall")
    times = {name: each[2:] for name, each in interleaved(calls, repeats + 2, wall).items()}
    print(tables.head((what, "ms", f"to {base}")))
    found = {}
    for name, each in times.items():
        middle, ratio = 1e3 * statistics.median(each), median_ratio(each, times[base])
        found[name] = {"ms": middle, "ratio": ratio}
        print(tables.row((name, f"{middle:.2f}", f"{ratio:.2f}")))
    for name in times if own in times else ():
        if name not in (base, own):
            print(f"{name} takes {median_ratio(times[name], times[own]):.2f} x {own}")
    return {"what": what, "base": base, "rows": found}


def bytes_kept(forward: Callable[[], object]) -> int:
    """The bytes that a forward keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        forward()
    return sum(storages.values())
