"""The graph of a network that is run by counts (counts.py says when that may be): one pass over
means, and time only where it is needed. No arithmetic of neurons here.

What stands between neurons commutes with the mean over time. Hence two worlds:

mean: every tensor [B, ...] is the mean over the first rho steps. A neuron hands on θ C* / rho.

step: time is folded into the batch, [T*B, ...], as in the step-by-step run. Only what lies between
the last neurons and the output is evaluated there. The last neurons emit their trains from their
counts.

A node of the graph may be needed in both. The mean world never reads the step world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from ..neuron import IFNode
from .counts import rate_of, train_of, whole_count
from .graphs import as_function
from .over_time import Difference, RunningMean, TimeBroadcast, UnfitOverTime, odd, over_time
from .pooling import MAX_POOLS, MaxPoolBefore, PooledBefore


class Plan(NamedTuple):
    """The functions that run a graph by counts; the first argument is the graph's module, whose
    submodules they call.

    outputs(module, timesteps, rho, *inputs) -> the graph's, [T*B, ...]; counts(module, rho,
    *inputs) -> {site: C* [B, ...], int32}.
    """

    outputs: Callable[..., tuple[Any, ...]]
    counts: Callable[..., dict[str, Tensor]]


def plan(module: nn.Module) -> Plan:
    """The functions that run a converted graph by counts.

    Args:
        module: of a SpikingNetwork.

    Raises:
        ValueError: with the reason, where the graph cannot be evaluated by means.
    """
    if not isinstance(module, fx.GraphModule):
        raise ValueError(
            "execution='counts' needs the network's graph; the model could not be traced by "
            "torch.fx"
        )
    worlds = _Worlds(module)
    return Plan(worlds.outputs(), worlds.counts())


class _Worlds:
    """Which node of a graph is evaluated in which world; writes the graphs that do so. A value is a
    pair (node, world).
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.nodes = module, list(module.graph.nodes)
        called = {n: module.get_submodule(n.target) for n in self.nodes if n.op == "call_module"}
        self.neurons = {n: m for n, m in called.items() if isinstance(m, IFNode)}
        self.broadcasts = {n for n, m in called.items() if isinstance(m, TimeBroadcast)}
        self.pools = {n for n, m in called.items() if isinstance(m, MaxPoolBefore)}
        self.pooled = {n for n, m in called.items() if isinstance(m, PooledBefore)}
        self.maxima = {n for n, m in called.items() if isinstance(m, MAX_POOLS)}
        # A mean over the first rho steps is its own running mean there.
        self.means = {n for n, m in called.items() if isinstance(m, (RunningMean, Difference))}
        self.marks = {n for n, m in called.items() if isinstance(m, UnfitOverTime)}
        over_means: set[fx.Node] = set()  # from a running mean to the difference after it
        for node in self.nodes:
            begins = isinstance(called.get(node), RunningMean)
            ends = isinstance(called.get(node), Difference)
            if begins or (over_means.intersection(node.all_input_nodes) and not ends):
                over_means.add(node)
        self.maxima -= over_means
        # Evaluated by world; all others are static, the same in both.
        self.timed: set[fx.Node] = set()
        for node in self.nodes:
            if (
                node in self.neurons
                or node in self.broadcasts
                or any(n in self.timed for n in node.all_input_nodes)
            ):
                self.timed.add(node)

    def value(self, node: fx.Node, world: str) -> tuple[fx.Node, str]:
        return node, world if node in self.timed else "static"

    def sources(self, node: fx.Node, world: str) -> list[tuple[fx.Node, str]]:
        """The values that a value is computed from."""
        by_mean = node in self.neurons or node in self.marks
        return [self.value(n, "mean" if by_mean else world) for n in node.all_input_nodes]

    def needed(self, roots: Iterable[tuple[fx.Node, str]]) -> set[tuple[fx.Node, str]]:
        found, open_ = set(), list(roots)
        while open_:
            value = open_.pop()
            if value not in found:
                found.add(value)
                open_ += self.sources(*value)
        for node in self.nodes:
            if node in self.maxima and (node, "mean") in found:
                raise ValueError(
                    "execution='counts' needs operations that commute with the mean over time; "
                    f"{node.target}, a "
                    'maximum over the spikes of each step (max_pool="spike"), does not'
                )
        return found

    def outputs(self) -> Callable[..., tuple[Any, ...]]:
        (last,) = (n for n in self.nodes if n.op == "output")
        needed = self.needed([(last, "step")])
        graph = fx.Graph()
        timesteps, rho = graph.placeholder("_timesteps"), graph.placeholder("_rho")
        made = self._first(graph, needed, rho)
        for node in self.nodes:
            if (node, "step") not in needed:
                continue
            source, *others = (
                (made[value] for value in self.sources(node, "step"))
                if node.all_input_nodes
                else (None,)
            )
            if node in self.neurons:
                residual = others[0] if others else None
                arguments = (
                    graph.get_attr(node.target),
                    source,
                    residual,
                    timesteps,
                    rho,
                    (node, "mean") not in needed,
                )
                made[node, "step"] = graph.call_function(train_of, arguments)
            elif node in self.broadcasts:
                made[node, "step"] = graph.call_function(over_time, (source, timesteps))
            elif node in self.pooled:
                made[node, "step"] = graph.call_module(f"{node.target}.pool", (source,))
            elif node in self.marks:
                made[node, "step"] = graph.call_function(odd, (source,))
            else:
                made[node, "step"] = self._copy(graph, node, "step", made)
        return as_function(graph)

    def counts(self) -> Callable[..., dict[str, Tensor]]:
        needed = self.needed((n, "mean") for n in self.neurons)
        graph = fx.Graph()
        rho = graph.placeholder("_rho")
        found: dict[str, fx.Node] = {}
        self._first(graph, needed, rho, found)
        graph.output(found)
        return as_function(graph)

    def _first(
        self,
        graph: fx.Graph,
        needed: set[tuple[fx.Node, str]],
        rho: fx.Node,
        counts: dict[str, fx.Node] | None = None,
    ) -> dict[tuple[fx.Node, str], fx.Node]:
        """Write the static and the mean world, in the order of the graph; where asked, also every
        neuron's count.
        """
        made: dict[tuple[fx.Node, str], fx.Node] = {}
        for node in self.nodes:
            if node.op == "placeholder" or (node, "static") in needed:
                made[node, "static"] = self._copy(graph, node, "static", made)
            if (node, "mean") not in needed:
                continue
            # A node that reads nothing is copied, and its source not looked at.
            source, *others = [made[value] for value in self.sources(node, "mean")] or [node]
            if node in self.neurons:
                # Then the currents are read twice.
                both = counts is not None or (node, "step") in needed
                neuron, residual = graph.get_attr(node.target), others[0] if others else None
                if counts is not None:
                    counts[node.target] = graph.call_function(
                        whole_count, (neuron, source, residual, rho)
                    )
                inplace = self.neurons[node].inplace and not both
                made[node, "mean"] = graph.call_function(
                    rate_of, (neuron, source, residual, rho, inplace, counts is None)
                )
            elif node in self.broadcasts:
                # What follows may work in place, on a copy for every step: in both worlds each
                # needs its own.
                both = (node, "step") in needed
                made[node, "mean"] = graph.call_method("clone", (source,)) if both else source
            elif node in self.means:
                made[node, "mean"] = source
            elif node in self.pooled:  # the neurons leave it to others here
                made[node, "mean"] = graph.call_module(f"{node.target}.pool", (source,))
            elif node in self.pools:
                # The largest sum over rho steps is the largest mean.
                made[node, "mean"] = graph.call_module(f"{node.target}.pool", (source,))
            else:
                made[node, "mean"] = self._copy(graph, node, "mean", made)
        return made

    def _copy(
        self, graph: fx.Graph, node: fx.Node, world: str, made: dict[tuple[fx.Node, str], fx.Node]
    ) -> fx.Node:
        return graph.node_copy(node, lambda source: made[self.value(source, world)])
