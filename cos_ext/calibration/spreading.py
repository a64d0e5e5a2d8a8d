"""spread_v_init: potentials that are handed out over the steps, where "SNN calibration" starts."""

from __future__ import annotations

from .._numbers import whole
from ..network.network import SpikingNetwork
from ..network.spread import spread_out
from .pairs import check_network, check_settled


def spread_v_init(network: SpikingNetwork, steps: int | None = None) -> None:
    """Let the neurons begin at 0, and add v(0)/T to their current at every step instead.

    With v(0) = θ/2 that is the θ/(2T) of "SNN calibration" (Li et al., ICML 2021, arXiv
    2106.06984) and of adaptive calibration (AAAI 2025, arXiv 2412.16219); with ``steps`` the
    θ/(2 steps) of RTS. After T steps the potentials are what they were without, before that they
    are lower. It is a step of the neurons (``step_bias`` of :class:`cos_ext.Neuron`, to which it is
    added) and is saved with the network, which then answers at this ``timesteps`` alone.

    Args:
        network: from :func:`cos_ext.convert`, whose v(0) are one number for a layer, or per channel
            (dimension 1 of [B, C, ...]): [C, 1, ...].
        steps: over how many steps v(0) is spread, >= 1; None: the network's ``timesteps``.

    Raises:
        TypeError: network is no SpikingNetwork, or steps no int.
        ValueError: steps < 1; v(0) per neuron; the network is trainable, runs by counts or has hard
            reset. The network is unchanged then.
    """
    check_network(network)
    check_settled(network)
    over = network.timesteps if steps is None else whole("steps", steps, 1, or_=" or None")
    spread_out(network, over)
