"""What neurons see where other passes are fused into theirs, as passes of their own in plain torch.
The kernels have the same in csrc/core/current.h.
"""

from __future__ import annotations

from torch import Tensor

from .. import _ops


def composed(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    """x · scale + bias + residual, rounded to x's dtype after the bias and after the residual."""
    if scale is not None or bias is not None:
        state = _ops.state_dtype(x.dtype)
        wide = x.to(state) if scale is None else x.to(state) * scale.to(state)
        x = (wide if bias is None else wide + bias.to(state)).to(x.dtype)
    return x if residual is None else x + residual
