"""What the energy report counted, and what follows from it: energies, ratios, tables, files.

Nothing is counted here, and no claim is made about hardware beyond the arithmetic of
:func:`cos_ext.analysis.energy.energy_report`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .._files import write_json
from .._tables import percent, table
from .files import write_csv


@dataclass(frozen=True)
class LayerEnergy:
    """The operations of one call of a layer with weights, or of a product of two tensors, per
    image; part of an :class:`cos_ext.EnergyReport`.

    Attributes:
        site: the module or call site, as ``network.report`` names it; further calls of it are
            "... (2)".
        kind: its class or function.
        input: "static" (no time: computed once), "spikes" (every channel, or feature of a linear
            layer, has one value besides 0, or neurons sent levels), "graded", or "product" (of
            two tensors that depend on the network's input).
        macs: multiplications of one pass of the ANN.
        watch: the steps that the neurons after it watch.
        reads: the steps of its input that it reads again for an answer at t = 1, ..., T.
        per_step: its operations at each of the network's S = max(T, rho) steps; empty if static.
        nonzero: the share of its inputs that are not 0, over these S steps; predictions left out.
            1 of static layers and of products.
        again: the first steps that are not read again: those watched, where the neurons after it
            emit from them.
    """

    site: str
    kind: str
    input: str
    macs: float
    watch: int
    reads: tuple[int, ...]
    per_step: tuple[float, ...]
    nonzero: float
    again: int = 0

    @property
    def operation(self) -> str:
        """What one of its operations is: "AC" for spikes, else "MAC"."""
        return "AC" if self.input == "spikes" else "MAC"

    @property
    def watched(self) -> float:
        """Operations of the steps that are watched."""
        return sum(self.per_step[: self.watch])

    @property
    def operations(self) -> tuple[float, ...]:
        """Operations for an answer at t = 1, ..., T: the steps watched, and those read for the
        answer.
        """
        if self.input == "static":
            return (self.macs,) * len(self.reads)
        return tuple(self.watched + sum(self.per_step[self.again : steps]) for steps in self.reads)

    @property
    def kept_operations(self) -> tuple[float, ...]:
        """The same where the currents of the steps watched are kept, so that no step is accumulated
        twice.
        """
        if self.input == "static":
            return self.operations
        return tuple(sum(self.per_step[: max(self.watch, steps)]) for steps in self.reads)


@dataclass(frozen=True)
class EnergyReport:
    """What :func:`cos_ext.analysis.energy.energy_report` counted, per image.

    Prints as two tables: layers, and answers at t = 1, ..., T. Energies per operation are in pJ.
    What is computed from them is in joules per image.

    Attributes:
        layers: in order of execution.
        neurons: how many there are.
        neuron_updates: their steps for an answer at t = 1, ..., T.
        uncounted: operations on tensors that depend on spikes which are not counted, by name, with
            the elements that they go through per image and step.
        samples: how many images were run.
        timesteps: T, the network's.
        rho: the largest of the network's and its layers'.
        iterations: of the network's calibration; None means exact.
        emission: the network's.
        ac_energy: of an accumulate.
        mac_energy: of a multiplication with its accumulate.
        neuron_energy: of one update of a neuron.
        bits: of the quantised ANN's activations.
        quantised_mac_energy: of its multiplication with its accumulate.
    """

    layers: tuple[LayerEnergy, ...]
    neurons: float
    neuron_updates: tuple[float, ...]
    uncounted: dict[str, float]
    samples: int
    timesteps: int
    rho: int
    iterations: int | None
    emission: str
    ac_energy: float
    mac_energy: float
    neuron_energy: float
    bits: int
    quantised_mac_energy: float

    @property
    def latency(self) -> list[int]:
        """rho + t time-steps, t = 1, ..., T."""
        return [self.rho + t for t in range(1, self.timesteps + 1)]

    @property
    def acs(self) -> list[float]:
        """Accumulates for an answer at t = 1, ..., T, the steps watched included."""
        return self._sum("operations", "AC")

    @property
    def graded_macs(self) -> list[float]:
        """The same of the layers whose input is graded and of products, each a multiplication."""
        return self._sum("operations", "MAC")

    @property
    def static_macs(self) -> float:
        """Multiplications of the static layers, once."""
        return sum(layer.macs for layer in self.layers if layer.input == "static")

    @property
    def ann_macs(self) -> float:
        """Multiplications of one pass of the ANN."""
        return sum(layer.macs for layer in self.layers)

    @property
    def snn_joules(self) -> list[float]:
        """For an answer at t = 1, ..., T: static layers once, accumulates, graded layers and
        products, neurons.
        """
        return self._joules("operations")

    @property
    def kept_joules(self) -> list[float]:
        """:attr:`snn_joules` where the currents of the steps watched are kept, so that none is
        accumulated twice.
        """
        return self._joules("kept_operations")

    @property
    def ann_joules(self) -> float:
        """One pass of the ANN."""
        return 1e-12 * self.mac_energy * self.ann_macs

    @property
    def quantised_joules(self) -> float:
        """One pass of the ANN with ``bits`` bits where the SNN has spikes; its other layers and
        its products cost a MAC.
        """
        spiking = sum(layer.macs for layer in self.layers if layer.input == "spikes")
        others = self.ann_macs - spiking
        return 1e-12 * (self.quantised_mac_energy * spiking + self.mac_energy * others)

    @property
    def ann_ratio(self) -> list[float]:
        """Energy of the ANN over that of the SNN at t = 1, ..., T: how many times less the SNN
        takes.
        """
        return [_ratio(self.ann_joules, joules) for joules in self.snn_joules]

    @property
    def quantised_ratio(self) -> list[float]:
        """Energy of the quantised ANN over that of the SNN at t = 1, ..., T."""
        return [_ratio(self.quantised_joules, joules) for joules in self.snn_joules]

    def _sum(self, name: str, operation: str) -> list[float]:
        running = [layer for layer in self.layers if layer.input != "static"]
        chosen = [getattr(layer, name) for layer in running if layer.operation == operation]
        return [math.fsum(counts[t] for counts in chosen) for t in range(self.timesteps)]

    def _joules(self, name: str) -> list[float]:
        parts = zip(self._sum(name, "AC"), self._sum(name, "MAC"), self.neuron_updates)
        return [
            1e-12
            * (
                self.ac_energy * acs
                + self.mac_energy * (macs + self.static_macs)
                + self.neuron_energy * updates
            )
            for acs, macs, updates in parts
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report and what follows from it as numbers, strings, lists and dicts."""
        derived = ["latency", "acs", "graded_macs", "static_macs", "ann_macs", "snn_joules"]
        derived += ["kept_joules", "ann_joules", "quantised_joules", "ann_ratio", "quantised_ratio"]
        return {
            **asdict(self),
            "neuron_updates": list(self.neuron_updates),
            "layers": [_plain(layer) for layer in self.layers],
            **{name: getattr(self, name) for name in derived},
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        write_json(path, self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per layer and t: counts per image."""
        head = ["site", "kind", "input", "ann_macs", "nonzero_share", "watch_steps", "watched"]
        head += ["t", "latency", "operation", "operations", "kept_operations"]
        write_csv(path, head, self._rows())

    def _rows(self) -> Iterator[list[Any]]:
        for layer in self.layers:
            names = [layer.site, layer.kind, layer.input]
            numbers = [layer.macs, layer.nonzero, layer.watch, layer.watched]
            counts = zip(self.latency, layer.operations, layer.kept_operations)
            for t, (latency, operations, kept) in enumerate(counts, 1):
                yield [*names, *numbers, t, latency, layer.operation, operations, kept]

    def __str__(self) -> str:
        uncounted = [f"{name} ({_count(n)} elements)" for name, n in self.uncounted.items()]
        lines = [
            f"Operations per image, the mean of {self.samples} ({self._settings()})",
            "",
            self._layer_table(),
            "",
            f"An answer at t: {self.ac_energy:g} pJ per AC, {self.mac_energy:g} per MAC, "
            f"{self.neuron_energy:g} per update of a neuron; arithmetic alone, no memory",
            "",
            self._answer_table(),
            "",
            f"ANN: {_count(self.ann_macs)} MACs, {_energy(self.ann_joules)}. {self.bits}-bit ANN: "
            f"{_energy(self.quantised_joules)} at {self.quantised_mac_energy:g} pJ per MAC where "
            "the SNN has spikes.",
        ]
        if uncounted:
            lines.append(f"Not counted, per image and step: {', '.join(uncounted)}.")
        return "\n".join(lines)

    def _settings(self) -> str:
        """The network's, in words."""
        kind = "exact" if self.iterations is None else f"iterations = {self.iterations}"
        if self.emission != "calibrated":
            kind = self.emission
        calibration = f"rho = {self.rho}, {kind}" if self.rho else "not calibrated"
        return f"T = {self.timesteps}, {calibration}"

    def _layer_table(self) -> str:
        head = ["layer", "kind", "input", "non-zero", "ANN's MACs", "watched"]
        rows = [[*head, f"t = {self.timesteps}, in all", ""]]
        for layer in self.layers:
            share = "-" if layer.input in ("static", "product") else percent(layer.nonzero)
            counts = [layer.macs, layer.watched, layer.operations[-1]]
            names = [layer.site, layer.kind, layer.input, share]
            rows.append([*names, *map(_count, counts), layer.operation])
        watched = sum(layer.watched for layer in self.layers)
        operations = sum(layer.operations[-1] for layer in self.layers)
        sums = [self.ann_macs, watched, operations]
        rows.append(["all layers", "", "", "", *map(_count, sums), ""])
        rows.append(["neurons", "", "", "", "", "", _count(self.neuron_updates[-1]), "updates"])
        return table(rows, left=(0, 1, 2, 7))

    def _answer_table(self) -> str:
        head = ["t", "latency", "ACs", "MACs", "updates", "energy", "currents kept"]
        rows = [[*head, "ANN / SNN", f"{self.bits}-bit ANN / SNN"]]
        columns = zip(
            self.latency,
            self.acs,
            self.graded_macs,
            self.neuron_updates,
            self.snn_joules,
            self.kept_joules,
            self.ann_ratio,
            self.quantised_ratio,
        )
        for t, (latency, acs, graded, updates, joules, kept, *ratios) in enumerate(columns, 1):
            counts = [acs, self.static_macs + graded, updates]
            energies = [_energy(joules), _energy(kept)]
            numbers = [*map(_count, counts), *energies, *(f"{ratio:.2f}" for ratio in ratios)]
            rows.append([f"{t}", f"{latency}", *numbers])
        return table(rows, left=())


def _plain(layer: LayerEnergy) -> dict[str, Any]:
    return {
        **asdict(layer),
        "reads": list(layer.reads),
        "per_step": list(layer.per_step),
        "operation": layer.operation,
        "watched": layer.watched,
        "operations": list(layer.operations),
        "kept_operations": list(layer.kept_operations),
    }


def _ratio(theirs: float, ours: float) -> float:
    return theirs / ours if ours else math.inf if theirs else math.nan


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _energy(joules: float) -> str:
    return f"{joules * 1e6:.4g} µJ"
