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

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as TF

from ..network.pooling import PooledBefore
from ..neuron import IFNode
from .fold import BATCH_NORMS
from .tracing import argument, free_name, set_module

FUSES = (True, False, "bias")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
BIASED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)

Note = Callable[[fx.Node, str], None]


def check_fuse(fuse: bool | str) -> bool | str:
    """ValueError unless fuse is True, False or "bias"."""
    if not isinstance(fuse, (bool, str)) or fuse not in FUSES:
        raise ValueError(f"fuse must be True, False or 'bias', got {fuse!r}")
    return fuse


def fuse_graph(
    model: nn.Module,
    graph: fx.Graph,
    spiking: set[fx.Node],
    owned: Callable[[fx.Node], bool],
    note: Note,
    *,
    biases: bool,
) -> None:
    """Fuse what can be into the neurons of `graph`, in place.

    Args:
        spiking: tensors with time folded into their batch; what is static is computed once and not
            worth it.
        owned: whether a node's memory may be overwritten by the only one that reads it.
        note: called with every node that was fused and a word on where.
        biases: also the biases of convolutions and Linear.
    """
    for node in list(graph.nodes):
        neuron = model.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(neuron, IFNode):
            continue
        if not neuron.static_input:
            sources = _residual(model, graph, node, neuron, spiking, owned, note) or _batch_norm(
                model, graph, node, neuron, owned, note
            )
            if biases:
                for source in sources or node.all_input_nodes:
                    _bias(model, graph, source, neuron, note)
        _pool(model, graph, node, neuron, note)


def _residual(
    model: nn.Module,
    graph: fx.Graph,
    node: fx.Node,
    neuron: IFNode,
    spiking: set[fx.Node],
    owned: Callable[[fx.Node], bool],
    note: Note,
) -> list[fx.Node]:
    """neurons(a + b) becomes neurons(a, b); [a, b], or nothing."""
    (total,) = node.all_input_nodes
    if (
        total.op not in ("call_function", "call_method")
        or total.target not in SUMS
        or len(total.users) != 1
    ):
        return []
    terms = [argument(total, 0, "input"), argument(total, 1, "other")]
    if argument(total, 2, "alpha", 1) != 1 or not all(
        isinstance(term, fx.Node) and term in spiking for term in terms
    ):
        return []
    if terms[0] is terms[1]:
        return []
    # Spikes are written over the first: one that nobody else reads, rather the later of two, which
    # is nearer in the caches.
    order = {each: index for index, each in enumerate(graph.nodes)}
    terms.sort(key=lambda term: (not owned(term), -order[term]))
    neuron.inplace = owned(terms[0])
    node.args = tuple(terms)
    note(total, f"the residual of {node.target}")
    graph.erase_node(total)
    return terms


def _batch_norm(
    model: nn.Module,
    graph: fx.Graph,
    node: fx.Node,
    neuron: IFNode,
    owned: Callable[[fx.Node], bool],
    note: Note,
) -> list[fx.Node]:
    """neurons(norm(x)) becomes neurons that scale and shift x."""
    (source,) = node.all_input_nodes
    norm = model.get_submodule(source.target) if source.op == "call_module" else None
    if type(norm) not in BATCH_NORMS or norm.running_mean is None or len(source.users) != 1:
        return []
    (before,) = source.all_input_nodes
    state = torch.float64 if norm.running_var.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(norm.running_var.to(state) + norm.eps)
    shift = -norm.running_mean.to(state) * scale
    if norm.weight is not None:
        scale, shift = (
            scale * norm.weight.detach().to(state),
            shift * norm.weight.detach().to(state),
        )
        shift = shift + norm.bias.detach().to(state)
    space = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(norm))
    if space is None:
        return []  # BatchNorm1d takes [B, C] and [B, C, L]
    neuron.in_scale, neuron.in_bias = (_per_channel(value, space) for value in (scale, shift))
    neuron.inplace = owned(before)
    node.args = (before,)
    note(source, f"scale and bias of {node.target}")
    graph.erase_node(source)
    return [before]


def _bias(model: nn.Module, graph: fx.Graph, source: fx.Node, neuron: IFNode, note: Note) -> None:
    """The bias of a convolution or Linear that these neurons alone read."""
    layer = model.get_submodule(source.target) if source.op == "call_module" else None
    if (
        type(layer) not in BIASED
        or layer.bias is None
        or len(source.users) != 1
        or neuron.in_scale is not None
    ):
        return
    if (
        sum(other.op == "call_module" and other.target == source.target for other in graph.nodes)
        != 1
    ):
        return
    space = layer.weight.dim() - 2 if not isinstance(layer, nn.Linear) else 0
    bias = _per_channel(layer.bias.detach(), space)
    neuron.in_bias = bias if neuron.in_bias is None else neuron.in_bias + bias
    layer.bias = None
    note(source, f"its bias into {next(iter(source.users)).target}")


def _pool(model: nn.Module, graph: fx.Graph, node: fx.Node, neuron: IFNode, note: Note) -> None:
    """pool(neurons(x)), where nobody else reads the spikes: they are averaged on the way out."""
    if len(node.users) != 1:
        return
    (reader,) = node.users
    window, pool = _window(model, reader)
    if window is None:
        return
    neuron.pool = window
    name = free_name(model, f"{node.target}_pooled".replace(".", "_"))
    set_module(model, name, PooledBefore(pool))
    note(reader, f"the spikes of {node.target} are pooled on the way out")
    with graph.inserting_after(node):
        pooled = graph.call_module(name, (node,))
    reader.replace_all_uses_with(pooled)
    graph.erase_node(reader)


def _window(model: nn.Module, node: fx.Node) -> tuple[tuple[int, int] | None, nn.Module | None]:
    """((rows, columns) of windows that do not overlap, (0, 0) for the whole plane; the pooling as a
    module), or nothing.
    """
    if node.op == "call_module":
        pool = model.get_submodule(node.target)
    elif node.op == "call_function" and node.target is TF.avg_pool2d:
        names = (
            "kernel_size",
            "stride",
            "padding",
            "ceil_mode",
            "count_include_pad",
            "divisor_override",
        )
        defaults = (None, None, 0, False, True, None)
        values = {
            name: argument(node, i + 1, name, default)
            for i, (name, default) in enumerate(zip(names, defaults))
        }
        if any(isinstance(value, fx.Node) for value in values.values()):
            return None, None
        pool = nn.AvgPool2d(**values)
    elif node.op == "call_function" and node.target is TF.adaptive_avg_pool2d:
        pool = nn.AdaptiveAvgPool2d(argument(node, 1, "output_size"))
    else:
        return None, None
    if type(pool) is nn.AdaptiveAvgPool2d:
        return ((0, 0), pool) if pool.output_size in (1, (1, 1)) else (None, None)
    if (
        type(pool) is not nn.AvgPool2d
        or pool.ceil_mode
        or pool.divisor_override is not None
        or pool.padding not in (0, (0, 0))
    ):
        return None, None
    kernel, stride = (
        size if isinstance(size, tuple) else (size, size)
        for size in (pool.kernel_size, pool.stride)
    )
    return (kernel, pool) if kernel == stride else (None, None)


def _per_channel(values: Tensor, space: int) -> Tensor:
    return values.clone().view(-1, *[1] * space)
