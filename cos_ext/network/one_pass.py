"""Which convolutions of a run hand their currents to the neurons that read them, before they are
computed. What the neurons then do is in _neuron/layer.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from .._neuron.runs import active, hooked
from ..neuron import IFNode
from .convolution import SpikeConv2d


class Pairs(NamedTuple):
    """The modules of a graph whose result one module alone reads, each with its readers by call."""

    code: str  # of the graph
    names: tuple[tuple[str, tuple[str, ...]], ...]


def pairs(module: nn.Module, before: Pairs | None) -> Pairs | None:
    """Those of a converted model; the ones from before where its graph is the same."""
    if not isinstance(module, fx.GraphModule):
        return None
    if before is not None and before.code is module.code:
        return before
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = ((name, tuple(map(_reader, nodes))) for name, nodes in calls.items())
    names = tuple((name, tuple(filter(None, rs))) for name, rs in found if all(rs))
    return Pairs(module.code, names)


def waiting(module: nn.Module, known: Pairs | None) -> frozenset[nn.Module]:
    """The convolutions whose currents nobody sees but neurons, in a run that begins now."""
    asked = any(
        run.apart or run.keeps or run.counts or run.statistics or run.calls or run.recorder
        for run in active()
    )
    if known is None or asked:
        return frozenset()
    found = []
    for name, readers in known.names:
        conv = _submodule(module, name)
        # Looked up, since somebody may have put others in their place.
        if isinstance(conv, SpikeConv2d) and conv.by_events and _untouched(conv):
            nodes = [_submodule(module, reader) for reader in readers]
            if all(type(node) is IFNode and _untouched(node) for node in nodes):
                found.append(conv)
    return frozenset(found)


def _reader(node: fx.Node) -> str | None:
    """The module that alone reads what a node gives, as its first argument."""
    (user, *others) = node.users or (None,)
    if user is None or others or user.op != "call_module" or user.args.count(node) != 1:
        return None
    return str(user.target) if user.args[0] is node else None


def _submodule(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


def _untouched(module: nn.Module) -> bool:
    return not hooked(module) and "forward" not in vars(module)
