"""What becomes of a max pooling of spikes: the user's choice, and when each choice can be had. What
is computed then is in ../network/pooling.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import fx, nn

from ..network.pooling import MAX_POOLS, MaxOver, average_of
from .graphs import called
from .rules import Refusal
from .rules.base import space_of
from .state import OF_MEANS, Conversion

Choice = Callable[[Conversion, fx.Node, nn.Module], "tuple[str, str] | Refusal"]

REFUSED = Refusal(
    "max pooling does not commute with the mean over time",
    'retrain with average pooling, or choose max_pool="difference" (exact), "before" (exact with '
    'calibration, and keeps spikes), "avg" or "spike"',
)
OF_SPIKES = "maximum over the spikes of each step"


def _error(conversion: Conversion, node: fx.Node, pool: nn.Module) -> tuple[str, str] | Refusal:
    return REFUSED


def _difference(
    conversion: Conversion, node: fx.Node, pool: nn.Module
) -> tuple[str, str] | Refusal:
    """The maximum of the running means, exact at every step."""
    if conversion.settings.nonlinear == "error":
        return REFUSED
    conversion.differences.add(node)
    return "difference", f'{OF_MEANS}; max_pool="before" keeps spikes'


def _spike(conversion: Conversion, node: fx.Node, pool: nn.Module) -> tuple[str, str] | Refusal:
    """max_t is taken at every step; the mean of maxima is at least the maximum of means."""
    return "kept", OF_SPIKES


def _average(conversion: Conversion, node: fx.Node, pool: nn.Module) -> tuple[str, str] | Refusal:
    """Another network, with average pooling over the same windows."""
    average = average_of(pool)
    if isinstance(average, str):
        return Refusal(average, 'choose max_pool="before" or "spike"')
    conversion.averages[str(node.target)] = average
    return "replaced", f"by {type(average).__name__}"


def _before(conversion: Conversion, node: fx.Node, pool: nn.Module) -> tuple[str, str] | Refusal:
    """The neurons are monotone in their current, so that max(f(x)) = f(max(x)) for one θ."""
    (activation,) = node.all_input_nodes
    while activation in conversion.before:  # poolings of poolings move together
        (activation,) = activation.all_input_nodes
    neuron = conversion.neurons.get(str(activation.target))
    if activation.op != "call_module" or neuron is None:
        return _of_currents(conversion, node, pool)
    if any(size != 1 for size in _along(neuron.v_threshold.shape, pool, conversion, node)):
        return Refusal(
            'max_pool="before" needs one threshold for all positions of a channel',
            "give thresholds of shape [C, 1, 1] or a number",
        )
    conversion.before[node] = pool
    return "moved", f"before the neurons of {activation.target}"


def _of_currents(
    conversion: Conversion, node: fx.Node, pool: nn.Module
) -> tuple[str, str] | Refusal:
    """It stands before neurons already: F.relu(F.max_pool2d(conv(x), 2))."""
    site = neurons_after(conversion, node)
    if site is not None:
        conversion.before[node] = pool
        return "kept", f"of currents, as the neurons of {site} watch them"
    return Refusal(
        'max_pool="before" needs neurons before or after it',
        'put an activation beside the pooling, or choose "avg" or "spike"',
    )


def neurons_after(conversion: Conversion, node: fx.Node) -> str | None:
    """The site of the first neurons that read what follows a node; None: there are none."""
    open_ = list(node.users)
    seen = set(open_)
    while open_:
        reader = open_.pop(0)
        if reader.op == "call_module" and str(reader.target) in conversion.neurons:
            return str(reader.target)
        open_ += [user for user in reader.users if user not in seen]
        seen.update(reader.users)
    return None


def _along(shape: torch.Size, pool: nn.Module, conversion: Conversion, node: fx.Node) -> list[int]:
    """The sizes of a threshold [*neurons] along the dimensions that are pooled."""
    if not isinstance(pool, MaxOver):
        return list(shape[-space_of(pool) :])
    (source,) = node.all_input_nodes
    rank = conversion.facts.ranks.get(source)
    if rank is None:
        return list(shape)
    behind = [dim % rank - rank for dim in pool.dims]  # counted from the back
    return [shape[dim] for dim in behind if -dim <= len(shape)]


CHOICES: dict[str, Choice] = {
    "error": _error,
    "difference": _difference,
    "avg": _average,
    "spike": _spike,
    "before": _before,
}


class ChooseMaxPooling:
    """Decides every max pooling of spikes, as `max_pool` asks; its line in the report says how."""

    def apply(self, conversion: Conversion) -> None:
        kept = {e.site: i for i, e in enumerate(conversion.report.entries) if e.status == "kept"}
        for node in conversion.graph.nodes:
            if node.op != "call_module" or node not in conversion.facts.spiking:
                continue
            pool = called(conversion.model, node)
            if isinstance(pool, MAX_POOLS) and node.target in kept:
                self._decide(conversion, node, pool, kept[node.target])

    def _decide(self, conversion: Conversion, node: fx.Node, pool: nn.Module, index: int) -> None:
        choose = CHOICES[conversion.settings.max_pool]
        chosen = choose(conversion, node, pool)
        if choose is not _error and getattr(pool, "return_indices", False):
            chosen = Refusal("returns indices", "call it without return_indices")
        entries = conversion.report.entries
        if isinstance(chosen, Refusal):
            line = conversion.traced.lines.get(node.name, "")
            status, reason = "unsupported", f"{chosen} [{line}]" if line else str(chosen)
        else:
            status, reason = chosen
        entries[index] = dataclasses.replace(entries[index], status=status, reason=reason)
