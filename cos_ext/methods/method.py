"""What a conversion method is, and how its settings become a converted network's.

Which methods there are is in published.py. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .._tables import table as text_table
from ..general import Neuron
from ..network.network import SpikingNetwork
from ..network.spread import spread_out


@dataclass(frozen=True)
class Method:
    """A conversion method as settings of the general neuron.

    Args:
        name: what :func:`cos_ext.convert` takes.
        paper: authors, venue, arXiv number.
        needs: "nothing" beside the converted network, or "data", by which ``fit`` completes it.
        latency: when the answer at t is there, "t" or "rho + t".
        differs: how this is not the published code; empty where it is.
        neuron: what neurons do in a step; None is one level.
        levels: into how many levels θ is cut: one level is θ/levels.
        start: v(0), in levels.
        spreads: neurons begin at 0, and v(0)/T is added to their current at every step instead.
        settings: of the network: calibration, emission, iterations.
        fit: the function that completes it with data, by its name in ``cos_ext``; None: none does.
    """

    name: str
    paper: str
    needs: str
    latency: str = "t"
    differs: str = ""
    neuron: Neuron | None = None
    levels: int = 1
    start: float = 0.5
    spreads: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: str | None = None

    @property
    def watches(self) -> bool:
        """Whether its layers watch rho steps before they answer."""
        return self.latency == "rho + t"


def chosen(
    method: str | Method, methods: Mapping[str, Method], others: Mapping[str, str]
) -> Method:
    """A method by its name, or itself.

    Raises:
        TypeError: it is neither.
        ValueError: there is none of this name, or none that runs here, with the reason.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method, got {type(method).__name__}")
    if method in others:
        raise ValueError(f"method {method!r} does not run here: {others[method]}")
    if method not in methods:
        raise ValueError(f"method must be one of {sorted(methods)}, got {method!r}")
    return methods[method]


@torch.no_grad()
def apply(network: SpikingNetwork, method: Method) -> None:
    """Make a converted network's neurons those of a method.

    The network's θ is cut into levels, so that what a layer can send in a step is at least what it
    was. One that spreads v(0) answers at its ``timesteps`` alone.

    Raises:
        ValueError: it spreads v(0), and the thresholds are neither one number nor one a channel.
    """
    if method.levels != 1 or method.start != 0.5:
        for node in network.nodes().values():
            node.v_threshold.div_(method.levels)  # in place: it may be a parameter
            node.v_init.copy_(node.v_threshold * method.start)
    network.neuron = method.neuron
    if method.spreads:
        spread_out(network, network.timesteps)
    network.options["method"] = method.name


def table(methods: Mapping[str, Method]) -> str:
    """The methods as text, a line each."""
    rows = [[m.name, m.needs, m.latency, m.fit or "", m.paper] for m in methods.values()]
    return text_table(
        [["method", "needs", "latency", "fitted by", "paper"], *rows], (0, 1, 2, 3, 4)
    )
