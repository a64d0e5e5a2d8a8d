"""How much of a model's work lies behind neurons, where it is additions; the rest stays dense."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as TF

from .graphs import argument, attribute, called
from .rules.base import for_dimensions
from .state import Conversion

LEAST = 0.5
FUNCTIONS = (TF.linear, TF.conv1d, TF.conv2d, TF.conv3d)


class CountWork:
    """Notes the share of the multiplications that read spikes, and warns where it is small."""

    def apply(self, conversion: Conversion) -> None:
        if not conversion.shapes or conversion.report.unsupported():
            return
        behind = total = 0
        for node in conversion.graph.nodes:
            work = _multiplications(conversion, node)
            total += work
            facts = conversion.facts
            reads = [x for x in node.all_input_nodes if x in facts.spiking and x not in facts.means]
            behind += work if reads else 0
        if not total:
            return
        share = conversion.report.behind = behind / total
        if share < LEAST:
            warnings.warn(
                f"{share:.0%} of the multiplications of {conversion.name} lie behind neurons; the "
                "others stay dense: they run once per image before the first neurons, and at every "
                "step behind differences. Convert a model whose layers have activations in between "
                "to save more",
                UserWarning,
                stacklevel=5,  # who called convert()
            )


def _multiplications(conversion: Conversion, node: fx.Node) -> int:
    """Of a convolution, Linear or recurrent layer with its weights, on the example."""
    root, places = conversion.model, node
    weight = None
    if node.op == "call_module":
        layer = called(root, node)
        if isinstance(layer, (nn.Linear, *for_dimensions("Conv", "ConvTranspose"))):
            weight = layer.weight
            places = node.all_input_nodes[0] if "Transpose" in type(layer).__name__ else node
        if isinstance(layer, nn.RNNBase):
            weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
            return weights * conversion.shapes[node.all_input_nodes[0]][:2].numel()
    elif node.target in FUNCTIONS or node.target is torch.addmm:
        added = node.target is torch.addmm  # with its weight [in, out]
        given = argument(node, 2, "mat2") if added else argument(node, 1, "weight")
        if isinstance(given, fx.Node) and given.op == "get_attr":
            weight = attribute(root, str(given.target))
            weight = weight.mT if added else weight
    if not isinstance(weight, Tensor) or places not in conversion.shapes:
        return 0
    return conversion.shapes[places].numel() * weight[0].numel()
