"""if_forward where a gradient is wanted: backpropagation through time, in a kernel where there is
one, else in plain torch.

The surrogates are in cos_ext/surrogate.py, the kernel's arithmetic in csrc/core/surrogate.h. No
checks of arguments here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as TF

from .. import _ops
from ..surrogate import KERNELS, Surrogate
from .arguments import Arguments
from .checks import MAX_FUSED_STEPS
from .currents import composed
from .results import IFResult

Step = Callable[[Tensor], Tensor]
wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def if_gradient(
    given: Arguments,
    v_reset: float | None,
    surrogate: Step,
    detach_reset: bool,
    return_v: bool,
    return_count: bool,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pool: tuple[int, int],
) -> IFResult:
    """What if_forward returns, with a gradient for all of its tensors; v(T) has one, too."""
    x_seq, theta, v_init = tensors_of(given)
    steps, v = x_seq.shape[0], None
    known = isinstance(surrogate, Surrogate) and type(surrogate) in KERNELS
    fused = known and steps <= MAX_FUSED_STEPS and not return_v
    tensors = [t for t in (x_seq, theta, v_init, scale, bias, residual) if t is not None]
    apart = not torch.compiler.is_compiling() and any(map(wrapped, tensors))
    if fused and not apart:
        assert isinstance(surrogate, Surrogate)
        if scale is not None:  # a pass of its own
            x_seq, bias = composed(x_seq, scale, bias, None), None
        # The same at every step: read once, and one gradient.
        once = steps > 1 and x_seq.stride(0) == 0
        if once and residual is not None:
            x_seq, bias, residual = composed(x_seq, None, bias, residual), None, None
            once = x_seq.stride(0) == 0
        spikes = torch.ops.cos_ext.if_surrogate(
            x_seq[:1] if once else x_seq,
            steps,
            theta,
            v_init,
            v_reset,
            KERNELS.index(type(surrogate)),
            surrogate.alpha,
            detach_reset,
            bias,
            residual,
        )
    else:
        x_seq = composed(x_seq, scale, bias, residual)
        spikes, v = loop(x_seq, theta, v_init, v_reset, surrogate, detach_reset)
    count = (spikes.detach() != 0).sum(0, dtype=torch.int32) if return_count else None
    if pool != (0, 0):
        outer = max(spikes.dim() - 3, 1)  # in one dimension, so that the layout is seen
        pooled = TF.avg_pool2d(spikes.flatten(0, outer - 1), pool)
        spikes = pooled.unflatten(0, spikes.shape[:outer])
    return IFResult(spikes, v if return_v else None, count)


def tensors_of(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """x_seq, θ and v(0)."""
    x_seq, theta, theta_value, v_init, init_value = given
    state = _ops.state_dtype(x_seq.dtype)
    if theta is None:
        theta = x_seq.new_full((), theta_value, dtype=state)
    if v_init is None:
        half = theta.to(state) / 2
        v_init = half if init_value is None else torch.full_like(half, init_value)
    return x_seq, theta, v_init


def loop(
    x_seq: Tensor,
    theta: Tensor,
    v_init: Tensor,
    v_reset: float | None,
    surrogate: Step,
    detach_reset: bool,
    exact: bool = True,
) -> tuple[Tensor, Tensor]:
    """The spikes and v(T), step by step in plain torch, for any surrogate and device.

    exact: what fires is decided as in the kernels, whatever the surrogate rounds or returns.
    """
    state = _ops.state_dtype(x_seq.dtype)
    theta = theta.to(state)
    v = v_init.to(state).expand(x_seq.shape[1:])
    sent = []
    for x in x_seq:
        m = v + x.to(state)
        s = surrogate((m - theta) / theta).to(state)
        if exact:
            s = s + ((m >= theta).to(state) - s).detach()
        sent.append((theta * s).to(x_seq.dtype))
        reset = s.detach() if detach_reset else s
        if v_reset is None:
            v = m - theta * reset
        elif exact:
            v = _Jump.apply(torch.where(m >= theta, v_reset, m), reset, v_reset - m.detach())
        else:
            v = (1 - reset) * m + reset * v_reset
    return torch.stack(sent), v


class _Jump(torch.autograd.Function):
    """v after a reset, whose derivative by the spike is `size`; not 0 · size where that is
    infinite.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, spike: Tensor, size: Tensor) -> Tensor:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (size,) = ctx.saved_tensors
        return grad, grad * size, None


