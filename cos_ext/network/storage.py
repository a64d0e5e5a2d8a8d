"""The file of a spiking network: its format and what save() writes. Reading one needs conversion,
which is a higher room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._build import own_version
from .._files import read_header, write_tensors
from .settings import Configured

FORMAT = "cos_ext spiking network, 1"


def save(network: Configured, path: str | Path) -> None:
    """:meth:`cos_ext.SpikingNetwork.save`."""
    write_tensors(path, network.state_dict(), header(network))


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
        "layers": network._layers,
        "thresholds": {
            site: theta.item() if theta.dim() == 0 else list(theta.shape)
            for site, theta in thetas.items()
        },
        "biases": {
            site: list(node.bias.shape) for site, node in nodes.items() if node.bias is not None
        },
        "static": network.static_calibration,
        "max_pool": options["max_pool"],
        "fold_batchnorm": options["fold_batchnorm"],
        "trainable": bool(options.get("trainable")),
        "fuse": options["fuse"],
        "readout": options["readout"],
        "memory_format": options.get("memory_format", "auto"),
    }
