"""fit: what completes a method that needs data, by its name. Each fit is in its own file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..methods import METHODS
from ..network.network import SpikingNetwork
from .adafire import fit_adafire
from .light import fit_light
from .mean_potentials import fit_potentials
from .rate_shifts import fit_rate_shift
from .step_biases import fit_step_bias

FITS: dict[str, Callable[..., Any]] = {
    "fit_adafire": fit_adafire,
    "fit_light": fit_light,
    "fit_potentials": fit_potentials,
    "fit_rate_shift": fit_rate_shift,
    "fit_step_bias": fit_step_bias,
}


def fit(
    network: SpikingNetwork, ann: nn.Module, batches: Iterable[Any], *, progress: bool = True
) -> Any:
    """Complete a network that was converted by the name of a method that needs data.

    The same as the function that :class:`cos_ext.methods.Method` names as ``fit``, with its
    defaults; that function says what it does to the network, and how many batches it is made for.

    Args:
        network: from ``cos_ext.convert(model, method=...)``.
        ann: the model that it was converted from.
        batches: as for that function. Never the images on which the network is evaluated.
        progress: a progress bar on stderr.

    Returns:
        What that function returns.

    Raises:
        ValueError: the network was converted without a method, or by one that needs no data.
        TypeError, ValueError, RuntimeError: as for that function.
    """
    name = network.options.get("method")
    method = METHODS.get(name) if name is not None else None
    if method is None or method.fit is None:
        raise ValueError(
            f"network must be of a method that is fitted, got {name!r}; those are "
            f"{[each.name for each in METHODS.values() if each.fit]}"
        )
    return FITS[method.fit](network, ann, batches, progress=progress)
