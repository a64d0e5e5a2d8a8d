"""Memory formats: in which one a network's convolutions run, and which its output has. Only layouts
are decided here, never values; what a layout costs is measured in bench/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import device_of
from .modules import Walked
from .settings import Configured

# By the names that files have for them.
NAMES: dict[str | torch.memory_format, str] = {
    "auto": "auto",
    torch.contiguous_format: "contiguous_format",
    torch.channels_last: "channels_last",
}


def name_of(memory_format: Any) -> str:
    """The name of convert()'s argument, or TypeError or ValueError."""
    allowed = 'memory_format must be "auto", torch.contiguous_format or torch.channels_last'
    if not isinstance(memory_format, (str, torch.memory_format)):
        raise TypeError(f"{allowed}, got {type(memory_format).__name__}")
    if memory_format not in NAMES:
        raise ValueError(f"{allowed}, got {memory_format!r}")
    return NAMES[memory_format]


def named(name: str) -> str | torch.memory_format:
    """The argument of that name."""
    return {known: memory_format for memory_format, known in NAMES.items()}[name]


def own_format(model: nn.Module) -> str:
    """The memory format that a model's convolutions have."""
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    return "channels_last" if _any_channels_last(weights) else "contiguous_format"


def lay_out(network: Configured) -> None:
    """Give the weights of a network's 2-d convolutions the layout it is to run in: a convolution
    hands it on to its output, and everything after it keeps it.
    """
    wanted = named(_format(network))
    assert isinstance(wanted, torch.memory_format)
    for each in network.modules():
        if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)):
            # Strides of its own also where one input channel fits either format: with contiguous()
            # grey images would leave the first convolution, and all after it, in the slow one.
            each.weight.data = each.weight.data.clone(memory_format=wanted)


def as_ann(network: Configured, out: Tensor, inputs: Iterable[Tensor]) -> Tensor:
    """A network's output in the layout that the ANN's has for these inputs."""
    own = _own_format(network)
    if out.dim() != 4 or _format(network) == own:
        return out
    if own == "channels_last" or _any_channels_last(inputs):
        return out.contiguous(memory_format=torch.channels_last)
    return out.contiguous() if _any_channels_last([out]) else out


def empty_like(piece: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for outputs [T, B, ...] of another batch, each laid out as these are."""
    order = (0, 1, *sorted(range(2, piece.dim()), key=piece.stride, reverse=True))
    return torch.empty_permuted(shape, order, dtype=piece.dtype, device=piece.device)


def _format(network: Configured) -> str:
    """The memory format that a network is to run in where it is now."""
    asked: str = network.options.get("memory_format", "auto")  # older pickles have none
    if asked != "auto":
        return asked
    # A model that could not be traced may ask for views of its activations, as it stands.
    fast = device_of(network).type == "cpu" and not isinstance(network.module, Walked)
    return "channels_last" if fast else _own_format(network)


def _own_format(network: Configured) -> str:
    """The memory format of the ANN's convolutions."""
    own: str = network.options.get("own_format", "contiguous_format")  # likewise
    return own


def _any_channels_last(tensors: Iterable[Tensor]) -> bool:
    # By strides: functorch's tensors do not answer is_contiguous(memory_format=...).
    return any(x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous() for x in tensors)
