"""What the offset-spike report found, as numbers: shares, totals, tables, files and the figure.

Nothing is measured here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .._files import write_json
from .._tables import percent, table
from . import plots
from .files import write_csv

BEYOND = 4  # this and all beyond it share a column
OFFSETS = tuple(range(-BEYOND, BEYOND + 1))  # of a histogram; its ends hold what lies beyond them
SHARES = ("0", "±1", "±2", "±3", "beyond")


@dataclass(frozen=True)
class CountError:
    """Spike counts of a layer against desired ones, over all its neurons and all samples.

    Attributes:
        mean_error: the mean of abs(count/rho - desired rate), in units of θ.
        equal_share: the fraction of the neurons whose count is the desired one.
    """

    mean_error: float
    equal_share: float


@dataclass(frozen=True)
class LayerOffsets:
    """One layer (call site) of an :class:`cos_ext.OffsetSpikeReport`.

    Attributes:
        site: as in ``network.nodes()``.
        neurons: how many were looked at, one per neuron and sample.
        histograms: by stage, how many of them have ψ = -4 and less, -3, ..., 3, 4 and more
            (``OFFSETS``).
        isolated: see :func:`cos_ext.offset_spike_report`. None where no site of the ANN is known to
            correspond.
        accumulated: likewise.
        note: why there is no comparison, where there is none.
    """

    site: str
    neurons: int
    histograms: dict[str, tuple[int, ...]]
    isolated: CountError | None
    accumulated: CountError | None
    note: str = ""

    def shares(self, stage: str) -> tuple[float, ...]:
        """The fractions of the neurons with ψ = 0, ±1, ±2, ±3 and abs(ψ) >= 4, at a stage such as
        "before".
        """
        counts = self.histograms[stage]
        folded = [counts[BEYOND]] + [
            counts[BEYOND - size] + counts[BEYOND + size] for size in range(1, BEYOND + 1)
        ]
        return tuple(count / max(self.neurons, 1) for count in folded)


@dataclass(frozen=True)
class OffsetSpikeReport:
    """What :func:`cos_ext.offset_spike_report` measured.

    Prints as two tables: offset spikes, and counts against the ANN's.

    Attributes:
        layers: in execution order.
        stages: "before", "1 iteration", ..., "exact": the keys of the layers' histograms.
        samples: how many were run.
        rho: the steps over which counts were taken.
        network_timesteps: the network's own settings, like the following.
        network_rho: 0 for a network that watches nothing.
        network_iterations: None means exact.
        network_emission: "calibrated", or another order of emission.
        network_calibration: "cos", or a rival's.
    """

    layers: tuple[LayerOffsets, ...]
    stages: tuple[str, ...]
    samples: int
    rho: int
    network_timesteps: int
    network_rho: int
    network_iterations: int | None
    network_emission: str = "calibrated"
    network_calibration: str = "cos"

    @property
    def total(self) -> LayerOffsets:
        """All layers together, every neuron with the same weight. The comparisons are over the
        layers that have one.
        """
        histograms = {
            stage: tuple(map(sum, zip(*(layer.histograms[stage] for layer in self.layers))))
            for stage in self.stages
        }
        neurons = sum(layer.neurons for layer in self.layers)
        return LayerOffsets(
            "all layers", neurons, histograms, self._mean("isolated"), self._mean("accumulated")
        )

    def _mean(self, name: str) -> CountError | None:
        every = [(layer.neurons, getattr(layer, name)) for layer in self.layers]
        found = [(neurons, error) for neurons, error in every if error is not None]
        weight = sum(neurons for neurons, _ in found)
        if not weight:
            return None
        return CountError(
            sum(neurons * error.mean_error for neurons, error in found) / weight,
            sum(neurons * error.equal_share for neurons, error in found) / weight,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report and what follows from it (shares, the total) as numbers, strings, lists and
        dicts.
        """

        def plain(layer: LayerOffsets) -> dict[str, Any]:
            histograms = {stage: list(counts) for stage, counts in layer.histograms.items()}
            shares = {stage: list(layer.shares(stage)) for stage in self.stages}
            return {**asdict(layer), "histograms": histograms, "shares": shares}

        return {
            "samples": self.samples,
            "rho": self.rho,
            "network_timesteps": self.network_timesteps,
            "network_rho": self.network_rho,
            "network_iterations": self.network_iterations,
            "network_emission": self.network_emission,
            "network_calibration": self.network_calibration,
            "stages": list(self.stages),
            "offsets": list(OFFSETS),
            "share_of": list(SHARES),
            "layers": [plain(layer) for layer in self.layers],
            "total": plain(self.total),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        write_json(path, self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per layer and stage: histogram, shares, and the layer's comparisons, which
        are the same at every stage.
        """
        histogram = [f"psi_{psi:+d}" if psi else "psi_0" for psi in OFFSETS]
        histogram[0], histogram[-1] = f"psi_{-BEYOND}_or_less", f"psi_+{BEYOND}_or_more"
        shares = ["share_0", *(f"share_{size}" for size in range(1, BEYOND)), "share_beyond"]
        compared = [
            f"{name}_{part}"
            for name in ("isolated", "accumulated")
            for part in ("mean_error", "equal_share")
        ]
        head = ["site", "stage", "neurons", *histogram, *shares, *compared, "note"]
        write_csv(path, head, self._rows())

    def _rows(self) -> Iterator[list[Any]]:
        for layer in self.layers:
            errors: list[Any] = []
            for error in (layer.isolated, layer.accumulated):
                errors += ["", ""] if error is None else [error.mean_error, error.equal_share]
            for stage in self.stages:
                numbers = [*layer.histograms[stage], *layer.shares(stage), *errors]
                yield [layer.site, stage, layer.neurons, *numbers, layer.note]

    def __str__(self) -> str:
        notes = [f"{layer.site}: {layer.note}" for layer in self.layers if layer.note]
        return "\n".join(
            [
                f"Offset spikes ψ (desired minus actual count) over {self.rho} steps, "
                f"{self.samples} samples; each layer's",
                f"input is that of the running network (T = {self.network_timesteps}, "
                f"{self._settings()}), each row another",
                "calibration of the layer itself.",
                "",
                self._offset_table(),
                "",
                f"Spike counts over {self.rho} steps against the ANN's. Isolated: the layer fed "
                "the ANN's own currents;",
                "accumulated: the running network.",
                "",
                self._count_table(),
                *(["", *notes] if notes else []),
            ]
        )

    def _settings(self) -> str:
        """How the network is calibrated, in words."""
        kind = self.network_emission
        if kind == "calibrated":
            k = self.network_iterations
            kind = "exact" if k is None else iterations_in_words(k)
        if self.network_calibration != "cos":
            kind = f'calibration "{self.network_calibration}"'
        if self.network_calibration == "light":
            return kind
        return f"rho = {self.network_rho}, {kind}" if self.network_rho else "not calibrated"

    def _offset_table(self) -> str:
        shares = [f"ψ = {name}" if name == "0" else name for name in SHARES]
        rows = [["layer", "neurons", "calibration", *shares]]
        for layer in (*self.layers, self.total):
            for index, stage in enumerate(self.stages):
                head = [layer.site, f"{layer.neurons}"] if index == 0 else ["", ""]
                rows.append([*head, stage, *(percent(share) for share in layer.shares(stage))])
        return table(rows, left=(0, 2))

    def _count_table(self) -> str:
        rows = [["layer", "isolated: equal", "mean error", "accumulated: equal", "mean error"]]
        for layer in (*self.layers, self.total):
            cells: list[str] = []
            for error in (layer.isolated, layer.accumulated):
                if error is None:
                    cells += ["-", "-"]
                else:
                    cells += [percent(error.equal_share), f"{error.mean_error:.5f} θ"]
            rows.append([layer.site, *cells])
        return table(rows, left=(0,))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the shares of ψ = ±1, ±2, ±3 and beyond: a panel per stage, a stacked bar per layer.

        Args:
            path: where to save the figure as well; its suffix is the format. None: it is only
                returned.

        Returns:
            The matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
        """
        total, panels = self.total, {}
        for stage in self.stages:
            wrong = total.neurons - total.histograms[stage][BEYOND]
            share = percent(wrong / max(total.neurons, 1))
            title = f"{stage}: ψ ≠ 0 in {wrong} of {total.neurons} neurons ({share})"
            panels[title] = [layer.shares(stage)[1:] for layer in self.layers]
        return plots.stacked_shares(
            panels,
            [layer.site for layer in self.layers],
            [*(f"ψ = {size}" for size in SHARES[1:BEYOND]), "beyond"],
            title=f"Offset spikes over rho = {self.rho} steps, {self.samples} samples",
            of="neurons",
            path=path,
        )


def iterations_in_words(k: int) -> str:
    return f"{k} iteration{'s' if k != 1 else ''}"
