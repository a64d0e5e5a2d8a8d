"""What is known of ATen's operations where they are counted: which multiply, which only move
elements, where they leave the time-steps, and how many outputs an input reaches.

Nothing is run or counted here, and no network is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Multiplications element by element, by name: position of the two factors.
ELEMENTWISE = {"mul": (0, 1), "mul_": (0, 1), "addcmul": (1, 2)}

# These, and multiplications by weights, or of two matrices.
PRODUCTS = {
    "convolution": (0, 1),
    "mm": (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    **ELEMENTWISE,
}

# Multiplications by weights that have no rule here. What they take is not known, so that leaving
# them out would be a lie.
_OPAQUE = frozenset(
    (
        "mv",
        "addmv",
        "dot",
        "vdot",
        "addbmm",
        "addr",
        "_trilinear",
        "mkldnn_rnn_layer",
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "_cudnn_rnn",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "miopen_rnn",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_embedding_bag",
        "_cdist_forward",
    )
)

# They move elements, and compute nothing.
MOVES = frozenset(
    (
        "clone",
        "copy_",
        "_to_copy",
        "_unsafe_view",
        "as_strided_",
        "cat",
        "stack",
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "gather",
        "index",
        "index_select",
        "flip",
        "roll",
        "repeat",
    )
)


def is_opaque(name: str) -> bool:
    """Whether an operation multiplies by weights in a way that has no rule."""
    return name in _OPAQUE


def moves_time(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation on a tensor with time in its first dimension leaves the steps elsewhere,
    or some of them out.
    """
    x = args[0]
    if not isinstance(x, Tensor):
        return False
    if name == "permute":
        return args[1][0] % x.dim() != 0
    if name == "transpose":
        return 0 in (args[1] % x.dim(), args[2] % x.dim()) and args[1] != args[2]
    if name == "slice":
        defaults: tuple[Any, ...] = (0, None, None, 1)
        dim, start, end, step = (*args[1:], *defaults[len(args) - 1 :])
        whole = not start and (end is None or end >= x.shape[0]) and step == 1
        return dim % x.dim() == 0 and not whole
    if name == "select":
        return args[1] % x.dim() == 0
    if name in ("unbind", "split", "split_with_sizes"):
        position = 1 if name == "unbind" else 2
        dim = args[position] if len(args) > position else kwargs.get("dim", 0)
        return dim % x.dim() == 0
    if name in ("flip", "roll"):
        position = 1 if name == "flip" else 2
        dims = args[position] if len(args) > position else []
        return any(dim % x.dim() == 0 for dim in dims) or not dims
    if name == "index":
        return args[1][0] is not None
    return name == "t"


def reached(
    inputs: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    channels: int,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> Tensor:
    """How many outputs of a convolution an input reaches, at each position: int64 of shape
    ``inputs``, on the CPU.

    Args:
        inputs, outputs: the sizes of their space.
        kernel: its sizes.
        channels: of the outputs that an input reaches, those of its group.
        stride, padding, dilation: one number for each dimension, or for the first and all after it.
        transposed: whether the convolution is.
    """
    space = len(inputs)
    stride, padding, dilation = (
        [*values, *[values[-1]] * (space - len(values))] for values in (stride, padding, dilation)
    )
    total = torch.tensor(channels)
    for d in range(space):
        i = torch.arange(inputs[d])[:, None]
        k = torch.arange(kernel[d]) * dilation[d]
        if transposed:
            o = i * stride[d] - padding[d] + k
            hits = (o >= 0) & (o < outputs[d])
        else:
            o = i + padding[d] - k  # times the stride
            hits = (o % stride[d] == 0) & (o >= 0) & (o < outputs[d] * stride[d])
        total = total.unsqueeze(-1) * hits.sum(1)
    return total
