"""The ANN beside the network that was made from it: whether the two belong together, and which
activation the neurons of a site stand for.

Nothing is measured, fitted or converted here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from .._batches import device_of
from ..network.network import SpikingNetwork
from ..network.pooling import MaxPoolBefore
from .tracing import Traced, trace

# The ANN's site, and the max pooling after it that was moved before the neurons.
Counterpart = tuple[str, nn.Module | None]


def check_ann(ann: object) -> None:
    """TypeError unless `ann` may be the model that a network was converted from."""
    if not isinstance(ann, nn.Module):
        raise TypeError(f"ann must be an nn.Module, got {type(ann).__name__}")
    if isinstance(ann, SpikingNetwork):
        raise TypeError(
            "ann must be the model that the network was converted from, got a SpikingNetwork"
        )


def traced_ann(ann: nn.Module, network: SpikingNetwork) -> Traced:
    """A copy of the ANN in eval mode, on the network's device, with its activations by call site.

    Raises:
        ValueError: ann has other activation call sites than the network was made from, or another
            dtype.
    """
    ran_on = network.options["ran_on"]
    spikes = network.options.get("spikes", "rectifiers")
    traced = trace(ann, network.inputs, ran_on, spikes=spikes, runs=bool(ran_on))
    if set(traced.sites) != set(network.options["sites"]):
        raise ValueError(
            f"ann must be the model that the network was converted from, with activations at "
            f"{list(network.options['sites'])}; it has {list(traced.sites)}"
        )
    ours, theirs = _dtype(network), _dtype(traced.module)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"ann must have the network's dtype {ours}, it has {theirs}")
    traced.module.to(device_of(network))
    return traced


def counterparts(network: SpikingNetwork, sites: Mapping[str, nn.Module]) -> dict[str, Counterpart]:
    """What the neurons of each site stand for: the ANN's site, and the max pooling after it that
    was moved before them, or None.

    Neurons whose site the ANN lacks are those of another one again, pooled. They are recognised by
    reading the same currents. Sites that correspond to nothing in the ANN are left out.
    """
    nodes = network.nodes()
    if not isinstance(network.module, fx.GraphModule):
        return {site: (site, None) for site in nodes if site in sites}
    currents, pools = _currents(network, network.module)
    found: dict[str, Counterpart] = {}
    for site in nodes:
        same = (
            other
            for other in nodes
            if other in sites and site.startswith(f"{other}_") and currents[other] is currents[site]
        )
        own = site if site in sites else next(same, None)
        if own is not None:
            found[site] = (own, pools.get(site))
    return found


def _currents(
    network: SpikingNetwork, module: fx.GraphModule
) -> tuple[dict[str, fx.Node], dict[str, nn.Module]]:
    """By site: the node whose result its neurons read, before poolings that were moved there; and
    those, as one, where there are some.
    """
    nodes = network.nodes()
    moved = {entry.site for entry in network.report.entries if entry.status == "moved"}
    currents: dict[str, fx.Node] = {}
    pools: dict[str, nn.Module] = {}
    for node in module.graph.nodes:
        if node.op != "call_module" or node.target not in nodes:
            continue
        source, before = node.args[0], nn.Sequential()
        while source.op == "call_module" and source.target in moved:
            pool = module.get_submodule(source.target)
            before.insert(0, pool.pool if isinstance(pool, MaxPoolBefore) else pool)
            source = source.args[0]
        currents[node.target] = source
        if len(before):
            pools[node.target] = before
    return currents, pools


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Of its first floating-point parameter."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
