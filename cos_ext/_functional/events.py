"""The event-driven convolution and linear layer as functions: packing weights, spikes as bits, and
validation. The kernel is in csrc/cpu; when a network uses it is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._numbers import whole
from .checks import FLOAT_DTYPES, differentiates

LARGEST = 2**30 - 1  # csrc/checks.h


class Bits(NamedTuple):
    """Spikes of one level ``[N, C, H, W]``, channels_last, one bit each."""

    bits: Tensor  # int64 [N, H, W, ceil(C / 64)], channel c in bit c % 64 of word c // 64
    level: Tensor  # one value: what a spike is
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        n, height, width, _ = self.bits.shape
        return n, self.channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.level.dtype

    def values(self) -> Tensor:
        """The spikes ``[N, C, H, W]``."""
        one = self.bits[..., None] >> torch.arange(64) & 1
        return (one.flatten(-2)[..., : self.channels] * self.level).permute(0, 3, 1, 2)


def values_of(spikes: Any) -> Any:
    """Spikes as a tensor, where they are bits."""
    return spikes.values() if isinstance(spikes, Bits) else spikes


def pack_weight(weight: Tensor) -> Tensor:
    """Weights of a 2-d convolution as the event-driven kernel reads them.

    Args:
        weight: [outputs, C, kernel_h, kernel_w], in one of ``FLOAT_DTYPES``.

    Returns:
        [blocks, kernel_w, kernel_h, C, block], float64 for float64, else float32; the outputs are
        padded with zeros to blocks of 16, 32 or 64.
    """
    outputs, channels, height, width = weight.shape
    block = next((size for size in (16, 32) if outputs <= size), 64)
    blocks = -(-outputs // block)
    packed = weight.new_zeros(
        (blocks, width, height, channels, block), dtype=_ops.state_dtype(weight.dtype)
    )
    for index, part in enumerate(weight.split(block)):
        packed[index, ..., : part.shape[0]] = part.permute(3, 2, 1, 0)
    return packed


def spike_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """:func:`torch.nn.functional.conv2d` of spikes: its time follows what is not 0 in x. On a CPU,
    for inference.

    The sum of an output has a fixed order: from its bias on, by the columns of its window, then its
    rows, then channels. So it does not depend on the batch, on the number of threads or on the
    instruction set. NaN and infinity in x come out. A NaN or infinite weight reaches an output only
    where its input is not 0.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, any values and strides;
            channels_last is read as it is.
        weight: [outputs, C, kernel_h, kernel_w], x's dtype.
        bias: [outputs], x's dtype, or None.
        stride, padding, dilation: an int, or two.

    Returns:
        [N, outputs, H', W'] in x's dtype, channels_last. 16-bit inputs are summed in float32.

    Raises:
        TypeError: an argument is no tensor or no int, or has another dtype.
        ValueError: shapes do not fit, a tensor is not on a CPU, or a size is out of range.
        RuntimeError: a gradient would be needed; there is none.
    """
    _check(x, weight, bias, dim=4)
    strides, paddings = _pair("stride", stride, 1), _pair("padding", padding, 0)
    dilations = _pair("dilation", dilation, 1)
    for size, kernel, pad, step in zip(x.shape[2:], weight.shape[2:], paddings, dilations):
        if size < 1 or size + 2 * pad < step * (kernel - 1) + 1:
            raise ValueError(
                f"x must be as large as the window, got {tuple(x.shape[2:])} with padding "
                f"{paddings} for kernel {tuple(weight.shape[2:])} with dilation {dilations}"
            )
    packed = pack_weight(weight.detach())
    return convolved(x, packed, bias, weight.shape[0], *strides, *paddings, *dilations)


def convolved(
    x: Tensor | Bits, packed: Tensor, bias: Tensor | None, outputs: int, *sizes: int
) -> Tensor:
    """The operator, on weights that are packed; sizes: two strides, paddings, dilations."""
    spikes, level = _bits_of(x)
    return _ops.ops.spike_conv2d(spikes, level, packed, _in_state(bias, x), outputs, *sizes)


class Neurons(NamedTuple):
    """What the operators below are told of neurons, in their order."""

    theta: Tensor
    v_init: Tensor
    v_reset: float | None
    rho: int
    iterations: int
    emission: int
    scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | Bits | None = None  # [steps*B, ...]

    def arguments(self, steps: int) -> tuple[Any, ...]:
        added, level = _bits_of(self.residual)
        if added is not None:
            added = added.unflatten(0, (steps, -1))
        calibration = (self.v_reset, self.rho, self.iterations, self.emission)
        return (
            *(self.theta, 0.0, self.v_init, None),
            *calibration,
            *(self.scale, self.bias, added, level),
        )


def layer(
    x: Tensor | Bits,
    convolution: tuple[Any, ...],
    neurons: Neurons,
    steps: int,
    *,
    pool: tuple[int, int] = (0, 0),
    to_bits: bool = False,
) -> Tensor | Bits:
    """:func:`convolved` of x ``[steps*B, C, H, W]``, its other arguments in `convolution`, and the
    neurons that read it, in one pass.

    The currents stay in the caches; the spikes, ``[steps*B, ...]``, are those of two passes, bit
    for bit. The operators check the arguments.
    """
    (spikes, level), (packed, bias, outputs, *sizes) = _bits_of(x), convolution
    given = (packed, _in_state(bias, x), outputs, *sizes, steps, *neurons.arguments(steps))
    out = _ops.ops.spike_layer(spikes, level, *given, *pool, to_bits).flatten(0, 1)
    return Bits(out, neurons.theta.to(x.dtype), outputs) if to_bits else out


def bits_of(x_seq: Tensor, neurons: Neurons) -> Bits:
    """The spikes of neurons whose currents are there, ``[steps, B, C, H, W]``, channels_last."""
    bits = _ops.ops.spike_bits(x_seq, *neurons.arguments(x_seq.shape[0]))
    return Bits(bits.flatten(0, 1), neurons.theta.to(x_seq.dtype), x_seq.shape[2])


def _bits_of(spikes: Tensor | Bits | None) -> tuple[Tensor | None, Tensor | None]:
    return (spikes.bits, spikes.level) if isinstance(spikes, Bits) else (spikes, None)


def _in_state(bias: Tensor | None, x: Tensor | Bits) -> Tensor | None:
    return None if bias is None else bias.detach().to(_ops.state_dtype(x.dtype)).contiguous()


def spike_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of spikes: skips what is 0 in x. On a CPU, for inference.

    Args:
        x: [..., C]. weight: [outputs, C]. bias: [outputs] or None.

    Returns:
        [..., outputs].

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`spike_conv2d`.
    """
    _check(x, weight, bias, dim=2)
    rows = x.reshape(-1, x.shape[-1], 1, 1)
    out = spike_conv2d(rows, weight[:, :, None, None], bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> None:
    given = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOAT_DTYPES or tensor.dtype != x.dtype:
            raise TypeError(
                f"{name} must be float32, float64, float16 or bfloat16, x's dtype, got "
                f"{tensor.dtype}"
            )
        if tensor.device.type not in ("cpu", "meta") or tensor.device != x.device:
            raise ValueError(
                f"{name} must be on a CPU, like the others, got {tensor.device}; elsewhere use "
                "torch.nn.functional.conv2d or linear"
            )
    channels = x.shape[1 if dim == 4 else -1] if x.dim() else None
    fits = x.dim() == 4 or (dim == 2 and x.dim() >= 1)
    if not fits or weight.dim() != dim or weight.shape[1] != channels or 0 in weight.shape:
        shapes = "[N, C, H, W] and [outputs, C, h, w]" if dim == 4 else "[..., C] and [outputs, C]"
        raise ValueError(
            f"x and weight must be {shapes}, weight not empty, got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if differentiates(given.values()):
        raise RuntimeError(
            "the event-driven convolution has no gradient; call it under torch.no_grad(), or use "
            "torch.nn.functional.conv2d or linear"
        )


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be an int or two, got {value!r}")
    return whole(name, pair[0], least, LARGEST), whole(name, pair[1], least, LARGEST)
