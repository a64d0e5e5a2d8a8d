"""Fusing what stands around neurons into their pass over memory: residual sums, BatchNorm, biases,
average pooling of the spikes.

Rewrites the graph of a converted model; what a neuron then does with it is in neuron.py. No rules
of conversion here.

A pass that is fused rounds where the pass apart would have rounded, so that spikes are EQUAL for
residual sums and for pooling over windows of 2 x 2. BatchNorm and biases, which others add in
another order or with fused multiply-add, are equal to rounding, and so are the sums of larger
windows.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as TF

from ..network.convolution import LAYERS
from ..network.pooling import PooledBefore
from ..neuron import IFNode
from .graphs import argument, called, free_name, set_module, site_of
from .ownership import owned
from .rules.normalisation import BATCH_NORMS
from .state import Conversion

FUSES = (True, False, "bias")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
# Arguments of avg_pool2d after the input, in order.
AVERAGE_DEFAULTS: dict[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def check_fuse(fuse: bool | str) -> bool | str:
    """ValueError unless fuse is True, False or "bias"."""
    if not isinstance(fuse, (bool, str)) or fuse not in FUSES:
        raise ValueError(f"fuse must be True, False or 'bias', got {fuse!r}")
    return fuse


class Fuse:
    """Has the neurons do what stands around them, in place, where convert() was asked to.

    What is static is computed once and not worth it.
    """

    def apply(self, conversion: Conversion) -> None:
        if not conversion.settings.fuse:
            return
        model, graph = conversion.model, conversion.graph
        for node in list(graph.nodes):
            neuron = called(model, node) if node.op == "call_module" else None
            if not isinstance(neuron, IFNode):
                continue
            if not neuron.static_input:
                sources = _residual(conversion, node, neuron)
                if not conversion.settings.trainable:  # parameters stay where they are
                    sources = sources or _batch_norm(conversion, node, neuron)
                    if conversion.settings.fuse == "bias":
                        for source in sources or node.all_input_nodes:
                            _bias(conversion, source, neuron)
            _pool(conversion, node, neuron)
        graph.lint()


def _note(conversion: Conversion, node: fx.Node, where: str) -> None:
    """Say in the report what was fused, and where."""
    entries = conversion.report.entries
    site = node.target if node.op == "call_module" else site_of(node)
    index = next(i for i, entry in enumerate(entries) if entry.site == site)
    old = entries[index]
    # A replaced pooling stays one (verify.py looks for it), and a layer that gave its bias away is
    # kept.
    fused = old.status == "kept" and not where.startswith("its bias")
    reason = "; ".join(filter(None, (old.reason, where)))
    entries[index] = dataclasses.replace(
        old, status="fused" if fused else old.status, reason=reason
    )


def _residual(conversion: Conversion, node: fx.Node, neuron: IFNode) -> list[fx.Node]:
    """neurons(a + b) becomes neurons(a, b); [a, b], or nothing."""
    model, facts = conversion.model, conversion.facts
    (total,) = node.all_input_nodes
    sums = total.op in ("call_function", "call_method") and total.target in SUMS
    if not sums or len(total.users) != 1 or argument(total, 2, "alpha", 1) != 1:
        return []
    terms = [argument(total, 0, "input"), argument(total, 1, "other")]
    if not all(map(facts.is_spiking_tensor, terms)) or terms[0] is terms[1]:
        return []
    # Spikes are written over the first: one that nobody else reads, rather the later of two, which
    # is nearer in the caches.
    order = {each: index for index, each in enumerate(conversion.graph.nodes)}
    terms.sort(key=lambda term: (not owned(model, term), -order[term]))
    neuron.inplace = owned(model, terms[0])
    node.args = tuple(terms)
    _note(conversion, total, f"the residual of {node.target}")
    conversion.graph.erase_node(total)
    return terms


def _batch_norm(conversion: Conversion, node: fx.Node, neuron: IFNode) -> list[fx.Node]:
    """neurons(norm(x)) becomes neurons that scale and shift x."""
    (source,) = node.all_input_nodes
    norm = called(conversion.model, source) if source.op == "call_module" else None
    # BatchNorm1d takes [B, C] and [B, C, L], and is left alone.
    if not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)) or type(norm) not in BATCH_NORMS:
        return []
    if norm.running_mean is None or norm.running_var is None or len(source.users) != 1:
        return []
    (before,) = source.all_input_nodes
    scale, shift = _scale_and_shift(norm, norm.running_mean, norm.running_var)
    space = 2 if isinstance(norm, nn.BatchNorm2d) else 3
    neuron.in_scale, neuron.in_bias = _per_channel(scale, space), _per_channel(shift, space)
    neuron.inplace = owned(conversion.model, before)
    node.args = (before,)
    _note(conversion, source, f"scale and bias of {node.target}")
    conversion.graph.erase_node(source)
    return [before]


def _scale_and_shift(norm: Any, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as scale x + shift, by channel."""
    state = torch.float64 if var.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(var.to(state) + norm.eps)
    shift = -mean.to(state) * scale
    if norm.weight is not None:
        weight, bias = norm.weight.detach().to(state), norm.bias.detach().to(state)
        scale, shift = scale * weight, shift * weight + bias
    return scale, shift


