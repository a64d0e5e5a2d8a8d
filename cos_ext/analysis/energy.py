"""The energy report: synaptic operations of a running network, the multiplications of its ANN, and
what both would cost.

Counting and printing only: nothing here changes a network, and no claim is made about hardware
beyond the arithmetic of :func:`energy_report`.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from tqdm import tqdm

from .. import functional as F
from .._batches import check_batches, device_of, model_inputs, number_of_inputs
from .._tables import percent, table
from ..conversion.graphs import owner_of
from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.reports import report

AC_ENERGY, MAC_ENERGY = (
    0.9,
    4.6,
)  # pJ; float32 at 45 nm: an addition, and a multiplication (3.7) with an addition


@dataclass(frozen=True)
class LayerEnergy:
    """The operations of one call of a layer with weights, per image; part of an
    :class:`EnergyReport`.

    site: the module or call site, as ``network.report`` names it; further calls of it are "...
    (2)". kind: its class or function. input: "static" (no time: computed once), "spikes" (every
    channel, or feature of a linear layer, has one value besides 0) or "graded". macs:
    multiplications of one pass of the ANN. watch: the steps that the neurons after it watch. reads:
    the steps of its input that it reads again for an answer at t = 1..T. per_step: its operations
    at each of the network's S = max(T, rho) steps; empty if static. nonzero: the share of its
    inputs that are not 0, over these S steps.
    """

    site: str
    kind: str
    input: str
    macs: float
    watch: int
    reads: tuple[int, ...]
    per_step: tuple[float, ...]
    nonzero: float

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
        """Operations for an answer at t = 1..T: the steps watched, and those read for the
        answer.
        """
        if self.input == "static":
            return (self.macs,) * len(self.reads)
        return tuple(self.watched + sum(self.per_step[:steps]) for steps in self.reads)

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
    """What :func:`energy_report` counted, per image. Prints as two tables: layers, and answers at t
    = 1..T.

    layers: in order of execution. neurons: how many there are. neuron_updates: their steps for an
    answer at t = 1..T. uncounted: operations on tensors that depend on spikes which are not
    counted, by name, with the elements that they go through per image and step. rho: the largest of
    the network's and its layers'. Energies per operation in pJ; what is computed from them is in
    joules per image.
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
        """rho + t time-steps, t = 1..T."""
        return [self.rho + t for t in range(1, self.timesteps + 1)]

    @property
    def acs(self) -> list[float]:
        """Accumulates for an answer at t = 1..T, the steps watched included."""
        return self._sum("operations", "spikes")

    @property
    def graded_macs(self) -> list[float]:
        """The same of the layers whose input is graded, each a multiplication."""
        return self._sum("operations", "graded")

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
        """For an answer at t = 1..T: static layers once, accumulates, graded layers, neurons."""
        return self._joules("operations")

    @property
    def kept_joules(self) -> list[float]:
        """:attr:`snn_joules` where the currents of the steps watched are kept, so that none is
        accumulated twice.
        """
        return self._joules("kept_operations")

    @property
    def ann_joules(self) -> float:
        return 1e-12 * self.mac_energy * self.ann_macs

    @property
    def quantised_joules(self) -> float:
        """One pass of the ANN with `bits` bits where the SNN has spikes; its static and graded
        layers as in the SNN.
        """
        spiking = sum(layer.macs for layer in self.layers if layer.input == "spikes")
        return 1e-12 * (
            self.quantised_mac_energy * spiking + self.mac_energy * (self.ann_macs - spiking)
        )

    @property
    def ann_ratio(self) -> list[float]:
        """Energy of the ANN over that of the SNN at t = 1..T: how many times less the SNN takes."""
        return [_ratio(self.ann_joules, joules) for joules in self.snn_joules]

    @property
    def quantised_ratio(self) -> list[float]:
        """Energy of the quantised ANN over that of the SNN at t = 1..T."""
        return [_ratio(self.quantised_joules, joules) for joules in self.snn_joules]

    def _sum(self, name: str, kind: str) -> list[float]:
        chosen = [getattr(layer, name) for layer in self.layers if layer.input == kind]
        return [math.fsum(counts[t] for counts in chosen) for t in range(self.timesteps)]

    def _joules(self, name: str) -> list[float]:
        parts = zip(self._sum(name, "spikes"), self._sum(name, "graded"), self.neuron_updates)
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

        def plain(layer: LayerEnergy) -> dict[str, Any]:
            own = {
                "operation": layer.operation,
                "watched": layer.watched,
                "operations": list(layer.operations),
                "kept_operations": list(layer.kept_operations),
            }
            return {
                **asdict(layer),
                "reads": list(layer.reads),
                "per_step": list(layer.per_step),
                **own,
            }

        names = (
            "latency",
            "acs",
            "graded_macs",
            "static_macs",
            "ann_macs",
            "snn_joules",
            "kept_joules",
            "ann_joules",
            "quantised_joules",
            "ann_ratio",
            "quantised_ratio",
        )
        derived = {name: getattr(self, name) for name in names}
        return {
            **asdict(self),
            "neuron_updates": list(self.neuron_updates),
            "layers": [plain(layer) for layer in self.layers],
            **derived,
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per layer and t: counts per image."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    "site",
                    "kind",
                    "input",
                    "ann_macs",
                    "nonzero_share",
                    "watch_steps",
                    "watched",
                    "t",
                    "latency",
                    "operation",
                    "operations",
                    "kept_operations",
                ]
            )
            for layer in self.layers:
                head = [
                    layer.site,
                    layer.kind,
                    layer.input,
                    layer.macs,
                    layer.nonzero,
                    layer.watch,
                    layer.watched,
                ]
                counts = zip(self.latency, layer.operations, layer.kept_operations)
                for t, (latency, operations, kept) in enumerate(counts, 1):
                    writer.writerow([*head, t, latency, layer.operation, operations, kept])

    def __str__(self) -> str:
        last = self.timesteps
        rows = [
            [
                "layer",
                "kind",
                "input",
                "non-zero",
                "ANN's MACs",
                "watched",
                f"t = {last}, in all",
                "",
            ]
        ]
        for layer in self.layers:
            share = "-" if layer.input == "static" else percent(layer.nonzero)
            rows.append(
                [
                    layer.site,
                    layer.kind,
                    layer.input,
                    share,
                    _count(layer.macs),
                    _count(layer.watched),
                    _count(layer.operations[-1]),
                    layer.operation,
                ]
            )
        watched = sum(layer.watched for layer in self.layers)
        rows.append(
            [
                "all layers",
                "",
                "",
                "",
                _count(self.ann_macs),
                _count(watched),
                _count(sum(layer.operations[-1] for layer in self.layers)),
                "",
            ]
        )
        rows.append(["neurons", "", "", "", "", "", _count(self.neuron_updates[-1]), "updates"])
        answers = [
            [
                "t",
                "latency",
                "ACs",
                "MACs",
                "updates",
                "energy",
                "currents kept",
                "ANN / SNN",
                f"{self.bits}-bit ANN / SNN",
            ]
        ]
        kept = self.kept_joules
        for t, latency in enumerate(self.latency):
            macs = self.static_macs + self.graded_macs[t]
            answers.append(
                [
                    f"{t + 1}",
                    f"{latency}",
                    _count(self.acs[t]),
                    _count(macs),
                    _count(self.neuron_updates[t]),
                    _energy(self.snn_joules[t]),
                    _energy(kept[t]),
                    f"{self.ann_ratio[t]:.2f}",
                    f"{self.quantised_ratio[t]:.2f}",
                ]
            )
        kind = "exact" if self.iterations is None else f"iterations = {self.iterations}"
        calibration = (
            f"rho = {self.rho}, {kind if self.emission == 'calibrated' else self.emission}"
        )
        settings = f"T = {self.timesteps}, {calibration if self.rho else 'not calibrated'}"
        elements = ", ".join(
            f"{name} ({_count(count)} elements)" for name, count in self.uncounted.items()
        )
        return "\n".join(
            [
                f"Operations per image, the mean of {self.samples} ({settings})",
                "",
                table(rows, left=(0, 1, 2, 7)),
                "",
                f"An answer at t: {self.ac_energy:g} pJ per AC, {self.mac_energy:g} per MAC, "
                f"{self.neuron_energy:g} per update of a "
                "neuron; arithmetic alone, no memory",
                "",
                table(answers, left=()),
                "",
                f"ANN: {_count(self.ann_macs)} MACs, {_energy(self.ann_joules)}. {self.bits}-bit "
                "ANN: "
                f"{_energy(self.quantised_joules)} at {self.quantised_mac_energy:g} pJ per MAC "
                "where the SNN has spikes.",
                *([f"Not counted, per image and step: {elements}."] if elements else []),
            ]
        )


