"""How the layers with weights of a spiking network run, dense or by events: the setting, and the
plan that follows from it. The layers themselves are in convolution.py.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from . import convolution
from .convolution import NetworkPlan
from .measured import Measured
from .settings import Report


class Planned(Measured):
    """A converted model whose layers of spikes run as they are told."""

    def __init__(self, module: nn.Module, report: Report, options: dict[str, Any]) -> None:
        super().__init__(module, report, options)
        self._convolution = "auto"
        self._own_convolutions: dict[str, str] = {}  # by name: what set_layer() changed
        convolution.choose(self.module, self._convolution, self._own_convolutions)

    @property
    def convolution(self) -> str:
        """How 2-d convolutions and linear layers of spikes run on a CPU: "dense", by torch's
        library, or "events", by a kernel whose time follows the spikes
        (:func:`cos_ext.functional.spike_conv2d`, ``spike_linear``). "auto", the default, takes
        events for those with 256 to 2^24 weights. :meth:`plan` lists what runs and why;
        :meth:`set_layer` sets it for one of them.

        By events, a sample's output does not depend on the batch, on the number of threads or on
        the instruction set, bit for bit. Sums have another order than dense ones, and a weight that
        is infinite or NaN comes out only where it meets a spike. Convolutions with groups of fewer
        than 16 channels, or with padding "same" or other than zeros, are dense, and so is what
        reads more than spikes. So are all layers on other devices, where a gradient is needed,
        under autocast, torch.compile and torch.func, of a model that could not be traced, and while
        statistics or energies are taken.

        Packed weights are kept beside the others from the first run by events on: as many bytes
        again with the outputs padded to 16, 32 or a multiple of 64, twice that for 16 bits. They
        are packed anew when a weight changes. Of what is written past autograd, through ``.data``
        or by NumPy, that is seen in about 256 of a layer's weights; set this again after such a
        change.

        Raises:
            TypeError, ValueError: when it is set: it is none of the three.
        """
        return self._convolution

    @convolution.setter
    def convolution(self, value: str) -> None:
        self._convolve(convolution.check_convolution(value), self._own_convolutions)

    def _convolve(self, value: str, own: dict[str, str]) -> None:
        self._convolution, self._own_convolutions = value, own
        convolution.choose(self.module, value, own)

    def plan(self) -> NetworkPlan:
        """How each layer with weights runs, "dense" or "events", and why. Prints as a table.

        ``plan().layers`` has tuples (site, kind, runs, reason). A run may be dense where this says
        events, for what that run asks: see :attr:`convolution`.
        """
        return convolution.plan(self.module)

    def set_layer(self, site: str, **changes: Any) -> None:
        """Give one call site settings of its own; without any, it follows the network again.

        Neurons have rho, iterations, emission and calibration. Every layer runs
        max(timesteps, watch_steps) steps. Convolutions and linear layers of spikes have
        `convolution`.

        Raises:
            ValueError: there is no such call site, or a setting of another name.
            TypeError, ValueError: a setting does not fit; nothing has changed then.
        """
        convolutions = convolution.layers(self.module)
        if site not in convolutions and "convolution" not in changes:
            super().set_layer(site, **changes)
            return
        if site not in convolutions or not changes.keys() <= {"convolution"}:
            raise ValueError(
                f"convolution is a setting of layers of spikes, and their only one, got "
                f"{sorted(changes)} of {site!r}; those are {list(convolutions)}; plan() says why "
                "others are none"
            )
        own = {name: way for name, way in self._own_convolutions.items() if name != site}
        if changes:
            own[site] = convolution.check_convolution(changes["convolution"])
        self._convolve(self._convolution, own)
