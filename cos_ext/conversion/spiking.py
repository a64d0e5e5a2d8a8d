"""Finding the convolutions that read spikes. How they run is decided in the room network."""

from __future__ import annotations

import dataclasses

from torch import fx, nn

from ..network.convolution import SpikeConv2d
from ..network.pooling import TORCH_MAX_POOLS, PooledBefore
from ..neuron import IFNode
from .graphs import called, set_module
from .state import Conversion

# What leaves most zeros of spikes 0; by name, for functions and methods.
SPARSE_MODULES = (
    *(PooledBefore, *TORCH_MAX_POOLS, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten, nn.ZeroPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
)
SUMS = ("add", "iadd", "add_", "sub")
SPARSE_CALLS = {
    *SUMS,
    *("cat", "concat", "concatenate", "stack", "chunk", "split"),
    *("getitem", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "flatten", "unflatten"),
    *("reshape", "view", "permute", "transpose", "contiguous", "clone", "dropout", "dropout2d"),
}


class FindSpikeConvolutions:
    """Makes those that the event-driven kernel has modules that may use it."""

    def apply(self, conversion: Conversion) -> None:
        model = conversion.model
        sparse = _sparse(conversion)
        calls: dict[str, list[fx.Node]] = {}
        for node in conversion.graph.nodes:
            if node.op == "call_module" and not SpikeConv2d.misfit(called(model, node)):
                calls.setdefault(str(node.target), []).append(node)
        for name, nodes in calls.items():
            if all(source in sparse for node in nodes for source in node.all_input_nodes):
                set_module(model, name, SpikeConv2d.of(model.get_submodule(name)))  # type: ignore[arg-type]  # it fits
                _note(conversion, name)


def _sparse(conversion: Conversion) -> set[fx.Node]:
    """Spikes, and what is made of spikes and is mostly 0 as they are."""
    found: set[fx.Node] = set()
    for node in conversion.graph.nodes:
        module = called(conversion.model, node) if node.op == "call_module" else None
        if isinstance(module, IFNode):
            found.add(node)
            continue
        name = getattr(node.target, "__name__", node.target)
        keeps = isinstance(module, SPARSE_MODULES) or (module is None and name in SPARSE_CALLS)
        sources = [n for n in node.all_input_nodes if n not in conversion.facts.numbers]
        # A number that is added is no zero.
        terms = [*node.args, *node.kwargs.values()]
        alone = name in SUMS and sum(isinstance(term, fx.Node) for term in terms) < 2
        if keeps and sources and not alone and all(source in found for source in sources):
            found.add(node)
    return found


def _note(conversion: Conversion, name: str) -> None:
    entries = conversion.report.entries
    for index, entry in enumerate(entries):
        if entry.site == name:
            reason = "; ".join(filter(None, (entry.reason, "reads spikes")))
            entries[index] = dataclasses.replace(entry, reason=reason)
