"""What a network computes before its first neurons, which may be anything: whether it treats every
sample by itself, so that the batch may be run in parts. How many parts is decided in memory.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .finite import Unfit
from .graphs import as_function
from .inputs import folded, in_dtype_of
from .modules import twin
from .outputs import STATIC, Outputs
from .settings import Configured

MIXES = (
    "before its first neurons the model computes something over the whole batch (x - x.mean(), "
    "BatchNorm without running statistics), so that parts of the batch would give other answers"
)


def mixes_samples(network: Configured, inputs: tuple[Tensor, ...]) -> bool:
    """:func:`mixes` for what a network is given: found once for inputs of a shape.

    Frames are told apart as samples are: where they mix, steps do.
    """
    inputs = tuple(in_dtype_of(network, x) for x in folded(inputs))
    key = ("mixes", *((x.shape[1:], x.dtype) for x in inputs))
    if key in network._needs:
        return bool(network._needs[key])
    if not inputs or any(x.shape[0] < 2 for x in inputs):
        return False
    # Frames are often blank, and what is 0 may hide what it is multiplied with.
    finite = [x[:, None].flatten(1).double().nan_to_num(0, 0, 0) for x in inputs]
    most, which = torch.stack([x.abs().sum(1) for x in finite]).sum(0).topk(2)
    found = mixes(network, tuple(x[which] for x in inputs))
    if found or most.all():
        network._needs[key] = found
    return found


@torch.no_grad()
def mixes(network: Configured, inputs: tuple[Tensor, ...]) -> bool:
    """Whether what neurons are given of one sample depends on the others, or on how many there are;
    or an output that does not come from neurons.

    Found by running the part before the first neurons on two samples, each beside several
    neighbours, and alone. The same shapes give the same bits, so that any difference tells.
    """
    module = network.module
    if not isinstance(module, fx.GraphModule) or any(x.shape[0] < 2 for x in inputs):
        return False
    module = twin(module, {id(x): x for x in (*module.parameters(), *module.buffers())})
    assert isinstance(module, fx.GraphModule)
    front = _front(module, network.outputs)
    first, second = [_kept(x[:1]) for x in inputs], [_kept(x[1:2]) for x in inputs]
    beside_first = [_pairs(first, other) for other in _neighbours([x[1:2] for x in inputs])]
    beside_second = [_pairs(other, second) for other in _neighbours([x[:1] for x in inputs])]
    for half, cases in enumerate((beside_first, beside_second)):
        results = [_halves(front, module, case) for case in cases]
        if any(result is None for result in results):
            return True
        whole, *others = (result[half] for result in results if result is not None)
        if any(not all(map(_same, whole, other)) for other in others):
            return True
    try:
        alone = front(module, *(x.clone() for x in first))
    except (RuntimeError, ValueError):  # BatchNorm wants more than one value
        return True
    together = _halves(front, module, _pairs(first, first))
    return together is None or not all(map(_close, together[0], alone))


def _front(module: fx.GraphModule, outputs: Outputs) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the module and its inputs: what neurons and sums with spikes are given, and
    static outputs.
    """
    given = [
        node.all_input_nodes[0]
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(module.get_submodule(node.target), Unfit)
    ]
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    leaves = last.args[0] if isinstance(last.args[0], tuple) else ()
    given += [leaf for leaf, kind in zip(leaves, outputs.kinds) if kind == STATIC]
    needed, open_ = set(given), list(given)
    while open_:
        for source in open_.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                open_.append(source)
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            made[node] = graph.node_copy(node, lambda source: made[source])
    graph.output(tuple(made[node] for node in given))
    return as_function(graph)


Halves = tuple[list[Tensor], list[Tensor]]


def _halves(front: Callable[..., Any], module: nn.Module, inputs: list[Tensor]) -> Halves | None:
    """What the first and the second sample come to; None where that cannot be told apart."""
    # Copies: the front may work in place.
    given = front(module, *(x.clone() for x in inputs))
    if any(x.shape[0] % 2 for x in given):
        return None
    first, second = zip(*(x.chunk(2) for x in given)) if given else ((), ())
    return list(first), list(second)


def _pairs(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    return [torch.cat(both) for both in zip(first, second)]


def _kept(x: Tensor) -> Tensor:
    """The sample that is watched. Integers, which are often at the largest of them, are halved, so
    that a neighbour can be larger.
    """
    return x if x.is_floating_point() or x.dtype == torch.bool else x // 2


def _neighbours(x: list[Tensor]) -> list[list[Tensor]]:
    """A sample and others: of another mean, spread, largest and smallest number. Integers may be
    indices: those get no larger.
    """
    others = []
    for each in x:
        turned = each.flatten().flip(0).view_as(each)
        if each.is_floating_point():
            others.append((each, turned * 2 + 1, turned * -2 - 1))
        elif each.dtype == torch.bool:
            others.append((each, ~turned, turned))
        else:
            others.append((each, turned // 4, turned))
    return [list(case) for case in zip(*others)]


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of another batch."""
    if a.shape != b.shape:
        return False
    finite = a.isfinite() & b.isfinite()
    a, b = a.double().where(finite, 0), b.double().where(finite, 0)
    return bool((a - b).abs().max() <= 1e-2 * a.abs().max()) if a.numel() else True