_library = torch.library.Library("cos_ext", "FRAGMENT")
_library.define(
    "if_surrogate(Tensor x_seq, int steps, Tensor v_threshold, Tensor v_init, float? v_reset, "
    "int surrogate, float alpha, bool detach_reset, Tensor? bias, Tensor? residual) -> Tensor"
)


def _forward(
    x_seq: Tensor,
    steps: int,
    theta: Tensor,
    v_init: Tensor,
    v_reset: float | None,
    surrogate: int,
    alpha: float,
    detach_reset: bool,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    every = x_seq.expand(steps, *x_seq.shape[1:])
    given = (every, theta, 0.0, v_init, None, v_reset, False, False)
    return _ops.ops.if_forward(*given, None, bias, residual)[0]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_seq, ctx.steps, theta, v_init, *ctx.settings, bias, residual = inputs
    ctx.save_for_backward(x_seq, theta, v_init, bias, residual)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_seq, theta, v_init, bias, residual = ctx.saved_tensors
    _, _, of_theta, of_v_init, *_, of_bias, of_residual = ctx.needs_input_grad
    given = (x_seq, theta, v_init), (of_theta, of_v_init), ctx.steps, tuple(ctx.settings)
    of_x, by_theta, by_v_init, by_bias = by_kernel(grad, *given, bias, residual, of_bias)
    return of_x, None, by_theta, by_v_init, *[None] * 4, by_bias, of_x if of_residual else None


def by_kernel(
    grad: Tensor,
    tensors: tuple[Tensor, ...],
    needed: tuple[bool, bool],
    steps: int,
    settings: tuple[Any, ...],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    of_bias: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of x_seq, θ, v(0) and the bias, each of the last three where it is needed.

    Args:
        grad: of the spikes ``[T, *neurons]``.
        tensors: x_seq, ``[1, *neurons]`` where it is the same at every step; θ; v(0).
        needed: whether those of θ and of v(0) are.
        steps: T.
        settings: v_reset, the surrogate's number and alpha, detach_reset.
        bias, residual: what is added to x_seq.
        of_bias: whether its gradient is needed.
    """
    x_seq, theta, v_init = tensors
    of_theta, of_v_init = needed
    every = x_seq.expand(steps, *x_seq.shape[1:])
    given = (grad, every, theta, 0.0, v_init, None, *settings, of_v_init, of_theta)
    found = _ops.ops.if_backward(*given, bias, residual, of_bias)
    of_x, by_v_init, by_theta, by_bias = found
    return (
        of_x,
        _summed(by_theta, theta) if of_theta else None,
        _summed(by_v_init, v_init) if of_v_init else None,
        _summed(by_bias, bias) if of_bias else None,
    )


def _summed(by_neuron: Tensor, parameter: Tensor | None) -> Tensor:
    assert parameter is not None  # its gradient is needed
    # In float64, so that threads hardly ever change a bit.
    if by_neuron.shape != parameter.shape:
        by_neuron = by_neuron.double().sum_to_size(parameter.shape)
    return by_neuron.to(parameter.dtype)


_library.impl("if_surrogate", _forward, "CompositeExplicitAutograd")
torch.library.register_autograd(
    "cos_ext::if_surrogate", _backward, setup_context=_keep, lib=_library
)


def _refuse(*_: Any) -> None:
    raise RuntimeError("neurons have a first derivative alone; leave out create_graph=True")


torch.library.register_autograd("cos_ext::if_backward", _refuse, lib=_library)
