"""Which samples of an input have numbers that neurons would swallow. What becomes of them is the
callers' business.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unfit(x: Tensor) -> Tensor:
    """Which samples of what neurons are given, [N, ...], have NaN or +inf; bool [N].

    -inf is below every threshold, for a rectifier, too.
    """
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    if not x.is_floating_point() or x.numel() == 0:
        return x.new_zeros(x.shape[:1], dtype=torch.bool)
    most = x.amax(tuple(range(1, x.dim()))) if x.dim() > 1 else x
    return (most < math.inf).logical_not()  # so is NaN
