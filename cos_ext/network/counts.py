"""Counts first: a network whose spikes follow from desired counts, evaluated in one pass over
means. How, and when it may.

No kernels and no rules of conversion here; the neurons themselves are in neuron.py, settings and
execution modes in network.py.

With a planned emission ("even", "front") the spikes of a layer follow from its desired counts C*
over rho steps alone, and

    C* = clip(floor((Σ x(t) + v(0)) / θ), 0, rho) = clip(floor((rho x̄ + v(0)) / θ), 0, rho)

from the mean x̄ of its input over the first rho steps (Hao et al., ICLR 2023, arXiv 2302.10685, for
the count). What convert() keeps between neurons is affine, sample by sample, and so commutes with
the mean, biases included. Hence two worlds:

mean: every tensor [B, ...] is the mean over the first rho steps. A neuron hands on θ C* / rho.
step: time is folded into the batch, [T*B, ...], as in the step-by-step run. Only what lies between
the last neurons and the
      output is evaluated there; the last neurons emit their trains from their counts.

A node of the graph may be needed in both. The mean world never reads the step world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .. import functional as F
from ..neuron import IFNode
from .pooling import MAX_POOLS, MaxPoolBefore, PooledBefore

EXECUTIONS = ("steps", "counts")
PLANNED = ("even", "front")  # emissions for which the desired count decides who fires when


class Plan(NamedTuple):
    """The functions that run a graph by counts; the first argument is the graph's module, whose
    submodules they call.

    outputs(module, timesteps, rho, *inputs) -> [T*B, ...]; counts(module, rho, *inputs) -> {site:
    C* [B, ...], int32}.
    """

    outputs: Callable[..., Tensor]
    counts: Callable[..., dict[str, Tensor]]


def check_execution(execution: str) -> str:
    """ValueError unless there is such an execution mode."""
    if execution not in EXECUTIONS:
        raise ValueError(f"execution must be one of {EXECUTIONS}, got {execution!r}")
    return execution


def check_settings(layers: Mapping[str, tuple[int, str, str]], *, static: bool = False) -> int:
    """The rho of all layers; ValueError with the reason where their counts do not decide their
    spikes.

    Args:
        layers: (rho, emission, calibration) by call site.
        static: whether the network's potentials were calibrated beforehand, on other images.
    """
    needs = "execution='counts' needs"
    if static:
        raise ValueError(
            f"{needs} spikes that follow from the counts; with static calibration they follow from "
            "the potentials"
        )
    others = {
        site: calibration for site, (*_, calibration) in layers.items() if calibration != "cos"
    }
    if others:
        raise ValueError(f"{needs} calibration 'cos' in every layer, got {others}")
    free = {site: emission for site, (_, emission, _) in layers.items() if emission not in PLANNED}
    if free:
        raise ValueError(
            f"{needs} emission to be one of {PLANNED} in every layer (otherwise the spikes depend "
            "on when the input "
            f"comes, not on its sum alone), got {free}"
        )
    if any(rho == 0 for rho, *_ in layers.values()):
        raise ValueError(
            f"{needs} rho >= 1 (without calibration spikes depend on when the input comes), got "
            "rho = 0 for "
            f"{[site for site, (rho, *_) in layers.items() if rho == 0]}"
        )
    rhos = {site: rho for site, (rho, *_) in layers.items()}
    if len(set(rhos.values())) > 1:
        raise ValueError(
            f"{needs} one rho for all layers (a count over rho steps does not give that over "
            "another number of "
            f"them), got {rhos}"
        )
    return next(iter(rhos.values()))


def desired_count(
    x_mean: Tensor, v_threshold: Tensor, v_init: Tensor, rho: int, *, inplace: bool = False
) -> Tensor:
    """C* = clip(floor((rho x̄ + v(0)) / θ), 0, rho); a NaN input counts none.

    Args:
        x_mean: x̄, [B, ...], the mean input over rho steps; float32, float64, float16 or bfloat16.
        v_threshold, v_init: θ and v(0), tensors that broadcast to the neurons.
        inplace: may write over x_mean, where its dtype is the result's.

    Returns:
        Whole numbers in the state dtype (float64 for float64, else float32), [B, ...].
    """
    state = F.state_dtype(x_mean.dtype)
    wide = x_mean.to(state)
    count = wide.mul_(rho) if inplace or wide is not x_mean else wide * rho
    return (
        count.add_(v_init.to(state))
        .div_(v_threshold.to(state))
        .nan_to_num_(nan=0.0)
        .floor_()
        .clamp_(0, rho)
    )


def rates(count: Tensor, v_threshold: Tensor, rho: int) -> Tensor:
    """θ C* / rho, the mean of the spikes over rho steps, written over `count`."""
    return count.mul_(v_threshold.to(count.dtype)).div_(rho)


def spikes_within(count: Tensor, steps: int, rho: int, emission: str) -> Tensor:
    """How many of its spikes a neuron with C* = count has emitted by step `steps`, as whole numbers
    in float64.

    "even": floor(C* t / rho + 1/2); "front": the first C* of every rho steps
    (csrc/core/emission.h).
    """
    count, (whole, rest) = count.double(), divmod(steps, rho)
    part = (
        (count * (2 * rest) + rho).div_(2 * rho).floor_()
        if emission == "even"
        else count.clamp(max=rest)
    )
    return part.add_(count, alpha=whole)


def train(
    count: Tensor, v_threshold: Tensor, *, steps: int, rho: int, emission: str, dtype: torch.dtype
) -> Tensor:
    """The spikes [T, B, ...], 0 or θ in `dtype`, of neurons with C* = count [B, ...] (in a state
    dtype; it is written over).
    """
    theta = v_threshold.to(count.dtype)
    # The current θ C*/rho from θ/2 asks for C* with half a spike to spare on both sides, so that
    # rounding plays no part.
    current = rates(count, theta, rho)
    run = max(steps, rho)
    spikes = F.cos_forward(
        current.expand(run, *current.shape), theta, rho=rho, iterations=0, emission=emission
    ).spikes
    return spikes[:steps].to(dtype)


# What the generated functions call. `rho` is that of the plan; node's own settings are the
# network's to keep.


def _check(node: IFNode, rho: int) -> None:
    if node.rho != rho or node.emission not in PLANNED:
        raise RuntimeError(
            f"a layer's rho = {node.rho} or emission {node.emission!r} was changed past the "
            "network, which "
            f"runs by counts over rho = {rho}; use SpikingNetwork.set_layer"
        )


def _count(
    node: IFNode, x: Tensor, residual: Tensor | None, rho: int, tally: bool
) -> tuple[Tensor, Tensor]:
    _check(node, rho)
    before, x = x, node._currents(x, residual)[0]
    theta, v_init = node._parameters_for(x)
    count = desired_count(x, theta, v_init, rho, inplace=x is not before)
    if tally and node.count_spikes:
        steps = node.timesteps
        spikes, total = node.emitted or (0, 0)
        if steps % rho:
            now = spikes_within(count, steps, rho, node.emission).sum()
        else:
            now = count.sum(dtype=torch.float64) * (steps // rho)  # exact: whole numbers below 2^53
        node.emitted = (spikes + now, total + count.numel() * steps)
    return count, theta


def _rate_of(
    node: IFNode, x: Tensor, residual: Tensor | None, rho: int, inplace: bool, tally: bool
) -> Tensor:
    if (tally and node.count_spikes) or not node._fuses(x, residual):
        count, theta = _count(node, x, residual, rho, tally)
        return rates(count, theta, rho).to(x.dtype)
    _check(node, rho)
    theta, v_init = node._parameters_for(x)
    return F.rate_forward(
        x, theta, v_init, rho=rho, inplace=inplace, residual=residual, **node._operands(x)
    )


def _train_of(
    node: IFNode, x: Tensor, residual: Tensor | None, timesteps: int, rho: int, tally: bool
) -> Tensor:
    count, theta = _count(node, x, residual, rho, tally)
    return train(
        count, theta, steps=timesteps, rho=rho, emission=node.emission, dtype=x.dtype
    ).flatten(0, 1)


def _whole_count(node: IFNode, x: Tensor, residual: Tensor | None, rho: int) -> Tensor:
    return _count(node, x, residual, rho, False)[0].to(torch.int32)


def _over_time(x: Tensor, timesteps: int) -> Tensor:
    return torch.cat([x] * timesteps)  # which keeps channels_last


def plan(module: nn.Module, is_broadcast: Callable[[nn.Module], bool]) -> Plan:
    """The functions that run a converted graph by counts.

    Args:
        module: of a SpikingNetwork.
        is_broadcast: whether a module repeats its input over time.

    Raises:
        ValueError: with the reason, where the graph cannot be evaluated by means.
    """
    if not isinstance(module, fx.GraphModule):
        raise ValueError(
            "execution='counts' needs the network's graph; the model could not be traced by "
            "torch.fx"
        )
    worlds = _Worlds(module, is_broadcast)
    return Plan(worlds.outputs(), worlds.counts())


class _Worlds:
    """Which node of a graph is evaluated in which world; writes the graphs that do so. A value is a
    pair (node, world).
    """

    def __init__(self, module: fx.GraphModule, is_broadcast: Callable[[nn.Module], bool]) -> None:
        self.module, self.nodes = module, list(module.graph.nodes)
        called = {n: module.get_submodule(n.target) for n in self.nodes if n.op == "call_module"}
        self.neurons = {n: m for n, m in called.items() if isinstance(m, IFNode)}
        self.broadcasts = {n for n, m in called.items() if is_broadcast(m)}
        self.pools = {n for n, m in called.items() if isinstance(m, MaxPoolBefore)}
        self.pooled = {n for n, m in called.items() if isinstance(m, PooledBefore)}
        self.maxima = {n for n, m in called.items() if isinstance(m, MAX_POOLS)}
        self.timed: set[fx.Node] = (
            set()
        )  # evaluated by world; all others are static, the same in both
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
        return [
            self.value(n, "mean" if node in self.neurons else world) for n in node.all_input_nodes
        ]

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

    def outputs(self) -> Callable[..., Tensor]:
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
                made[node, "step"] = graph.call_function(_train_of, arguments)
            elif node in self.broadcasts:
                made[node, "step"] = graph.call_function(_over_time, (source, timesteps))
            elif node in self.pooled:
                made[node, "step"] = graph.call_module(f"{node.target}.pool", (source,))
            else:
                made[node, "step"] = self._copy(graph, node, "step", made)
        return _function(graph)

    def counts(self) -> Callable[..., dict[str, Tensor]]:
        needed = self.needed((n, "mean") for n in self.neurons)
        graph = fx.Graph()
        rho = graph.placeholder("_rho")
        found: dict[str, fx.Node] = {}
        self._first(graph, needed, rho, found)
        graph.output(found)
        return _function(graph)

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
            source, *others = (
                (made[value] for value in self.sources(node, "mean"))
                if node.all_input_nodes
                else (None,)
            )
            if node in self.neurons:
                both = (
                    counts is not None or (node, "step") in needed
                )  # then the currents are read twice
                neuron, residual = graph.get_attr(node.target), others[0] if others else None
                if counts is not None:
                    counts[node.target] = graph.call_function(
                        _whole_count, (neuron, source, residual, rho)
                    )
                inplace = self.neurons[node].inplace and not both
                made[node, "mean"] = graph.call_function(
                    _rate_of, (neuron, source, residual, rho, inplace, counts is None)
                )
            elif node in self.broadcasts:
                # What follows may work in place, on a copy for every step: in both worlds each
                # needs its own.
                both = (node, "step") in needed
                made[node, "mean"] = graph.call_method("clone", (source,)) if both else source
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


def _function(graph: fx.Graph) -> Callable[..., Any]:
    """A graph as a function of the module whose submodules it calls: a GraphModule would register
    them a second time.
    """
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<cos_ext.network.counts>", "exec"), names)
    return names["forward"]