def _ratio(theirs: float, ours: float) -> float:
    return theirs / ours if ours else math.inf if theirs else math.nan


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _energy(joules: float) -> str:
    return f"{joules * 1e6:.4g} µJ"


@report("energy")
@torch.no_grad()
def energy_report(
    network: SpikingNetwork,
    batches: Iterable[Any],
    *,
    ac_energy: float = AC_ENERGY,
    mac_energy: float = MAC_ENERGY,
    neuron_energy: float | None = None,
    bits: int | None = None,
    quantised_mac_energy: float | None = None,
    progress: bool = True,
) -> EnergyReport:
    """Operations and energy per image of a network as it is configured, beside those of its ANN;
    and latency.

    What is counted:

    Synaptic operations
        A layer with weights (a convolution, transposed or not, Linear, matrix product; module or
        function) that reads spikes does one accumulate (AC) for every input that is not 0 and every
        output that this input reaches: near the border of a padded convolution fewer than
        elsewhere. Weights that happen to be 0 count. A layer that reads values other than 0 and one
        value per channel, such as average-pooled spikes, cannot do without multiplying: its
        operations are counted in the same way, as MACs, and it is marked "graded". This is judged
        by the data.
    Steps
        Calibrated neurons are first watched for their rho steps, on the calibrated spikes of the
        layer before; then they answer. Spikes are taken to be stored, currents not: the layer
        before the neurons accumulates its input over the rho steps, and again over the steps of the
        answer, t of them, or rho if that is more and the neurons feed others that watch. So an
        answer at t costs rho + t steps in a hidden layer, as latency has it, and t in the last one,
        which no neurons watch. With rho = 0 it is t everywhere. Neurons that emit "even" or "front"
        read the rho steps alone. `kept_joules` is for hardware that keeps the currents: no step is
        accumulated twice.
    Static layers
        What comes before the first neurons is computed once, as MACs.
    Neurons
        One update, an addition, per neuron and step, watched or emitted.
    The ANN
        The MACs of the same layers in one pass, over all inputs, zero or not; products with the
        zeros of a convolution's padding are left out, as they are for spikes (zeros that F.pad or
        nn.ZeroPad put there before are inputs), so that the number lies a little below the
        customary one. Activations cost nothing.
    The quantised ANN
        An ANN whose activations have b = ceil(log2(n + 1)) bits, as many values as counts of n
        steps (Yan, Bai, Wong, "Reconsidering the energy efficiency of spiking neural networks",
        arXiv 2409.08290), n = rho, or T without calibration. The MAC of a b-bit activation is taken
        as b conditional additions of a shifted weight, b ACs, at most a MAC. Layers that are static
        or graded in the network cost a MAC in this ANN, too. Its zeros are not skipped.

    Not counted: biases, additions of residuals, poolings, BatchNorm that is not folded (`uncounted`
    has their sizes), what calibration computes from the currents of the steps watched (all its
    iterations), thresholds and resets; and memory, which in hardware can outweigh all of this
    (Dampfhoffer et al., "Are SNNs really more energy-efficient than ANNs?", IEEE TETCI 7(3), 2023).
    The energies are those of float32 arithmetic at 45 nm (Horowitz, "Computing's energy problem
    (and what we can do about it)", ISSCC 2014).

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the network's inputs and whose others (labels) are ignored. How the data are split into
            batches plays no part.
        ac_energy, mac_energy: pJ of an accumulate, and of a multiplication with its accumulate.
        neuron_energy: pJ of one update of a neuron; None: ac_energy. 0 leaves neurons out of the
            energies.
        bits: of the quantised ANN's activations; None: b as above.
        quantised_mac_energy: pJ of its MAC; None: min(bits · ac_energy, mac_energy).
        progress: a progress bar on stderr.

    Raises:
        TypeError: network is no SpikingNetwork, batches no iterable of tensors, or an argument has
            another type.
        ValueError: an energy is negative or not finite, bits < 1, batches yields no sample; or the
            network computes in a way that cannot be counted (recurrent layers, fused attention,
            weights that depend on spikes, time elsewhere than in the first dimension): every such
            call is listed.
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_batches(batches)
    watching = [
        site
        for site, node in network.nodes().items()
        if node.calibration == "srp" and node.watch_steps
    ]
    if watching:
        raise ValueError(
            "network must have another calibration than 'srp', which runs its neurons twice, at "
            f"{watching}"
        )
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int)):
        raise TypeError(f"bits must be an int or None, got {type(bits).__name__}")
    if bits is not None and bits < 1:
        raise ValueError(f"bits must be >= 1, got {bits}")
    ac_energy, mac_energy = _checked("ac_energy", ac_energy), _checked("mac_energy", mac_energy)
    neuron_energy = ac_energy if neuron_energy is None else _checked("neuron_energy", neuron_energy)
    bits = (network.watch_steps or network.timesteps).bit_length() if bits is None else bits
    rule = min(bits * ac_energy, mac_energy)
    quantised = (
        rule
        if quantised_mac_energy is None
        else _checked("quantised_mac_energy", quantised_mac_energy)
    )

    network.eval()
    where = device_of(network)
    wanted, samples, counter = (
        number_of_inputs(getattr(network.module, "graph", None)),
        0,
        _Counter(network),
    )
    for batch in tqdm(batches, desc="energy", disable=not progress, leave=False):
        inputs = [tensor.to(where, non_blocking=True) for tensor in model_inputs(batch, wanted)]
        sizes = [x.shape[0] for x in inputs]
        if len(set(sizes)) > 1:
            raise ValueError(f"inputs must have one batch size, got {sizes}")
        if sizes[0]:
            counter.run(inputs)
            samples += sizes[0]
    if samples == 0:
        raise ValueError("batches must yield at least one sample, it yielded none")
    layers, neurons, updates, uncounted = counter.result(samples)
    rho = network.watch_steps
    return EnergyReport(
        layers,
        neurons,
        updates,
        uncounted,
        samples,
        network.timesteps,
        rho,
        network.iterations,
        network.emission,
        ac_energy,
        mac_energy,
        neuron_energy,
        bits,
        quantised,
    )


def _checked(name: str, value: float) -> float:
    number = F.check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite energy >= 0 in pJ, got {number}")
    return number


class _Origin(NamedTuple):
    """What is known of a tensor of the running network.

    level: 0 is a constant, 1 depends on the network's input, 2 on spikes: time is folded into its
    first dimension, unless `moved`. layers, sites: the calls of layers, and the neurons, that it
    depends on with no neurons between.
    """

    level: int = 0
    moved: bool = False
    layers: frozenset[tuple[str, int]] = frozenset()
    sites: frozenset[str] = frozenset()


class _Layer:
    """Running sums of one call of a layer, on the data's device, never waited for."""

    def __init__(self, kind: str, static: bool) -> None:
        self.kind, self.static = kind, static
        self.macs = 0  # of all samples
        self.inputs = 0  # elements, of all steps
        self.operations: Tensor | int = 0  # [S] int64
        self.nonzero: Tensor | int = 0
        self.low: Tensor | None = None  # per channel, of what is not 0
        self.high: Tensor | None = None
        self.readers: set[str | None] = (
            set()
        )  # the neurons that read what it computes; None is the output

    def see(self, x: Tensor, fan_out: Tensor | int, steps: int) -> None:
        """Take in spikes x [S*B, C, *space] of which each reaches fan_out [*space] outputs."""
        fires = x != 0
        counts = fires.unflatten(0, (steps, x.shape[0] // steps)).sum((1, 2))  # [S, *space]
        self.operations = self.operations + (counts * fan_out).reshape(steps, -1).sum(1)
        self.nonzero = self.nonzero + counts.sum()
        self.inputs += x.numel()
        others = [dim for dim in range(x.dim()) if dim != 1]
        low = torch.where(fires, x, math.inf).amin(others)
        high = torch.where(fires, x, -math.inf).amax(others)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def input(self) -> str:
        if self.static:
            return "static"
        return "graded" if bool((self.low < self.high).any()) else "spikes"


# ATen operations by name: position of the two factors.
_PRODUCTS = {"convolution": (0, 1), "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}
# Multiplications by weights that have no rule here; what they take is not known, so that leaving
# them out would be a lie.
_OPAQUE = (
    "mv",
    "addmv",
    "dot",
    "vdot",
    "addbmm",
    "addr",
    "_trilinear",
    "mkldnn_rnn_layer",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "_cudnn_rnn",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "miopen_rnn",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "_embedding_bag",
    "_cdist_forward",
)
# They move elements, and compute nothing.
_MOVES = (
    "clone",
    "copy_",
    "_to_copy",
    "_unsafe_view",
    "cat",
    "stack",
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "gather",
    "index",
    "index_select",
    "flip",
    "roll",
    "repeat",
)


class _Counter(TorchDispatchMode):
    """Runs a network and counts what its ATen operations do, whichever way they were called."""

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__()
        self.network, self.steps, self.timesteps = network, network._steps, network.timesteps
        self.walked = isinstance(network.module, Walked)
        self.nodes = network.nodes()
        self.layers: dict[tuple[str, int], _Layer] = {}  # by site and number of the call
        self.neurons: dict[str, int] = {}  # of all samples, in order of execution
        self.readers: dict[
            str, set[str | None]
        ] = {}  # of the spikes of a site: other neurons; None is the output
        self.uncounted: Counter[str] = Counter()  # elements, of all samples and steps
        self.refused: dict[str, None] = {}
        self.fan_outs: dict[Any, Tensor] = {}
        self.origins = WeakTensorKeyDictionary()
        self.calls: Counter[str] = Counter()  # of layers, by site, in this pass
        self.here = [("forward", "")]  # site and kind of what is running

    def run(self, inputs: list[Tensor]) -> None:
        """One batch. ValueError if something in it cannot be counted."""
        self.origins, self.calls = WeakTensorKeyDictionary(), Counter()
        # In inference mode operations would reach this mode before they are broken up into those
        # that it knows.
        with torch.inference_mode(False), torch.no_grad():
            inputs = [
                x.clone() for x in inputs
            ]  # an operation in place may be the first to read them
            for x in inputs:
                self.origins[x] = _Origin(1)
            with self:
                output = (
                    self._walk(inputs)
                    if self.walked
                    else _Interpreter(self.network.module, self).run(*inputs)
                )
        if self.refused:
            raise ValueError(
                "network computes in ways that cannot be counted:\n" + "\n".join(self.refused)
            )
        origin = self._of(output)
        for key in origin.layers:
            self.layers[key].readers.add(None)
        for site in origin.sites:
            self.readers[site].add(None)

    def _walk(self, inputs: list[Tensor]) -> Tensor:
        """A module that is no graph, with hooks that say which of its modules is running."""
        handles = []

        def leave(*_: Any) -> None:
            self.here.pop()

        try:
            for name, module in self.network.module.model.named_modules():
                place = (name or "forward", type(module).__name__)
                handles.append(
                    module.register_forward_pre_hook(
                        lambda *_, place=place: self.here.append(place)
                    )
                )
                handles.append(module.register_forward_hook(leave))
            return self.network.module(*inputs)
        finally:
            del self.here[1:]
            for handle in handles:
                handle.remove()

    def _of(self, tensor: Any) -> _Origin:
        return self.origins.get(tensor, _Origin()) if isinstance(tensor, Tensor) else _Origin()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        sources = [self._of(leaf) for leaf in tree_leaves((args, kwargs))]
        level = max((source.level for source in sources), default=0)
        if func.namespace == "cos_ext":
            return self._neurons(func, name, args, kwargs)
        out = func(*args, **kwargs)
        if level == 0:
            return out
        layers = frozenset().union(*(source.layers for source in sources))
        sites = frozenset().union(*(source.sites for source in sources))
        moved = any(source.moved for source in sources) or (
            level == 2 and _moves_time(name, args, kwargs)
        )
        if name in _PRODUCTS:
            layers = layers | self._product(name, args, out)
        elif name in _OPAQUE or name.startswith("_scaled_dot_product"):
            self._refuse(name, "has no rule")
        elif level == 2 and not func.is_view and name not in _MOVES:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if self._of(leaf).level == 2]
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.uncounted[name.strip("_")] += max(tensor.numel() for tensor in (*read, *made))
        origin = _Origin(level, moved, layers, sites)
        for leaf in tree_leaves(out):
            self._set(leaf, origin)
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._set(value, origin)
                self._set(
                    getattr(value, "_base", None), origin
                )  # whatever else looks at that memory
        return out

    def _set(self, tensor: Any, origin: _Origin) -> None:
        if isinstance(tensor, Tensor):
            self.origins[tensor] = origin

    def _refuse(self, name: str, reason: str) -> None:
        site, kind = self.here[-1]
        self.refused[f"  {site} ({kind or 'forward'}, {name}): {reason}"] = None

    def _neurons(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The operators of neurons: x_seq [S, *neurons] first; their spikes are written over it, or
        the first result.
        """
        if name.rstrip("_") not in ("if_forward", "cos_forward"):
            raise ValueError(
                f"network must emit spikes step by step to be counted; {self.here[-1][0]} calls "
                f"{name}"
            )
        site, x_seq = self.here[-1][0], args[0]
        origin = self._of(x_seq)
        for key in origin.layers:
            self.layers[key].readers.add(site)
        for source in origin.sites:
            self.readers[source].add(site)
        self.neurons[site] = self.neurons.get(site, 0) + x_seq.numel() // x_seq.shape[0]
        self.readers.setdefault(site, set())
        out = func(*args, **kwargs)
        spikes = _Origin(2, sites=frozenset([site]))
        for leaf in (x_seq, *tree_leaves(out)) if name.endswith("_") else tree_leaves(out):
            self._set(leaf, spikes)
        return out

    def _product(self, name: str, args: tuple, out: Tensor) -> frozenset[tuple[str, int]]:
        """Count one multiplication by weights; its key, or none where both factors are
        constants.
        """
        x, weight = (args[position] for position in _PRODUCTS[name])
        level = max(self._of(x).level, self._of(weight).level)
        if level == 0:
            return frozenset()
        site, kind = self.here[-1]
        key = (site, self.calls[site])
        self.calls[site] += 1
        if level == 2:
            reason = self._why_not(name, x, weight)
            if reason:
                self._refuse(name, reason)
                return frozenset()
        if key not in self.layers:
            self.layers[key] = _Layer(kind or name, level == 1)
        layer = self.layers[key]
        if name == "convolution":
            fan_out, total = self._fan_out(x, args, out)
            macs = x.shape[0] * x.shape[1] * total
        else:
            fan_out = weight.shape[-1]
            macs = x.numel() * fan_out
        # Of a static layer, too, where a model that is no graph runs it at every step.
        layer.macs += macs // (self.steps if level == 2 or self.walked else 1)
        if level == 2:
            layer.see(x, fan_out, self.steps)
        return frozenset([key])

    def _why_not(self, name: str, x: Tensor, weight: Tensor) -> str:
        if self._of(weight).level == 2:
            return "its weights, or its second factor, depend on spikes"
        if name in ("bmm", "baddbmm"):
            return (
                "a product of batches of matrices has no rule where time is folded into the batch"
            )
        if self._of(x).moved or x.shape[0] % self.steps:
            return "the first dimension of its input is not time, with the batch"
        return ""

    def _fan_out(self, x: Tensor, args: tuple, out: Tensor) -> tuple[Tensor, int]:
        """Outputs that an input at each position [*space] reaches, and their sum."""
        weight, (stride, padding, dilation, transposed, _, groups) = args[1], args[3:9]
        key = (
            x.shape[2:],
            out.shape[2:],
            weight.shape,
            *map(tuple, (stride, padding, dilation)),
            transposed,
            groups,
            x.device,
        )
        if key not in self.fan_outs:
            space = x.dim() - 2
            stride, padding, dilation = (
                (*values, *values[-1:] * (space - len(values)))
                for values in (stride, padding, dilation)
            )
            total = torch.tensor(weight.shape[1] if transposed else weight.shape[0] // groups)
            for d in range(space):
                i, k = (
                    torch.arange(x.shape[2 + d])[:, None],
                    torch.arange(weight.shape[2 + d]) * dilation[d],
                )
                if transposed:
                    o = i * stride[d] - padding[d] + k
                    reached = (o >= 0) & (o < out.shape[2 + d])
                else:
                    o = i + padding[d] - k  # times the stride
                    reached = (o % stride[d] == 0) & (o >= 0) & (o < out.shape[2 + d] * stride[d])
                total = total.unsqueeze(-1) * reached.sum(1)
            self.fan_outs[key] = (total.to(x.device), int(total.sum()))
        return self.fan_outs[key]

    def result(
        self, samples: int
    ) -> tuple[tuple[LayerEnergy, ...], float, tuple[float, ...], dict[str, float]]:
        """The layers, the neurons, their updates for an answer at t = 1..T, and what was not
        counted, per image.
        """
        emitted: dict[str | None, list[int]] = {None: list(range(1, self.timesteps + 1))}

        def needed(readers: Iterable[str | None], watched: bool) -> list[int]:
            """The steps, for an answer at t = 1..T, that these need of what they read: for the
            answer, and to watch.
            """
            steps = [0] * self.timesteps
            for reader in readers:
                node = self.nodes.get(reader)
                rereads = (
                    node is None
                    or not node.watch_steps
                    or (node.emission == "calibrated" and node.calibration != "parallel")
                )
                least = node.watch_steps if node is not None and watched else 0
                steps = [
                    max(most, least, own if rereads else 0)
                    for most, own in zip(steps, emitted[reader])
                ]
            return steps

        for site in reversed(self.neurons):
            emitted[site] = needed(self.readers[site], watched=True)
        found = []
        for (site, number), layer in self.layers.items():
            watch = (
                0
                if layer.static
                else max(
                    (self.nodes[r].watch_steps for r in layer.readers if r is not None), default=0
                )
            )
            operations = (
                ()
                if layer.static
                else tuple(count / samples for count in layer.operations.tolist())
            )
            share = 1.0 if layer.static else int(layer.nonzero) / layer.inputs
            found.append(
                LayerEnergy(
                    f"{site} ({number + 1})" if number else site,
                    layer.kind,
                    layer.input(),
                    layer.macs / samples,
                    watch,
                    tuple(needed(layer.readers, watched=False)),
                    operations,
                    share,
                )
            )
        neurons = sum(self.neurons.values()) / samples
        updates = [
            sum(
                count * (self.nodes[site].watch_steps + emitted[site][t])
                for site, count in self.neurons.items()
            )
            / samples
            for t in range(self.timesteps)
        ]
        uncounted = {name: count / samples / self.steps for name, count in self.uncounted.items()}
        return tuple(found), neurons, tuple(updates), uncounted


def _moves_time(name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operation on a tensor with time in its first dimension leaves the steps elsewhere,
    or some of them out.
    """
    x = args[0]
    if not isinstance(x, Tensor):
        return False
    if name == "permute":
        return args[1][0] % x.dim() != 0
    if name == "transpose":
        return 0 in (args[1] % x.dim(), args[2] % x.dim()) and args[1] != args[2]
    if name == "slice":
        dim, start, end, step = (
            args[i] if len(args) > i else default
            for i, default in ((1, 0), (2, None), (3, None), (4, 1))
        )
        whole = not start and (end is None or end >= x.shape[0]) and step == 1
        return dim % x.dim() == 0 and not whole
    if name == "select":
        return args[1] % x.dim() == 0
    if name in ("unbind", "split", "split_with_sizes"):
        position = 1 if name == "unbind" else 2
        dim = args[position] if len(args) > position else kwargs.get("dim", 0)
        return dim % x.dim() == 0
    if name in ("flip", "roll"):
        dims = args[1 if name == "flip" else 2] if len(args) > 1 else []
        return any(dim % x.dim() == 0 for dim in dims) or not dims
    if name == "index":
        return args[1][0] is not None
    return name == "t"


class _Interpreter(fx.Interpreter):
    """Runs a traced network and says which of its nodes is running."""

    def __init__(self, module: fx.GraphModule, counter: _Counter) -> None:
        super().__init__(module)
        self.counter = counter

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            place = (node.target, type(self.fetch_attr(node.target)).__name__)
        else:
            owner = owner_of(node)
            kind = (
                node.target
                if isinstance(node.target, str)
                else getattr(node.target, "__name__", "")
            )
            place = (f"{owner + ': ' if owner else ''}{node.name}", kind)
        self.counter.here[-1] = place
        return super().run_node(node)
