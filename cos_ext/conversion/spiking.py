"""Finding the convolutions that read spikes. How they run is decided in the room network."""

from __future__ import annotations

import dataclasses

from torch import fx, nn

from ..network.convolution import SpikeConv2d
from ..neuron import IFNode
from .graphs import called, set_module
from .state import Conversion


class FindSpikeConvolutions:
    """Makes those that the event-driven kernel has modules that may use it."""

    def apply(self, conversion: Conversion) -> None:
        model, spiking = conversion.model, conversion.facts.spiking
        calls: dict[str, list[fx.Node]] = {}
        for node in conversion.graph.nodes:
            if node.op == "call_module" and not SpikeConv2d.misfit(called(model, node)):
                calls.setdefault(str(node.target), []).append(node)
        for name, nodes in calls.items():
            if all(source in spiking for node in nodes for source in node.all_input_nodes):
                conv = SpikeConv2d.of(model.get_submodule(name))  # type: ignore[arg-type]  # it fits
                conv.read_by = _readers(model, nodes)
                set_module(model, name, conv)
                _note(conversion, name)


def _readers(model: nn.Module, nodes: list[fx.Node]) -> tuple[str, ...]:
    """The neurons that take what a convolution gives, by name, where nobody else does."""
    readers = []
    for node in nodes:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or users[0].args.count(node) != 1:
            return ()
        if users[0].args[0] is not node or not isinstance(called(model, users[0]), IFNode):
            return ()
        readers.append(str(users[0].target))
    return tuple(readers)


def _note(conversion: Conversion, name: str) -> None:
    entries = conversion.report.entries
    for index, entry in enumerate(entries):
        if entry.site == name:
            reason = "; ".join(filter(None, (entry.reason, "reads spikes")))
            entries[index] = dataclasses.replace(entry, reason=reason)
