"""The QCFS activation: the trainable, quantised clip that integrate-and-fire neurons reproduce.

Only that lives here: nothing that spikes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._numbers import real, whole


class _QCFSFunction(torch.autograd.Function):
    """Quantised clip with the straight-through gradient of floor; saves one tensor, not five."""

    generate_vmap_rule = True  # so that torch.func works

    @staticmethod
    def forward(z: Tensor, threshold: Tensor, levels: int) -> Tensor:
        return quantise(z, threshold, levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        z, threshold, ctx.levels = inputs
        ctx.save_for_backward(z, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, threshold = ctx.saved_tensors
        inside = (z >= 0) & (z <= threshold)
        grad_z = grad * inside if ctx.needs_input_grad[0] else None
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            level = quantise(z, threshold, ctx.levels) / threshold
            grad_threshold = (grad * (level - inside * (z / threshold))).sum_to_size(
                threshold.shape
            )
        return grad_z, grad_threshold, None


def quantise(z: Tensor, threshold: Tensor, levels: int) -> Tensor:
    """θ · clip(floor(zL/θ + 1/2) / L, 0, 1), elementwise; see :class:`QCFS`."""
    # Out of place: torch 2.11 compiles in-place operations inside an autograd.Function to a wrong
    # gradient.
    return ((z * levels / threshold + 0.5).floor() / levels).clamp(0, 1) * threshold


class QCFS(nn.Module):
    r"""Quantisation clip-floor-shift activation (Bu et al., ICLR 2022, equation 7, with shift 1/2).

    .. math:: a = \theta \, \mathrm{clip}\!\left(\frac{1}{L}
              \left\lfloor \frac{z L}{\theta} + \frac12 \right\rfloor, 0, 1\right)

    Take an IF neuron with threshold θ and v_init = θ/2, driven for T = L steps and calibrated
    exactly. It emits, neuron for neuron, the count a·L/θ; see
    :func:`cos_ext.functional.cos_forward`.

    Args:
        levels: L, the number of quantisation steps, an int >= 1.
        threshold: initial value of the learnable scalar θ > 0.

    Shape: any; the output has the input's shape and dtype.

    Gradients: floor is straight-through. So da/dz is 1 for 0 <= z <= θ and 0 elsewhere. da/dθ is
    a/θ, and inside that range z/θ less.

    Raises:
        TypeError: levels is not an int, or the input is not a floating-point tensor.
        ValueError: levels < 1, or threshold is not positive and finite.
    """

    def __init__(self, levels: int, threshold: float = 8.0) -> None:
        super().__init__()
        self.levels = whole("levels", levels, 1)
        threshold = real("threshold", threshold, nan=True)
        # As it is kept; where modules are built on the meta device, nothing can be read there.
        kept = torch.tensor(threshold, device="cpu")
        if not (math.isfinite(kept) and kept > 0):
            raise ValueError(
                f"threshold must be positive and finite in {kept.dtype}, got {threshold}"
            )
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, z: Tensor) -> Tensor:
        """The activation a of z, elementwise, in z's shape and dtype."""
        if not z.is_floating_point():
            raise TypeError(f"QCFS needs a floating-point input, got {z.dtype}")
        return _QCFSFunction.apply(z, self.threshold.to(z.dtype), self.levels)

    def extra_repr(self) -> str:
        """The number of levels and the threshold as it is now."""
        return f"levels={self.levels}, threshold={self.threshold.item():.4g}"
