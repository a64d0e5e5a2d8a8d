"""Folding BatchNorm in eval mode into the convolution or linear layer before it. Nothing spiking
here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .classify import ranks_by_modules
from .copying import beside
from .graphs import attribute, called, changed, set_module
from .report import Entry
from .rules.normalisation import BATCH_NORMS
from .state import Conversion

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Fold:
    """A BatchNorm, by the names of the modules: folded into `layer`, or not, and why."""

    norm: str
    kind: str
    layer: str
    why_not: str


class FoldBatchNorm:
    """Folds BatchNorm where convert() was asked to, and keeps the ANN as it then is: the reference
    of the last check. (The fold has a check of its own, to the rounding of the model's dtype.)
    """

    def apply(self, conversion: Conversion) -> None:
        module = conversion.traced.module
        assert isinstance(module, fx.GraphModule)
        if conversion.settings.fold_batchnorm is True:
            ranks = ranks_by_modules(module.graph, module, conversion.facts.ranks).ranks
            for fold in fold_batchnorms(module, ranks):
                if fold.why_not:
                    conversion.unfolded[fold.norm] = f"not folded: {fold.why_not}"
                else:
                    entry = Entry(fold.norm, fold.kind, "folded", "", f"into {fold.layer}")
                    conversion.folded[fold.layer] = entry
        bare = beside(module)
        assert isinstance(bare, fx.GraphModule)
        conversion.reference = bare


def fold_batchnorms(module: fx.GraphModule, ranks: dict[fx.Node, int]) -> list[Fold]:
    """Fold every BatchNorm of a traced module that can be, in place.

    Args:
        module: in eval mode. Folded BatchNorms leave its graph; their layers are replaced by copies
            with new weights.
        ranks: number of dimensions of tensors by node, where known.

    The weights are computed in float64 and compared, on random inputs, with the two layers one
    after the other.
    """
    folds = []
    for node in list(module.graph.nodes):
        if node.op != "call_module" or type(called(module, node)) not in BATCH_NORMS:
            continue
        kind = type(called(module, node)).__name__
        source = node.all_input_nodes[0]
        why_not = _fold(module, node, ranks)
        folds.append(Fold(str(node.target), kind, str(source.target), why_not))
        if not why_not:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.graph.lint()
    return folds


def _fold(module: fx.GraphModule, node: fx.Node, ranks: dict[fx.Node, int]) -> str:
    """Replace the layer before a BatchNorm by the two in one, or say why not."""
    norm: Any = called(module, node)
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    sources = node.all_input_nodes
    layer: Any = None
    if len(sources) == 1 and sources[0].op == "call_module":
        layer = called(module, sources[0])
    if type(layer) not in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear):
        return "it does not follow a convolution or Linear"
    (source,) = sources
    if why_not := _read_elsewhere(module, node, source):
        return why_not
    if type(layer) is nn.Linear and ranks.get(source) != 2:
        return (
            "the Linear before it may have more than two dimensions, and BatchNorm counts "
            "channels from the front"
        )
    if type(layer) in TRANSPOSED and layer.groups != 1:
        return "a grouped transposed convolution mixes its channels' order"
    fused = _fused(layer, norm)
    if not _agrees(layer, norm, fused):
        return "the fold differs from the two layers on random inputs"
    set_module(module, str(source.target), fused)
    return ""


def _read_elsewhere(module: fx.GraphModule, node: fx.Node, source: fx.Node) -> str:
    """Why a layer and its BatchNorm are not each other's alone, or "" where they are."""
    if len(source.users) != 1:
        return f"others read {source.target} too"
    calls = [called(module, n) for n in module.graph.nodes if n.op == "call_module"]
    for each in (source, node):
        layer = called(module, each)
        times = sum(other is layer for other in calls)
        if times != 1:
            return f"{each.target} is called at {times} places"
        if changed(layer):
            return f"{each.target} has hooks or a patched forward"
    own = {id(parameter) for parameter in called(module, source).parameters()}
    reads = (n for n in module.graph.nodes if n.op == "get_attr")
    if any(id(attribute(module, n.target)) in own for n in reads):
        return f"forward reads the weights of {source.target} elsewhere too"
    return ""


def _fused(layer: Any, norm: Any) -> Any:
    wide = copy.deepcopy(norm).double()
    weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    statistics = (wide.running_mean, wide.running_var, wide.eps, wide.weight, wide.bias)
    if type(layer) is nn.Linear:
        weight, bias = fuse_linear_bn_weights(weight, bias, *statistics)
    else:
        weight, bias = fuse_conv_bn_weights(
            weight, bias, *statistics, transpose=type(layer) in TRANSPOSED
        )
    fused = copy.deepcopy(layer)
    fused.weight = nn.Parameter(weight.detach().to(layer.weight.dtype), requires_grad=False)
    fused.bias = nn.Parameter(bias.detach().to(layer.weight.dtype), requires_grad=False)
    return fused


@torch.no_grad()
def _agrees(layer: Any, norm: Any, fused: Any) -> bool:
    """On random inputs, to the rounding of the layer's dtype."""
    if type(layer) is nn.Linear:
        shape = (4, layer.in_features)
    else:
        shape = (
            2,
            layer.in_channels,
            *(d * (k - 1) + 3 for d, k in zip(layer.dilation, layer.kernel_size)),
        )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(layer.weight.device)
    expected = copy.deepcopy(norm).double()(copy.deepcopy(layer).double()(x))
    found = copy.deepcopy(fused).double()(x)
    scale = expected.abs().max().clamp_min(1.0) * max(1.0, fused.weight.abs().max().item())
    return bool((found - expected).abs().max() <= 64 * torch.finfo(layer.weight.dtype).eps * scale)
