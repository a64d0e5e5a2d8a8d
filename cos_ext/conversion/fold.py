"""Folding BatchNorm in eval mode into the convolution or linear layer before it. Nothing spiking
here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .tracing import attribute, changed

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Fold:
    """A BatchNorm, by the names of the modules: folded into `layer`, or not, and why."""

    norm: str
    kind: str
    layer: str
    why_not: str


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
        if node.op != "call_module" or type(module.get_submodule(node.target)) not in BATCH_NORMS:
            continue
        kind = type(module.get_submodule(node.target)).__name__
        source = node.all_input_nodes[0]
        why_not = _fold(module, node, ranks)
        folds.append(Fold(node.target, kind, str(source.target), why_not))
        if not why_not:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.graph.lint()
    return folds


def _fold(module: fx.GraphModule, node: fx.Node, ranks: dict[fx.Node, int]) -> str:
    """Replace the layer before a BatchNorm by the two in one, or say why not."""
    norm, sources = module.get_submodule(node.target), node.all_input_nodes
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if len(sources) != 1 or sources[0].op != "call_module":
        return "it does not follow a convolution or Linear"
    (source,) = sources
    layer = module.get_submodule(source.target)
    if type(layer) not in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear):
        return "it does not follow a convolution or Linear"
    if len(source.users) != 1:
        return f"others read {source.target} too"
    for called, what in ((layer, source.target), (norm, node.target)):
        sites = [
            n
            for n in module.graph.nodes
            if n.op == "call_module" and module.get_submodule(n.target) is called
        ]
        if len(sites) != 1:
            return f"{what} is called at {len(sites)} places"
        if changed(called):
            return f"{what} has hooks or a patched forward"
    own = {id(parameter) for parameter in layer.parameters()}
    if any(
        n.op == "get_attr" and id(attribute(module, n.target)) in own for n in module.graph.nodes
    ):
        return f"forward reads the weights of {source.target} elsewhere too"
    if type(layer) is nn.Linear and ranks.get(source) != 2:
        return "the Linear before it may have more than two dimensions, and BatchNorm counts channels from the front"
    if type(layer) in TRANSPOSED and layer.groups != 1:
        return "a grouped transposed convolution mixes its channels' order"
    fused = _fused(layer, norm)
    if not _agrees(layer, norm, fused):
        return "the fold differs from the two layers on random inputs"
    parent, _, leaf = source.target.rpartition(".")
    module.get_submodule(parent).add_module(leaf, fused)
    return ""


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
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
def _agrees(layer: nn.Module, norm: nn.Module, fused: nn.Module) -> bool:
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
