"""The QCFS activation: the trainable, quantised clip that integrate-and-fire neurons reproduce.

Only that lives here, its gradients and its noise: nothing that spikes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _ops
from ._build import unserved
from ._numbers import real, whole

NOISES = ("residual", "adaptor")
MOST_LEVELS = 2**23  # half a level is a number of float32
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def quantise(z: Tensor, threshold: Tensor, levels: int, noise: Tensor | None = None) -> Tensor:
    """θ · clip(floor(zL/θ + noise + 1/2) / L, 0, 1), elementwise, as the kernels compute it; see
    :class:`QCFS`.
    """
    # Out of place: torch 2.11 compiles in-place operations inside an autograd.Function to a wrong
    # gradient.
    scaled = z * levels / threshold
    if noise is not None:
        scaled = scaled + noise
    return ((scaled + 0.5).floor() / levels).clamp(0, 1) * threshold


def _derivatives(
    z: Tensor, threshold: Tensor, levels: int, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """da/dz as bools, and da/dθ."""
    scaled = z * levels / threshold
    if noise is None:
        noisy, inside = scaled, (z >= 0) & (z <= threshold)
    else:
        noisy = scaled + noise
        inside = (noisy >= 0) & (noisy <= levels)
    level = (noisy + 0.5).floor().clamp(0, levels)
    return inside, (level - torch.where(inside, scaled, 0)) / levels


class _QCFSFunction(torch.autograd.Function):
    """In plain torch, where there is no kernel: under torch.func, and for thresholds of a shape."""

    generate_vmap_rule = True  # so that torch.func works

    @staticmethod
    def forward(z: Tensor, threshold: Tensor, levels: int, noise: Tensor | None) -> Tensor:
        wide = None if noise is None else noise.to(threshold.dtype)
        return quantise(z.to(threshold.dtype), threshold, levels, wide).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold, *noise = ctx.saved_tensors
        wide = [t.to(threshold.dtype) for t in (z, *noise)]
        inside, slope = _derivatives(wide[0], threshold, ctx.levels, wide[1] if noise else None)
        of_threshold = None
        if ctx.needs_input_grad[1]:
            of_threshold = (grad.to(slope.dtype) * slope).sum_to_size(threshold.shape)
        return torch.where(inside, grad, 0), of_threshold, None, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    z, threshold, ctx.levels, noise = inputs
    ctx.save_for_backward(z, threshold, *([] if noise is None else [noise]))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    z, threshold, *noise = ctx.saved_tensors
    return *_ops.ops.qcfs_backward(grad, z, threshold, ctx.levels, *noise), None, None


def _keep_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, z, threshold, ctx.levels, noise = inputs
    ctx.save_for_backward(grad, z, threshold, *([] if noise is None else [noise]))


def _second(ctx: Any, of_z: Tensor, of_threshold: Tensor) -> tuple[Tensor | None, ...]:
    """Of qcfs_backward, in plain torch. The levels have no derivative."""
    grad, z, threshold, *noise = ctx.saved_tensors
    wide = [t.to(threshold.dtype) for t in (grad, z, *noise)]
    inside, slope = _derivatives(wide[1], threshold, ctx.levels, wide[2] if noise else None)
    # Of grad · da/dθ, with a share of -z/θ inside.
    share = torch.where(inside, wide[0] * of_threshold / threshold, 0)
    return (
        (torch.where(inside, of_z, 0) + of_threshold * slope).to(grad.dtype),
        (-share).to(z.dtype),
        (share * torch.where(inside, wide[1], 0)).sum() / threshold,
        None,
        None,
    )


@torch.library.register_fake("cos_ext::qcfs")
def _(z, threshold, levels, noise=None):
    return torch.empty_like(z)


@torch.library.register_fake("cos_ext::qcfs_backward")
def _(grad, z, threshold, levels, noise=None):
    return torch.empty_like(z), torch.empty_like(threshold)


torch.library.register_autograd("cos_ext::qcfs", _backward, setup_context=_keep)
torch.library.register_autograd("cos_ext::qcfs_backward", _second, setup_context=_keep_of_backward)


def _has_kernel(z: Tensor, threshold: Tensor) -> bool:
    served = z.device.type in ("cpu", "meta") or (
        z.device.type == "cuda" and unserved(z.device) is None
    )
    if threshold.dim() or z.device != threshold.device or not served:
        return False
    return torch.compiler.is_compiling() or not (_wrapped(z) or _wrapped(threshold))


class QCFS(nn.Module):
    r"""Quantisation clip-floor-shift activation (Bu et al., ICLR 2022, equation 7, with shift 1/2).

    .. math:: a = \theta \, \mathrm{clip}\!\left(\frac{1}{L}
              \left\lfloor \frac{z L}{\theta} + \frac12 \right\rfloor, 0, 1\right)

    Take an IF neuron with threshold θ and v_init = θ/2, driven for T = L steps and calibrated
    exactly. It emits, neuron for neuron, the count a·L/θ; see
    :func:`cos_ext.functional.cos_forward`.

    Args:
        levels: L, the number of quantisation steps, an int >= 1 and at most 2^23.
        threshold: initial value of the learnable scalar θ > 0.
        noise: what is added in training mode; None: nothing. In eval mode the activation is exact.

            * ``"residual"``: a - σ n with n standard normal (Huang et al. 2024, arXiv 2404.17456).
              σ is the buffer ``noise_std``, 0 at first;
              :func:`cos_ext.training.noise.fit_noise` sets it. It is no part of ``state_dict``.
            * ``"adaptor"``: ε, uniform in [-1/2, 1/2), beside the 1/2 above (Li and Rajendran,
              arXiv 2312.05290). Their formula does not show the rounding; it is read so here.

            Random numbers are those of torch's generator for the device.

    Attributes:
        noise: may be set at any time.

    Shape: any; the output has the input's shape and dtype, and its layout where that has no gaps.
    float16 and bfloat16 are computed in float32, with θ in float32, and rounded once.

    Gradients: floor is straight-through. So da/dz is 1 for 0 <= z <= θ and 0 elsewhere. da/dθ is
    a/θ, and inside that range z/θ less. With ε, what is 0 or 1 follows zL/θ + ε in [0, L]. The sum
    for θ is in float64 and does not depend on the number of threads. z is kept for the backward
    pass, and ε where there is one.

    Raises:
        TypeError: levels is not an int, or the input is not a floating-point tensor.
        ValueError: levels < 1 or > 2^23, threshold is not positive and finite, or there is no such
            noise.
    """

    noise_std: Tensor
    _noise: str | None = None

    def __init__(self, levels: int, threshold: float = 8.0, noise: str | None = None) -> None:
        super().__init__()
        self.levels = whole("levels", levels, 1, MOST_LEVELS)
        threshold = real("threshold", threshold, nan=True)
        # As it is kept; where modules are built on the meta device, nothing can be read there.
        kept = torch.tensor(threshold, device="cpu")
        if not (math.isfinite(kept) and kept > 0):
            raise ValueError(
                f"threshold must be positive and finite in {kept.dtype}, got {threshold}"
            )
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.noise = noise

    @property
    def noise(self) -> str | None:
        return self._noise

    @noise.setter
    def noise(self, noise: str | None) -> None:
        if noise is not None and noise not in NOISES:
            raise ValueError(f"noise must be None or one of {NOISES}, got {noise!r}")
        self._noise = noise
        if noise == "residual" and "noise_std" not in self._buffers:
            zero = torch.zeros((), device=self.threshold.device)
            self.register_buffer("noise_std", zero, persistent=False)
        elif noise != "residual":
            self._buffers.pop("noise_std", None)

    def forward(self, z: Tensor) -> Tensor:
        """The activation a of z, elementwise, in z's shape and dtype."""
        if not z.is_floating_point():
            raise TypeError(f"QCFS needs a floating-point input, got {z.dtype}")
        noise = self._noise if self.training else None
        eps = torch.empty_like(z).uniform_(-0.5, 0.5) if noise == "adaptor" else None
        threshold = self.threshold.to(_ops.state_dtype(z.dtype))
        if _has_kernel(z, threshold):
            a = _ops.ops.qcfs(z, threshold, self.levels, eps)
        else:
            a = _QCFSFunction.apply(z, threshold, self.levels, eps)
        if noise == "residual":
            a = a - self.noise_std.to(a.dtype) * torch.randn_like(a)
        return a

    def extra_repr(self) -> str:
        """The number of levels, the threshold as it is now, and the noise where there is some."""
        own = f"levels={self.levels}, threshold={self.threshold.item():.4g}"
        return own if self._noise is None else f"{own}, noise={self._noise!r}"
