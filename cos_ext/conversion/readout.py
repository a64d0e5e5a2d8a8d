"""What stands between the last layer and the output: a Softmax and the like, which is no part of a
spiking network and can be left out, or be applied to the mean of its outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as TF

from .graphs import argument, called, leaves_of, site_of
from .state import Conversion

READOUTS = ("error", "drop", "mean")
ELEMENTWISE = (nn.Sigmoid, nn.Tanh)
MODULES = (nn.Softmax, nn.LogSoftmax, *ELEMENTWISE)
# What may follow a function of each element: it may as well come before.
SHAPES: tuple[Any, ...] = (
    *("squeeze", "unsqueeze", "flatten", "reshape", "view", "contiguous"),
    *(torch.squeeze, torch.unsqueeze, torch.flatten, torch.reshape),
)
FUNCTIONS = {
    nn.Softmax: (torch.softmax, TF.softmax, "softmax"),
    nn.LogSoftmax: (torch.log_softmax, TF.log_softmax, "log_softmax"),
    nn.Sigmoid: (torch.sigmoid, TF.sigmoid, "sigmoid"),
    nn.Tanh: (torch.tanh, TF.tanh, "tanh"),
}


class CutReadout:
    """Cuts off what a model applies to its outputs last, where convert() was asked to."""

    def apply(self, conversion: Conversion) -> None:
        choice = conversion.settings.readout
        if choice == "error":
            return
        leaves = leaves_of(conversion.graph)
        found = [self._cut(conversion, number) for number in range(len(leaves))]
        for number, leaf in enumerate(leaves):  # one tensor may be given twice
            found[number] = found[leaves.index(leaf)]
        if any(found):
            conversion.readout = nn.ModuleList(nn.Sequential(*cut) for cut in found)
            conversion.graph.lint()

    @staticmethod
    def _cut(conversion: Conversion, number: int) -> list[nn.Module]:
        """Cut off what is at the end of one leaf."""
        choice, graph = conversion.settings.readout, conversion.graph
        cut: list[nn.Module] = []
        while len((node := leaves_of(graph)[number]).users) == 1:
            shaped = False
            while node.target in SHAPES and len(node.all_input_nodes) == 1:
                (source,) = node.all_input_nodes
                if len(source.users) != 1:
                    break
                node, shaped = source, True
            made = _readout(conversion.model, node)
            if made is None or (shaped and type(made) not in ELEMENTWISE):
                break
            site = str(node.target) if node.op == "call_module" else site_of(node)
            status, what = ("unused", "left out") if choice == "drop" else ("kept", "by rate()")
            conversion.add(site, type(made).__name__, status, f"at the end, {what}")
            cut.insert(0, made)
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
        return cut


def _readout(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a call is, where it is one that may be cut off."""
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        module = called(root, node)
        return module if type(module) in MODULES else None
    for kind, targets in FUNCTIONS.items():
        if node.target in targets:
            return kind(argument(node, 1, "dim")) if "oftmax" in kind.__name__ else kind()
    return None
