"""NaN and infinite inputs: neurons would swallow them, so that the network's output has to show
them. Nothing is raised here: an input on a GPU is not waited for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Unfit(nn.Module):
    """Which samples of what neurons are given, [N, ...], have NaN or +inf; bool [N].

    -inf is below every threshold, for a rectifier, too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.numel() == 0:
            return x.new_zeros(x.shape[:1], dtype=torch.bool)
        most = x.amax(tuple(range(1, x.dim()))) if x.dim() > 1 else x
        return (most < math.inf).logical_not()  # so is NaN


class Shown(nn.Module):
    """`out` [T*B, ...], NaN for the samples that are marked in one of `marks`.

    Each mark is bool [B], or [B*k] where samples come in pieces. Of another size, where no sample
    is known, one marks all.

    inplace: may write over `out`.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, out: Tensor, batch: int, *marks: Tensor) -> Tensor:
        if batch == 0:
            return out
        marked = out.new_zeros(batch, dtype=torch.bool)
        for mark in marks:
            by_sample = mark.shape[0] % batch == 0
            marked = marked | (mark.view(batch, -1).any(1) if by_sample else mark.any())
        by_step = out.unflatten(0, (-1, batch))
        fill = by_step.masked_fill_ if self.inplace else by_step.masked_fill
        return fill(marked.view(1, batch, *[1] * (out.dim() - 1)), math.nan).flatten(0, 1)
