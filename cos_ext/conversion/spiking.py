"""Finding the layers that read spikes. How they run is decided in the room network."""

from __future__ import annotations

import dataclasses
import math

from torch import fx, nn

from ..network.convolution import LAYERS, misfit, of_spikes
from ..network.pooling import TORCH_MAX_POOLS, PooledBefore
from ..neuron import IFNode
from .fuse import pair, pooling_of
from .graphs import called, set_module
from .state import Conversion

# What leaves most zeros of spikes 0; by name, for functions and methods.
SPARSE_MODULES = (
    *(PooledBefore, *TORCH_MAX_POOLS, nn.AvgPool2d),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten, nn.ZeroPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
)
SUMS = ("add", "iadd", "add_", "sub")
SPARSE_CALLS = {
    *SUMS,
    *("cat", "concat", "concatenate", "stack", "chunk", "split"),
    *("getitem", "avg_pool2d", "max_pool2d", "flatten", "unflatten"),
    *("reshape", "view", "permute", "transpose", "contiguous", "clone", "dropout", "dropout2d"),
}


LARGEST_MEAN = 16  # values


class FindLayersOfSpikes:
    """Makes those that the event-driven kernel has modules that may use it."""

    def apply(self, conversion: Conversion) -> None:
        model = conversion.model
        sparse = _sparse(conversion)
        calls: dict[str, list[fx.Node]] = {}
        for node in conversion.graph.nodes:
            module = called(model, node) if node.op == "call_module" else None
            if isinstance(module, LAYERS) and not misfit(module):
                calls.setdefault(str(node.target), []).append(node)
        for name, nodes in calls.items():
            if all(source in sparse for node in nodes for source in node.all_input_nodes):
                set_module(model, name, of_spikes(model.get_submodule(name)))
                _note(conversion, name)


def _sparse(conversion: Conversion) -> set[fx.Node]:
    """Spikes, and what is made of spikes and is mostly 0 as they are."""
    found: set[fx.Node] = set()
    for node in conversion.graph.nodes:
        module = called(conversion.model, node) if node.op == "call_module" else None
        if _averages_much(node, module):
            continue
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


def _averages_much(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it leaves few zeros: the mean of a large window."""
    if isinstance(module, IFNode):
        return module.pool is not None and not 0 < math.prod(module.pool) <= LARGEST_MEAN
    pool = pooling_of(node) if module is None else module
    return isinstance(pool, nn.AvgPool2d) and math.prod(pair(pool.kernel_size)) > LARGEST_MEAN


def _note(conversion: Conversion, name: str) -> None:
    entries = conversion.report.entries
    for index, entry in enumerate(entries):
        if entry.site == name:
            reason = "; ".join(filter(None, (entry.reason, "reads spikes")))
            entries[index] = dataclasses.replace(entry, reason=reason)