def _bias(conversion: Conversion, source: fx.Node, neuron: IFNode) -> None:
    """The bias of a convolution or Linear that these neurons alone read."""
    layer: Any = called(conversion.model, source) if source.op == "call_module" else None
    if layer is None or type(layer) not in LAYERS or layer.bias is None:
        return
    if len(source.users) != 1 or neuron.in_scale is not None:
        return
    nodes = conversion.graph.nodes
    if sum(n.op == "call_module" and n.target == source.target for n in nodes) != 1:
        return
    space = layer.weight.dim() - 2 if not isinstance(layer, nn.Linear) else 0
    bias = _per_channel(layer.bias.detach(), space)
    neuron.in_bias = bias if neuron.in_bias is None else neuron.in_bias + bias
    layer.bias = None
    _note(conversion, source, f"its bias into {next(iter(source.users)).target}")


def _pool(conversion: Conversion, node: fx.Node, neuron: IFNode) -> None:
    """pool(neurons(x)), where nobody else reads the spikes: they are averaged on the way out."""
    model, graph = conversion.model, conversion.graph
    if len(node.users) != 1:
        return
    (reader,) = node.users
    window, pool = _window(model, reader)
    if window is None or pool is None:
        return
    neuron.pool = window
    name = free_name(model, f"{node.target}_pooled".replace(".", "_"))
    set_module(model, name, PooledBefore(pool, neuron))
    _note(conversion, reader, f"the spikes of {node.target} are pooled on the way out")
    with graph.inserting_after(node):
        pooled = graph.call_module(name, (node,))
    reader.replace_all_uses_with(pooled)
    graph.erase_node(reader)


def _window(model: nn.Module, node: fx.Node) -> tuple[tuple[int, int] | None, nn.Module | None]:
    """((rows, columns) of windows that do not overlap, (0, 0) for the whole plane; the pooling as a
    module), or nothing.
    """
    pool = called(model, node) if node.op == "call_module" else pooling_of(node)
    if type(pool) is nn.AdaptiveAvgPool2d:
        return ((0, 0), pool) if pool.output_size in (1, (1, 1)) else (None, None)
    if type(pool) is not nn.AvgPool2d or pool.ceil_mode or pool.divisor_override is not None:
        return None, None
    kernel, stride, padding = map(pair, (pool.kernel_size, pool.stride, pool.padding))
    return (kernel, pool) if kernel == stride and padding == (0, 0) else (None, None)


def pooling_of(node: fx.Node) -> nn.Module | None:
    """The module of a function that averages over windows."""
    if node.op != "call_function":
        return None
    if node.target is TF.adaptive_avg_pool2d:
        return nn.AdaptiveAvgPool2d(argument(node, 1, "output_size"))
    if node.target is not TF.avg_pool2d:
        return None
    values = [argument(node, i + 1, *pair) for i, pair in enumerate(AVERAGE_DEFAULTS.items())]
    return None if any(isinstance(v, fx.Node) for v in values) else nn.AvgPool2d(*values)


def pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _per_channel(values: Tensor, space: int) -> Tensor:
    return values.clone().view(-1, *[1] * space)
