"""Convolutions of spikes: dense, or by events. Which of them reads spikes is decided in the room
conversion; the kernel is in csrc/cpu.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._functional.checks import check_choice
from .._functional.events import convolved, pack_weight
from .._neuron.runs import active

CHOICES = ("dense", "events", "auto")
# "auto" takes events from so many weights on: below, there was little to win, and the dense library
# was sometimes faster on one of two instruction sets (bench/events.py).
FEWEST_WEIGHTS = 2048
LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class Layer(NamedTuple):
    """How a layer with weights runs, "dense" or "events", and why."""

    site: str
    kind: str
    runs: str
    reason: str


@dataclass(frozen=True)
class NetworkPlan:
    """How the layers with weights of a network run; :meth:`SpikingNetwork.plan` makes it. Prints as
    a table.
    """

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        rows = [Layer._fields, *self.layers]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]])
            for row in rows
        )


class SpikeConv2d(nn.Conv2d):
    """A 2-d convolution that reads spikes. On a CPU it may go by events: what is 0 costs nothing.

    It stays dense elsewhere, where a gradient is needed, under autocast, under torch.compile, and
    while operations are counted.
    """

    by_events = False
    _why = ""
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
    def misfit(module: nn.Module) -> str | None:
        """Why the kernel does not have this layer; None: it has it."""
        if type(module) is not nn.Conv2d:
            return "events are for 2-d convolutions"
        if module.groups != 1:
            return "it has groups"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"its padding is {module.padding!r}, {module.padding_mode}"
        return None

    def _get_name(self) -> str:
        return "Conv2d"  # reports name the layer that the user has

    def choose(self, convolution: str) -> None:
        wide = self.weight.numel() >= FEWEST_WEIGHTS
        self.by_events = convolution == "events" or (convolution == "auto" and wide)
        self._why = f'convolution is "{convolution}"'
        if convolution == "auto":
            self._why += f": {self.weight.numel()} weights, {FEWEST_WEIGHTS} or more go by events"

    def plan(self) -> tuple[str, str]:
        """How it runs, and why."""
        if self.by_events and self.weight.device.type != "cpu":
            return "dense", f"it is on {self.weight.device}, events are for a CPU"
        return ("events" if self.by_events else "dense"), self._why

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


def of_spikes(model: nn.Module) -> dict[str, SpikeConv2d]:
    """The convolutions of spikes by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SpikeConv2d)}


def choose(model: nn.Module, convolution: str, own: Mapping[str, str]) -> None:
    """Set how the convolutions of spikes run: all of them, and some by their names."""
    for name, module in of_spikes(model).items():
        module.choose(own.get(name, convolution))


def plan(model: nn.Module) -> NetworkPlan:
    """How the layers with weights run, in the order of the modules."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, SpikeConv2d):
            layers.append(Layer(name, module._get_name(), *module.plan()))
        elif isinstance(module, LAYERS):
            reason = SpikeConv2d.misfit(module) or "it does not read spikes alone"
            layers.append(Layer(name, type(module).__name__, "dense", reason))
    return NetworkPlan(tuple(layers))
