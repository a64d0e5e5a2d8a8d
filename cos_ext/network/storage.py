"""The file of a spiking network: its format and what save() writes. Reading one needs conversion,
which is a higher room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._build import own_version
from .._files import read_header, write_tensors
from ..general import TENSORS, Neuron
from .settings import Configured

FORMAT = "cos_ext spiking network, 1"


def save(network: Configured, path: str | Path) -> None:
    """:meth:`cos_ext.SpikingNetwork.save`."""
    hard = [site for site, node in network.nodes().items() if node.v_reset is not None]
    if hard:
        raise ValueError(
            f"the neurons at {hard} have hard reset, which this format does not have; "
            "cos_ext.to_nir writes such networks"
        )
    write_tensors(path, network.state_dict(), header(network))


def _described(neuron: Neuron | None) -> dict[str, Any] | None:
    """A neuron as JSON: its numbers, and of its tensors the shapes."""
    if neuron is None:
        return None
    tensors = {name: getattr(neuron, name) for name in TENSORS}
    shapes = {n: list(t.shape) for n, t in tensors.items() if isinstance(t, Tensor)}
    return {"settings": neuron.described, "shapes": shapes}


def _layer(own: dict[str, Any]) -> dict[str, Any]:
    return {**own, "neuron": _described(own["neuron"])} if "neuron" in own else own


def neuron_from(described: Any) -> Neuron | None:
    """The neuron that a file describes, its tensors 0.

    Raises:
        TypeError, ValueError: it describes none.
    """
    if described is None:
        return None
    if not isinstance(described, dict) or described.keys() != {"settings", "shapes"}:
        raise ValueError(f"no neuron: {described!r}")
    settings, shapes = described["settings"], described["shapes"]
    if not isinstance(settings, dict) or not isinstance(shapes, dict):
        raise ValueError(f"no neuron: {described!r}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    values.update({name: torch.zeros(shape) for name, shape in shapes.items()})
    return Neuron(**values)


def is_saved_network(path: str | Path) -> bool:
    """Whether :func:`save` wrote this file, by its header; False where it cannot be read."""
    try:
        return str(read_header(path).get("format", "")).startswith(FORMAT.split(",")[0])
    except (OSError, ValueError):
        return False


def header(network: Configured) -> dict[str, Any]:
    """What a file says beside its tensors."""
    nodes, options = network.nodes(), network.options
    thetas = {site: node.v_threshold for site, node in nodes.items() if site in options["sites"]}
    return {
        "format": FORMAT,
        "cos_ext": own_version(),
        "timesteps": network.timesteps,
        "rho": network.rho,
        "iterations": network.iterations,
        "emission": network.emission,
        "calibration": network.calibration,
        "execution": network.execution,
        "convolution": network.convolution,
        "convolutions": network._own_convolutions,
        "neuron": _described(network.neuron),
        "layers": {site: _layer(own) for site, own in network._layers.items()},
        "thresholds": {
            site: theta.item() if theta.dim() == 0 else list(theta.shape)
            for site, theta in thetas.items()
        },
        "biases": {
            site: list(node.bias.shape) for site, node in nodes.items() if node.bias is not None
        },
        "static": network.static_calibration,
        "spikes": options.get("spikes", "rectifiers"),
        "nonlinear": options.get("nonlinear", "error"),
        "max_pool": options["max_pool"],
        "fold_batchnorm": options["fold_batchnorm"],
        "trainable": bool(options.get("trainable")),
        "fuse": options["fuse"],
        "readout": options["readout"],
        "method": options.get("method"),
        "memory_format": options.get("memory_format", "auto"),
    }
