"""Convolutions of spikes: dense, or by events. Which of them reads spikes is decided in the room
conversion; the kernel is in csrc/cpu.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._functional.checks import check_choice
from .._functional.events import convolved, pack_weight
from .._neuron.runs import active

CHOICES = ("dense", "events", "auto")
# "auto" takes events from so many outputs and inputs per output on: below, the dense library was
# faster on the spikes of the shipped ResNet-20 (bench/events.py).
FEWEST_OUTPUTS, FEWEST_INPUTS = 32, 288


class SpikeConv2d(nn.Conv2d):
    """A 2-d convolution that reads spikes. On a CPU it may go by events: what is 0 costs nothing.

    It stays dense elsewhere, where a gradient is needed, under autocast, under torch.compile, and
    while operations are counted.
    """

    by_events = False
    # Of which weights, held so that their memory is not another's, in which version, and as the
    # kernel reads them. No copy or file has these.
    _packed: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> SpikeConv2d:
        """The same convolution; it shares the weights."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # torch's stub has pairs alone here
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device="meta",
        )
        made.weight, made.bias = conv.weight, conv.bias
        return made.train(conv.training)

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the kernel has this convolution."""
        return (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )

    def _get_name(self) -> str:
        return "Conv2d"  # reports name the layer that the user has

    def choose(self, convolution: str) -> None:
        inputs = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        wide = self.out_channels >= FEWEST_OUTPUTS and inputs >= FEWEST_INPUTS
        self.by_events = convolution == "events" or (convolution == "auto" and wide)

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_events or torch.compiler.is_compiling() or not self._takes(x):
            return super().forward(x)
        assert not isinstance(self.padding, str)  # it would not fit
        height, width = self.padding
        sizes = (*self.stride, height, width, *self.dilation)
        return convolved(x, self._weight(), self.bias, self.out_channels, *sizes)

    def _takes(self, x: Tensor) -> bool:
        return (
            type(x) is Tensor  # and no dry run's
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and x.dim() == 4
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and not any(run.apart for run in active())
        )

    def _weight(self) -> Tensor:
        weight = self.weight.detach()
        if self.weight.is_inference():  # nothing tells of its changes
            return pack_weight(weight)
        version, kept = self.weight._version, self._packed
        if kept is None or kept[1] != version or not weight.is_set_to(kept[0]):
            kept = self._packed = (weight, version, pack_weight(weight))
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def check_convolution(value: str) -> str:
    """The name of a way to convolve, or TypeError or ValueError."""
    return check_choice("convolution", value, CHOICES)


def choose(network: nn.Module, convolution: str) -> None:
    """Set how the convolutions of spikes run."""
    for module in network.modules():
        if isinstance(module, SpikeConv2d):
            module.choose(convolution)
