"""Tells torch the shapes of the operators' results (fakes), and what a convolution costs.

Imported once, for its effect. No loading here (_ops.py), no validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._ops import CUDA_SLOTS, TALLIES, conv_size, state_dtype

_GENERAL_WANTED = slice(24, 28)  # of general_forward, after x_seq (csrc/ops.cpp)


def _result(x: Tensor, wanted: bool, dtype: torch.dtype) -> Tensor | None:
    return torch.empty_like(x.select(0, 0), dtype=dtype) if wanted else None


def _if_results(x: Tensor, return_v: bool, return_count: bool) -> tuple[Tensor | None, ...]:
    return _result(x, return_v, state_dtype(x.dtype)), _result(x, return_count, torch.int32)


def _cos_results(
    x: Tensor, rho: int, v: bool, count: bool, v_init: bool, offset: bool, statistics: bool
) -> tuple[Tensor | None, ...]:
    state, sums = state_dtype(x.dtype), None
    if statistics:
        slots = CUDA_SLOTS if x.device.type == "cuda" else 1
        sums = x.new_empty((slots, 2 * rho + 1 + len(TALLIES)), dtype=torch.int64)
    return (
        _result(x, v, state),
        _result(x, count, torch.int32),
        _result(x, v_init, state),
        _result(x, offset, torch.int32),
        sums,
    )


def _spikes(x: Tensor, rows: int, columns: int) -> Tensor:
    if rows == 0:
        return torch.empty_like(x)
    *outer, height, width = x.shape
    sizes = [*outer, height // rows, width // columns]
    channels_last = (
        x.dim() >= 4 and not x[0].is_contiguous() and x[0].movedim(-3, -1).is_contiguous()
    )
    if not channels_last:
        return x.new_empty(sizes)
    *outer, channels, height, width = sizes
    return x.new_empty([*outer, height, width, channels]).movedim(-1, -3)


@torch.library.register_fake("cos_ext::if_forward")
def _(
    x_seq,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    v_reset,
    return_v,
    return_count,
    scale=None,
    bias=None,
    residual=None,
    pool_rows=0,
    pool_columns=0,
):
    return _spikes(x_seq, pool_rows, pool_columns), *_if_results(x_seq, return_v, return_count)


@torch.library.register_fake("cos_ext::if_forward_")
def _(
    x_seq,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    v_reset,
    return_v,
    return_count,
    scale=None,
    bias=None,
    residual=None,
):
    return _if_results(x_seq, return_v, return_count)


@torch.library.register_fake("cos_ext::cos_forward")
def _(
    x_seq,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    rho,
    iterations,
    return_v,
    return_count,
    return_v_init,
    return_offset,
    emission=0,
    return_statistics=False,
    scale=None,
    bias=None,
    residual=None,
    pool_rows=0,
    pool_columns=0,
):
    results = _cos_results(
        x_seq, rho, return_v, return_count, return_v_init, return_offset, return_statistics
    )
    return _spikes(x_seq, pool_rows, pool_columns), *results


@torch.library.register_fake("cos_ext::cos_forward_")
def _(
    x_seq,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    rho,
    iterations,
    return_v,
    return_count,
    return_v_init,
    return_offset,
    emission=0,
    return_statistics=False,
    scale=None,
    bias=None,
    residual=None,
):
    return _cos_results(
        x_seq, rho, return_v, return_count, return_v_init, return_offset, return_statistics
    )


@torch.library.register_fake("cos_ext::general_forward")
def _(x_seq, *rest):
    return torch.empty_like(x_seq), *_general_results(x_seq, *rest)


@torch.library.register_fake("cos_ext::general_forward_")
def _(x_seq, *rest):
    return _general_results(x_seq, *rest)


def _general_results(x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    v, count, v_init, offset = rest[_GENERAL_WANTED]
    state, whole = state_dtype(x.dtype), torch.int32
    asked = ((v, state), (count, whole), (v_init, state), (offset, whole))
    return tuple(_result(x, one, dtype) for one, dtype in asked)


@torch.library.register_fake("cos_ext::rate_forward")
def _(
    x_mean,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    rho,
    scale=None,
    bias=None,
    residual=None,
):
    return torch.empty_like(x_mean)


@torch.library.register_fake("cos_ext::rate_forward_")
def _(
    x_mean,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    rho,
    scale=None,
    bias=None,
    residual=None,
):
    return None


@torch.library.register_fake("cos_ext::calibrate_v_init")
def _(x_seq, v_threshold, v_threshold_value, v_init, v_init_value, rho, iterations):
    state = state_dtype(x_seq.dtype)
    return (
        _result(x_seq, True, state),
        _result(x_seq, True, torch.int32),
        _result(x_seq, True, torch.int32),
    )


@torch.library.register_fake("cos_ext::spike_conv2d")
def _(
    x,
    level,
    weight,
    bias,
    outputs,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
):
    window = (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w)
    sizes, dtype = _places(x, level, weight, window)
    return x.new_empty([x.shape[0], *sizes, outputs], dtype=dtype).permute(0, 3, 1, 2)


def _places(
    x: Tensor, level: Tensor | None, weight: Tensor, window: Sequence[int]
) -> tuple[tuple[int, int], torch.dtype]:
    """Height and width of a convolution of values, or of bits, and the dtype of its sums."""
    if level is None:
        return conv_size(x.shape[2:], weight, *window), x.dtype
    return conv_size(x.shape[1:3], weight, *window), level.dtype


@torch.library.register_fake("cos_ext::spike_layer")
def _(
    x,
    level,
    weight,
    conv_bias,
    outputs,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    steps,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    v_reset,
    rho,
    iterations,
    emission,
    scale=None,
    bias=None,
    residual=None,
    residual_level=None,
    pool_rows=0,
    pool_columns=0,
    to_bits=False,
):
    window = (stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w)
    sizes, dtype = _places(x, level, weight, window)
    places = [steps, x.shape[0] // steps, *sizes]
    if to_bits:
        return x.new_empty([*places, -(-outputs // 64)], dtype=torch.int64)
    currents = x.new_empty([*places, outputs], dtype=dtype).permute(0, 1, 4, 2, 3)
    return _spikes(currents, pool_rows, pool_columns)


@torch.library.register_fake("cos_ext::if_backward")
def _(
    grad,
    x_seq,
    v_threshold,
    v_threshold_value,
    v_init,
    v_init_value,
    v_reset,
    surrogate,
    alpha,
    detach_reset,
    of_v_init,
    of_v_threshold,
    bias=None,
    residual=None,
    of_bias=False,
):
    once = x_seq.shape[0] > 1 and x_seq.stride(0) == 0
    state, wanted = state_dtype(x_seq.dtype), (of_v_init, of_v_threshold, of_bias)
    by_neuron = (_result(x_seq, one, state) for one in wanted)
    return torch.empty_like(x_seq[:1] if once else x_seq), *by_neuron


@torch.library.register_fake("cos_ext::spike_bits")
def _(x_seq, *_, **__):
    steps, batch, channels, height, width = x_seq.shape
    return x_seq.new_empty([steps, batch, height, width, -(-channels // 64)], dtype=torch.int64)


@register_flop_formula(torch.ops.cos_ext.spike_conv2d)
def _(
    x_shape: Any, level: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """What the dense convolution is counted as."""
    n, outputs, height, width = out_shape
    _, kernel_w, kernel_h, channels, _ = weight_shape
    return 2 * n * outputs * height * width * channels * kernel_h * kernel_w
