"""Convolutions and linear layers of spikes: dense, or by events. Which of them reads spikes is
decided in the room conversion; the kernel is in csrc/cpu.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._functional.checks import check_choice, differentiates
from .._functional.events import LARGEST, Bits, convolved, pack_weight, values_of
from .._neuron.layer import Pending
from .._neuron.runs import active
from .._ops import conv_size

CHOICES = ("dense", "events", "auto")
# "auto" takes events for so many weights: with fewer there was little to win, and with more too
# little for the memory of a second copy (bench/events.py).
FEWEST_WEIGHTS, MOST_WEIGHTS = 256, 2**24
FEWEST_CHANNELS = 16  # of a group: thinner ones were slower, group by group (bench/events.py)
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


class Packed(NamedTuple):
    """Weights as the kernel reads them, and what they were packed of."""

    weight: Tensor  # held, so that its memory is not another's
    version: int | None
    sample: Tensor
    packed: Tensor


class OfSpikes(nn.Module):
    """A layer with weights that reads spikes. On a CPU it may go by events: what is 0 costs
    nothing.

    It stays dense elsewhere, where a gradient is needed, under autocast, torch.compile and
    torch.func, while it is traced, and while operations are counted.
    """

    weight: Tensor
    bias: Tensor | None
    by_events = False
    _kind = ""  # reports name the layer that the user has
    _why = ""
    _packed: Packed | None = None  # no copy or file has it

    @classmethod
    def of(cls, layer: nn.Module) -> OfSpikes:
        """The same layer; it shares everything that the given one has."""
        made = copy.copy(layer)
        made.__class__ = cls
        assert isinstance(made, OfSpikes)
        return made

    def _get_name(self) -> str:
        return self._kind

    def choose(self, convolution: str) -> None:
        count = self.weight.numel()
        fits = FEWEST_WEIGHTS <= count <= MOST_WEIGHTS
        self.by_events = convolution == "events" or (convolution == "auto" and fits)
        self._why = f'convolution is "{convolution}"'
        if convolution == "auto":
            self._why += f": {count} weights, {FEWEST_WEIGHTS} to {MOST_WEIGHTS} go by events"
        self._packed = None

    def plan(self) -> tuple[str, str]:
        """How it runs, and why."""
        if self.by_events and self.weight.device.type != "cpu":
            return "dense", f"it is on {self.weight.device}, events are for a CPU"
        return ("events" if self.by_events else "dense"), self._why

    def _goes_by_events(self, x: Tensor | Bits) -> bool:
        """Whether it does, now and for this."""
        if not self.by_events or torch.compiler.is_compiling():
            return False
        given = (x.level if isinstance(x, Bits) else x, self.weight, self.bias)
        tensors = [t for t in given if t is not None]
        return (
            all(type(t) in (Tensor, nn.Parameter) for t in tensors)  # and no dry run's
            and all(t.device.type == "cpu" and t.dtype == x.dtype for t in tensors)
            and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
            and not differentiates(tensors)
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not any(run.apart for run in active())
        )

    def _kernels(self) -> Tensor:
        """The weights as those of a 2-d convolution; a view."""
        return self.weight.detach()

    def _weight(self) -> Tensor:
        weight, kept = self._kernels(), self._packed
        version = None if weight.is_inference() else self.weight._version
        # Nothing counts what is written through .data, or to inference tensors: some weights are
        # looked at.
        flat = weight.permute(0, 2, 3, 1).reshape(-1)
        sample = flat[:: flat.numel() // 256 | 1]
        if (
            kept is None
            or kept.version != version
            or not weight.is_set_to(kept.weight)
            or not torch.equal(sample, kept.sample)
        ):
            kept = self._packed = Packed(weight, version, sample.clone(), self._pack(weight))
        return kept.packed

    def _pack(self, weight: Tensor) -> Tensor:
        return pack_weight(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OfSpikes:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


class SpikeConv2d(OfSpikes, nn.Conv2d):
    """A 2-d convolution that reads spikes. The output has the input's layout."""

    _kind = "Conv2d"

    def forward(self, x: Tensor | Bits) -> Tensor:
        """The convolution; `Pending` where the run says that its neurons wait for that."""
        if len(x.shape) != 4 or not self._goes_by_events(x):
            return super().forward(values_of(x))
        sizes = tuple(itertools.chain(*_sizes(self)))
        weight, bias, outputs = self._weight(), self.bias, self.weight.shape[0]

        plain = isinstance(x, Tensor) and x.is_contiguous() and x.stride(1) != 1

        def compute() -> Tensor:
            if self.groups == 1:
                out = convolved(x, weight, bias, outputs, *sizes)
            else:
                out = self._by_group(values_of(x), weight, sizes)
            return out.contiguous() if plain else out

        if plain or not any(self in run.waiting for run in active()):
            return compute()
        shape = (x.shape[0], outputs, *conv_size(x.shape[2:], weight, *sizes))
        return Pending(x, (weight, bias, outputs, *sizes), shape, compute)  # type: ignore[return-value]  # for IFNode

    def _by_group(self, x: Tensor, packed: Tensor, sizes: tuple[int, ...]) -> Tensor:
        count = self.groups
        biases = [None] * count if self.bias is None else self.bias.chunk(count)
        each, parts = self.out_channels // count, zip(x.chunk(count, 1), packed, biases)
        return torch.cat([convolved(own, w, b, each, *sizes) for own, w, b in parts], 1)

    def _pack(self, weight: Tensor) -> Tensor:
        if self.groups == 1:
            return pack_weight(weight)
        return torch.stack([pack_weight(own) for own in weight.chunk(self.groups)])


