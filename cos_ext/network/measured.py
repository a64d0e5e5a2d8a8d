"""What can be measured of a spiking network while it runs: records, statistics, energy.

How it runs is in network.py; the bodies of the reports are in the room analysis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from .._neuron.runs import Run, running
from .recording import Recording
from .reports import make_report
from .settings import Configured


class Measured(Configured):
    """A converted model whose neurons can be watched."""

    def _by_steps(self) -> running:
        """Inside, this thread runs step by step, nothing fused into the neurons, whatever the
        settings: for what looks at every step and spike.
        """
        return running(Run(apart=True))

    def statistics(self, batches: Iterable[Any], *, progress: bool = True) -> Any:
        """What the neurons of every layer do: offset spikes, spikes, silent and saturated shares,
        the split of the error; a :class:`cos_ext.NetworkStatistics`.

        Summed by the kernels in the pass that simulates: nothing by neuron is written, and the
        device is waited for once. The sums are integers, so that they do not depend on how the data
        are split, nor on the device. Those of general neurons are summed in torch, from a second
        pass over the steps watched. The network is put in eval mode.

        Args:
            batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements
                are the network's inputs.
            progress: a progress bar on stderr.

        Raises:
            TypeError: batches yields something else.
            ValueError: batches yields no sample; neurons have hard reset; a layer has rho > 256
                (or, without calibration, T > 256), or of general neurons more than 2^16 values of
                ψ.
        """
        self.eval()
        with self._by_steps():
            return make_report("statistics", self, batches, progress=progress)

    def energy_report(
        self,
        batches: Iterable[Any],
        *,
        ac_energy: float = 0.9,
        mac_energy: float = 4.6,
        neuron_energy: float | None = None,
        bits: int | None = None,
        quantised_mac_energy: float | None = None,
        progress: bool = True,
    ) -> Any:
        """Synaptic operations, the ANN's multiplications, energies (pJ per operation) and latency,
        per image.

        An :class:`cos_ext.EnergyReport`. What is counted, the arguments and the errors:
        :func:`cos_ext.analysis.energy.energy_report`.
        """
        with self._by_steps():
            return make_report(
                "energy",
                self,
                batches,
                ac_energy=ac_energy,
                mac_energy=mac_energy,
                neuron_energy=neuron_energy,
                bits=bits,
                quantised_mac_energy=quantised_mac_energy,
                progress=progress,
            )

    @contextlib.contextmanager
    def record(
        self,
        sites: str | Iterable[str] | None = None,
        what: str | Iterable[str] = ("spikes",),
        *,
        max_bytes: int = 2**30,
    ) -> Iterator[Recording]:
        """Inside the with statement, keep what the neurons do at every step: what forward hooks
        are set for elsewhere.

        The network runs by steps then, the recorded layers unfused. Other threads' runs are not
        recorded. ::

            with network.record(["layer1.0.relu"], ("spikes", "v")) as recording:
                network(images)
            recording["layer1.0.relu"].v  # [T, B, C, H, W]

        Args:
            sites: call sites of the network, one or several; None: all.
            what: one or several of "spikes", "counts" and "v"; see
                :class:`cos_ext.network.recording.SiteRecord`.
            max_bytes: how much may be kept, on the network's device.

        Raises:
            TypeError, ValueError: a bad argument; "v" where spikes do not follow from a potential.
            ValueError: when the network is called: more than max_bytes would be kept.
            RuntimeError: when the network is called: its settings have been changed.
        """
        recording = Recording(self, sites, what, max_bytes)
        with running(Run(recorder=recording)):
            yield recording
