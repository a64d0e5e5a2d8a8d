"""The layer in plain torch operations, and how torch.compile gets them.

The calibrated form, and the loop for one dtype, are cos_ext.bench's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cos_ext import bench

from .cases import THETA


def plain_loop(x: Tensor) -> Tensor:
    # bench.plain_if keeps its potential in x's dtype; in half precision that is another function
    # than if_forward.
    v = torch.full_like(x[0], THETA / 2, dtype=torch.float32)
    return bench.plain_if_into(x, THETA, torch.empty_like(x), v)


def plain_stack(x: Tensor) -> Tensor:
    # The form that inductor fuses best (bench._stacked_if), again with a float32 potential and x's
    # dtype emitted.
    v = torch.full_like(x[0], THETA / 2, dtype=torch.float32)
    steps = []
    for t in range(x.shape[0]):
        m = v + x[t]
        s = torch.where(m >= THETA, THETA, 0.0)
        v = m - s
        steps.append(s.to(x.dtype))
    return torch.stack(steps)


def compile_(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    compiled = torch.compile(
        function, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode
    )
    if mode != "max-autotune":
        return compiled

    def step(*args: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args)

    return step