class SpikeLinear(OfSpikes, nn.Linear):  # type: ignore[misc]  # bias: torch says Optional
    """A linear layer that reads spikes."""

    _kind = "Linear"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or not self._goes_by_events(x):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1], 1, 1)
        out = convolved(rows, self._weight(), self.bias, self.out_features, *(1, 1, 0, 0, 1, 1))
        return out.reshape(*x.shape[:-1], self.out_features)

    def _kernels(self) -> Tensor:
        return self.weight.detach()[:, :, None, None]


def of_spikes(module: nn.Module) -> OfSpikes:
    """A layer that fits, as one that reads spikes."""
    return (SpikeLinear if type(module) is nn.Linear else SpikeConv2d).of(module)


def misfit(module: nn.Module) -> str | None:
    """Why the kernel does not have this layer; None: it has it."""
    if type(module) is nn.Linear:
        return None
    if type(module) is not nn.Conv2d:
        return "events are for 2-d convolutions and linear layers"
    thinnest = min(module.in_channels, module.out_channels) // module.groups
    if module.groups != 1 and thinnest < FEWEST_CHANNELS:
        return f"a group of it has {thinnest} channels, {FEWEST_CHANNELS} or more go by events"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"its padding is {module.padding!r}, {module.padding_mode}"
    if not all(len(two) == 2 and max(two) <= LARGEST for two in _sizes(module)):
        return f"its stride, padding and dilation are not two ints each, up to {LARGEST}"
    return None


def _sizes(conv: nn.Conv2d) -> tuple[tuple[int, ...], ...]:
    assert not isinstance(conv.padding, str)  # it would not fit
    return conv.stride, conv.padding, conv.dilation


def check_convolution(value: str) -> str:
    """The name of a way to convolve, or TypeError or ValueError."""
    return check_choice("convolution", value, CHOICES)


def layers(model: nn.Module) -> dict[str, OfSpikes]:
    """The layers of spikes by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, OfSpikes)}


def choose(model: nn.Module, convolution: str, own: Mapping[str, str]) -> None:
    """Set how the layers of spikes run: all of them, and some by their names."""
    for name, module in layers(model).items():
        module.choose(own.get(name, convolution))


def plan(model: nn.Module) -> NetworkPlan:
    """How the layers with weights run, in the order of the modules."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, OfSpikes):
            found.append(Layer(name, module._get_name(), *module.plan()))
        elif isinstance(module, LAYERS):
            reason = misfit(module) or "what it reads is not mostly 0"
            found.append(Layer(name, type(module).__name__, "dense", reason))
    return NetworkPlan(tuple(found))
