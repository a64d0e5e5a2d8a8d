"""Neurons whose potential goes on: the spikes of some steps and the potential after them, both with
a gradient.

The backward pass is the kernel's as long as nobody needs a gradient of that last potential. Which
neurons go on, and where their potential is kept, is the callers' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .. import functional as F
from .._functional.arguments import Check, prepared
from .._functional.checks import check_values, differentiates
from .._functional.gradients import by_kernel, loop, tensors_of, wrapped
from .._functional.passes import NOTHING, if_pass
from ..surrogate import KERNELS, Surrogate


def fitting(kept: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """A kept potential that fits neurons of this shape.

    Raises:
        ValueError: it does not.
    """
    fits = kept.shape == shape and kept.device == x.device
    if not fits or kept.dtype != F.state_dtype(x.dtype):
        raise ValueError(
            f"x must fit the kept potential {kept.dtype} {tuple(kept.shape)} on {kept.device}, got "
            f"{x.dtype} {tuple(shape)} on {x.device}; call reset() between inputs"
        )
    return kept


def run_on(
    x_seq: Tensor,
    theta: Tensor,
    start: float | Tensor,
    v_reset: float | None,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
    inplace: bool = False,
    check: Check | None = check_values,
) -> tuple[Tensor, Tensor]:
    """The spikes ``[T, *neurons]``, 0 or θ, and v(T) ``[*neurons]`` in the state dtype.

    Args:
        x_seq: ``[T, *neurons]``.
        theta, start: θ and v(0); tensors broadcast to ``[*neurons]``.
        v_reset, surrogate, detach_reset: as for :func:`cos_ext.functional.if_forward`.
        inplace: write the spikes over x_seq, where no gradient is needed.
        check: looks at the values of theta; None: they were looked at.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`cos_ext.functional.if_forward`.
    """
    tensors = [x_seq, theta] + ([start] if isinstance(start, Tensor) else [])
    learns = differentiates(tensors)
    if learns and _has_kernel(tensors, surrogate) and math.isfinite(v_reset or 0.0):
        with torch.no_grad():
            given = prepared(x_seq, theta, start, False, check)
        x_seq, *others = tensors_of(given)
        steps = x_seq.shape[0]
        if x_seq.stride(0) == 0:  # the same at every step: read once, and one gradient
            x_seq = x_seq[:1]
        return _RunOn.apply(x_seq, *others, steps, v_reset, surrogate, detach_reset)
    options = (v_reset, inplace and not learns, True, False, NOTHING, None)
    result = if_pass(x_seq, theta, start, *options, surrogate, detach_reset, check)
    assert result.v is not None  # it was asked for
    return result.spikes, result.v


def _has_kernel(tensors: list[Tensor], surrogate: Callable[[Tensor], Tensor]) -> bool:
    """Whether the kernel takes the backward pass; if_forward's way does otherwise."""
    known = isinstance(surrogate, Surrogate) and type(surrogate) in KERNELS
    if not known or torch.compiler.is_compiling() or any(map(wrapped, tensors)):
        return False
    # A single step's potential is what the next one starts from: it has a gradient.
    return tensors[0].dim() > 0 and 1 < tensors[0].shape[0] <= F.MAX_FUSED_STEPS


class _RunOn(torch.autograd.Function):
    @staticmethod
    def forward(
        x_seq: Tensor, theta: Tensor, start: Tensor, steps: int, v_reset: float | None, *_: Any
    ) -> tuple[Tensor, Tensor]:
        every = x_seq.expand(steps, *x_seq.shape[1:])
        spikes, v, _count = _ops.ops.if_forward(
            every, theta, 0.0, start, None, v_reset, True, False
        )
        return spikes, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.steps, ctx.v_reset, ctx.surrogate, ctx.detach_reset = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_v: Tensor | None) -> tuple[Any, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]
        settings = (ctx.v_reset, ctx.surrogate, ctx.detach_reset)
        if of_v is None and grad is not None:
            how = (ctx.v_reset, KERNELS.index(type(ctx.surrogate)), ctx.surrogate.alpha)
            own = (*how, ctx.detach_reset)
            gradients = by_kernel(grad, tensors, needed[1:], ctx.steps, own)
            return *gradients[:3], *[None] * 4
        if torch.is_grad_enabled():
            raise RuntimeError("neurons have a first derivative alone; leave out create_graph=True")
        # v(T) has a gradient: the steps once more, in plain torch.
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needed)]
        with torch.enable_grad():
            every = leaves[0].expand(ctx.steps, *leaves[0].shape[1:])
            outputs = loop(every, leaves[1], leaves[2], *settings)
        came = [pair for pair in zip(outputs, (grad, of_v)) if pair[1] is not None]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        given = [list(column) for column in zip(*came)]
        found = iter(torch.autograd.grad(given[0], wanted, given[1], allow_unused=True))
        return *(next(found) if need else None for need in needed), *[None] * 4
