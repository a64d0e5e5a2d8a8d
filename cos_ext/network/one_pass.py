"""What modules of a run hand on that is no tensor: convolutions their currents, before they are
computed, to the neurons that read them; neurons their spikes, as bits, to such layers. What neurons
then do is in _neuron/layer.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx, nn

from .._neuron.runs import active, hooked
from ..neuron import IFNode
from .convolution import SpikeConv2d


class Reader(NamedTuple):
    """A call of a module, on the result of another."""

    name: str
    position: int  # of the result among its arguments
    first: str | None  # the module that gives its first argument


class Readers(NamedTuple):
    """Who reads what the modules of a graph give, by call; None stands for what is no module."""

    code: str  # of the graph
    calls: dict[str, list[list[Reader | None]]]


def readers(module: nn.Module, before: Readers | None) -> Readers | None:
    """Those of a converted model; the ones from before where its graph is the same."""
    if not isinstance(module, fx.GraphModule):
        return None
    if before is not None and before.code is module.code:
        return before
    calls: dict[str, list[list[Reader | None]]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            found = [_reader(user, node) for user in node.users]
            calls.setdefault(str(node.target), []).append(found or [None])
    return Readers(module.code, calls)


def waiting(module: nn.Module, known: Readers | None) -> frozenset[nn.Module]:
    """The convolutions whose currents nobody sees but neurons, and the neurons whose spikes nobody
    sees but convolutions by events, and neurons that they are a residual of, in a run that begins
    now.
    """
    asked = any(
        run.apart or run.keeps or run.counts or run.statistics or run.calls or run.recorder
        for run in active()
    )
    # Traces and torch.func have no values to look at.
    blind = torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None
    if known is None or asked or blind or torch.is_autocast_enabled("cpu"):
        return frozenset()
    # Looked up, since somebody may have put others in their place.
    every = dict(module.named_modules(remove_duplicate=False))
    modules = {n: every[n] for n in known.calls if n in every and _untouched(every[n])}
    neurons = {name for name, found in modules.items() if type(found) is IFNode}

    def to_neurons(call: list[Reader | None]) -> bool:
        return all(r is not None and r.position == 0 and r.name in neurons for r in call)

    by_events = {
        name
        for name, found in modules.items()
        if isinstance(found, SpikeConv2d) and found.by_events and found.groups == 1
    }
    currents = {
        name
        for name in by_events
        if all(len(call) == 1 and to_neurons(call) for call in known.calls[name])
    }

    def takes_bits(reader: Reader | None, before: tuple[str, ...] = ()) -> bool:
        if reader is None or reader.name in before:
            return False
        if _passes_on(modules.get(reader.name)):
            on = (r for call in known.calls[reader.name] for r in call)
            return all(takes_bits(r, (*before, reader.name)) for r in on)
        if reader.position == 1:
            return reader.name in neurons and reader.first in currents
        return reader.position == 0 and reader.name in by_events

    spikes = {n for n in neurons if all(takes_bits(r) for call in known.calls[n] for r in call)}
    chosen = currents | spikes
    # A module under two names is chosen under both, or not at all.
    others = {every[name] for name in known.calls if name in every and name not in chosen}
    return frozenset(modules[name] for name in chosen) - others


def _reader(user: fx.Node, node: fx.Node) -> Reader | None:
    """The module that reads what a node gives, as one of its arguments."""
    if user.op != "call_module" or user.args.count(node) != 1 or node in user.kwargs.values():
        return None
    first = user.args[0]
    if not isinstance(first, fx.Node) or first.op != "call_module":
        return Reader(str(user.target), user.args.index(node), None)
    return Reader(str(user.target), user.args.index(node), str(first.target))


def _passes_on(module: nn.Module | None) -> bool:
    """Whether it hands on what it is given: a residual block's shortcut often is such a module."""
    return type(module) is nn.Identity or (type(module) is nn.Sequential and not len(module))


def _untouched(module: nn.Module) -> bool:
    """Whether nobody looks at a module or has changed what it does."""
    return not hooked(module) and "forward" not in vars(module)
