"""What the operators return: named tuples, and nothing that computes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class IFResult(NamedTuple):
    """What a pass of integrate-and-fire neurons gives.

    A result that was not asked for is None.

    * ``spikes``: ``[T, *neurons]``, 0 or θ, in the input's dtype and memory format.
    * ``v``: the potential v(T) after the last step, ``[*neurons]``, in the state dtype.
    * ``spike_count``: the spikes of the T steps, ``[*neurons]``, int32.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor | None


class COSResult(NamedTuple):
    """What a pass of calibrated neurons gives.

    A result that was not asked for is None.

    * ``spikes``: ``[T, *neurons]``, 0 or θ, in the input's dtype and memory format.
    * ``v``: the potential v(T) after the last step, ``[*neurons]``, in the state dtype.
    * ``spike_count``: the spikes of the T emitted steps, ``[*neurons]``, int32.
    * ``v_init``: the shifted v(0), ``[*neurons]``, in the state dtype.
    * ``offset_spikes``: ψ before calibration, ``[*neurons]``, int32, signed.
    * ``statistics``: sums over all neurons, int64 ``[2 rho + 7]``; see
      :mod:`cos_ext.analysis.statistics`.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor | None
    v_init: Tensor | None
    offset_spikes: Tensor | None
    statistics: Tensor | None = None


class Calibration(NamedTuple):
    """What calibration alone gives; each ``[*neurons]``.

    * ``v_init``: the shifted v(0), in the state dtype.
    * ``offset_spikes``: ψ before calibration, int32, signed.
    * ``spike_count``: N of the first rho steps before calibration, int32.
    """

    v_init: Tensor
    offset_spikes: Tensor
    spike_count: Tensor
