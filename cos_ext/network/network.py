"""The spiking network that convert() makes: settings, running it, saving it. Conversion and
evaluation are elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._files import write_tensors
from .._ops import build_info
from ..analysis.statistics import NetworkStatistics, collect
from ..conversion.report import ConversionReport
from ..neuron import IFNode
from . import counts, memory
from .capture import CapturedForward, capture
from .pooling import MaxPoolBefore, PooledBefore

if TYPE_CHECKING:
    from ..analysis.energy import EnergyReport

FORMAT = "cos_ext spiking network, 1"


class TimeBroadcast(nn.Module):
    """Repeats a static tensor [B, ...] over time, [T*B, ...], where it meets a spiking one."""

    def __init__(self, timesteps: int = 1) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.timesteps)  # which keeps channels_last


class SpikingNetwork(nn.Module):
    """A converted network. Input: the ANN's, [B, ...]; output: [T, B, ...], one per time-step.

    `timesteps`, `rho`, `iterations`, `emission` and `calibration` can be changed at any time, for a
    layer of its own by :meth:`set_layer`. `execution` decides how a computer gets at the outputs,
    not what they are: "steps", or "counts" (cos_ext.network.counts). Hidden layers run
    max(timesteps, watch_steps) steps. Everything before the first neurons runs once per image, not
    once per step. In eval mode, and no parameter requires a gradient. `report` lists what the
    conversion did. Neurons write over their input where nothing else reads it, so a hook that keeps
    the output of the layer before them must clone it.
    """

    def __init__(
        self,
        module: nn.Module,
        report: ConversionReport,
        timesteps: int,
        rho: int,
        iterations: int | None,
        options: dict[str, Any],
        emission: str = "calibrated",
        calibration: str = "cos",
    ) -> None:
        super().__init__()
        self.module = module
        self.report = report
        self._layers: dict[str, dict[str, Any]] = {}  # by call site: what set_layer() changed
        # max_pool and fold_batchnorm of convert(), the ANN's call sites, static_calibration: what
        # save() needs
        self.options = options
        self._execution = "steps"
        self._memory_limit: int | str | None = "auto"
        self._needs: dict[
            Any, Any
        ] = {}  # what cos_ext.network.memory has found out, until a setting changes
        # For "counts", made when first needed: the rho of all layers, and functions, which no copy
        # or file takes along.
        self._shared_rho, self._plan = 0, None
        self._configure(timesteps, rho, iterations, emission, {}, calibration)

    def _configure(
        self,
        timesteps: int,
        rho: int,
        iterations: int | None,
        emission: str,
        layers: dict[str, dict[str, Any]],
        calibration: str = "cos",
    ) -> None:
        # First, so that a bad value leaves every node as it was.
        own = {
            "rho": rho,
            "iterations": iterations,
            "emission": emission,
            "calibration": calibration,
        }
        steps = max(
            check_settings(timesteps, **{**own, **layer}) for layer in ({}, *layers.values())
        )
        if self.static_calibration is not None and any(
            layer.get("rho", rho) for layer in ({}, *layers.values())
        ):
            raise ValueError(
                "rho must stay 0 with the potentials of fit_v_init: calibration would aim at other "
                "counts; convert anew"
            )
        if self._execution == "counts":
            self._shared_rho = self._check_counts(own, layers)
        nodes = self.nodes()
        for site, node in nodes.items():
            node.configure(timesteps=steps, **{**own, **layers.get(site, {})})
        for module in self.modules():
            if isinstance(module, TimeBroadcast):
                module.timesteps = steps
            elif isinstance(module, MaxPoolBefore):
                module.timesteps, module.rho = steps, nodes[module.site].watch_steps
        self._timesteps, self._rho, self._iterations, self._emission = (
            timesteps,
            rho,
            iterations,
            emission,
        )
        self._calibration, self._layers, self._steps = calibration, layers, steps
        self._needs = {}

    @property
    def timesteps(self) -> int:
        return self._timesteps

    @property
    def rho(self) -> int:
        return self._rho

    @property
    def iterations(self) -> int | None:
        return self._iterations

    @property
    def emission(self) -> str:
        return self._emission

    @property
    def calibration(self) -> str:
        return self._calibration

    @property
    def watch_steps(self) -> int:
        """The steps that pass before the first output: the largest rho of a layer whose calibration
        watches, else 0.
        """
        return max(node.watch_steps for node in self.nodes().values())

    @property
    def static_calibration(self) -> dict[str, Any] | None:
        """How :func:`cos_ext.fit_v_init` fitted the potentials (settings, samples), which makes rho
        0 for good; None: it did not.
        """
        return self.options.get("static")

    def _change(self, **changes: Any) -> None:
        now = {
            "timesteps": self._timesteps,
            "rho": self._rho,
            "iterations": self._iterations,
            "emission": self._emission,
            "layers": self._layers,
            "calibration": self._calibration,
        }
        self._configure(**{**now, **changes})

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self._change(timesteps=value)

    @rho.setter
    def rho(self, value: int) -> None:
        self._change(rho=value)

    @iterations.setter
    def iterations(self, value: int | None) -> None:
        self._change(iterations=value)

    @emission.setter
    def emission(self, value: str) -> None:
        self._change(emission=value)

    @calibration.setter
    def calibration(self, value: str) -> None:
        self._change(calibration=value)

    def set_layer(self, site: str, **changes: Any) -> None:
        """Give one call site its own rho, iterations, emission or calibration; without any, it
        follows the network again.

        Every layer runs max(timesteps, watch_steps) steps.

        Raises:
            ValueError: there is no such call site, or a setting of another name.
            TypeError, ValueError: a setting does not fit; nothing has changed then.
        """
        if site not in self.nodes():
            raise ValueError(
                f"site must be a call site of the network, got {site!r}; those are "
                f"{list(self.nodes())}"
            )
        unknown = sorted(set(changes) - {"rho", "iterations", "emission", "calibration"})
        if unknown:
            raise ValueError(
                f"a layer has rho, iterations, emission and calibration of its own, got {unknown}"
            )
        layers = {name: layer for name, layer in self._layers.items() if name != site}
        if changes:
            layers[site] = {**self._layers.get(site, {}), **changes}
        self._change(layers=layers)

    @property
    def execution(self) -> str:
        """How outputs are computed: "steps", step by step, or "counts", in one pass over the
        desired counts.

        Counts first is a simulator's shortcut (cos_ext.network.counts): the outputs and spikes are
        those of the step-by-step run, equal in float64 but for sums that lie on a level to the last
        bit, while in float32 a sum within rounding of a level may fall on either side. The latency
        that the network stands for stays rho + t. Forward hooks of neurons are not called then, and
        those of modules between them see means.

        Raises (when it is set, and when a setting is changed that it needs):
            ValueError: there is no such mode; or "counts" does not hold: an emission other than
                "even" and "front", rho = 0, layers with rho of their own, static calibration, a
                model that could not be traced, a maximum over spikes (max_pool="spike") before
                other neurons. Nothing has changed then.
        """
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        if counts.check_execution(value) == "counts":
            _, self._shared_rho = self._counting()
        self._execution, self._needs = value, {}

    @property
    def memory_limit(self) -> int | str | None:
        """Bytes that a forward's activations may take at a time: the batch is run in parts that
        stay below. None: no limit.

        "auto", the default: on a CPU the largest activation of a part is at most 16 MiB, below the
        size from which on malloc hands a tensor's pages back at every call and the next one faults
        them in again, and small enough for caches; elsewhere no limit. "auto" leaves the batch
        whole while a module has forward hooks, which an int does not: they see parts then.

        What counts is what :meth:`activation_bytes` says of a part, and the output of all of them;
        inputs, weights, the workspaces inside convolutions and the gaps that an allocator leaves
        come on top. Every sample is computed by itself, calibration included, so the parts' results
        are those of the whole but for the rounding of convolutions and matrix products, whose
        libraries may sum in another order for another batch: on the shipped network they were equal
        bit for bit (tests/test_memory.py). Not saved by :meth:`save`. The first run for a batch of
        a new shape takes some tenths of a second to plan. Under torch.compile and torch.export
        "auto" is None, and an int breaks the graph.

        Raises (when it is set):
            TypeError, ValueError: it is neither a positive int, nor "auto", nor None.

        Raises (when the network is called):
            ValueError: one sample at a time needs more, which is named.
        """
        return self._memory_limit

    @memory_limit.setter
    def memory_limit(self, value: int | str | None) -> None:
        self._memory_limit, self._needs = memory.check_limit(value), {}

    def activation_bytes(self, *inputs: Tensor) -> int:
        """The most bytes of activations, output included, that are alive at once in a forward of
        the whole batch.

        From a dry run without data, in place and freed tensors counted as they are: `memory_limit`
        plays no part, nor do weights, inputs and what a kernel takes for itself. The inputs may be
        on the meta device, which takes no memory.

        Raises:
            TypeError: an input is no tensor.
            ValueError: there are no inputs, or batches of several sizes.
            RuntimeError: the model's control flow depends on values.
        """
        batch = self._batch(as_inputs(inputs, "inputs"))
        return memory.need(self, inputs, batch).peak

    def _check_counts(self, own: dict[str, Any], layers: dict[str, dict[str, Any]]) -> int:
        """The rho that all layers share under these settings, or ValueError where their counts do
        not decide their spikes.
        """
        settings = {site: {**own, **layers.get(site, {})} for site in self.nodes()}
        return counts.check_settings(
            {site: (s["rho"], s["emission"], s["calibration"]) for site, s in settings.items()},
            static=bool(self.options.get("static")),
        )

    def _counting(self) -> tuple[counts.Plan, int]:
        """The plan by which counts are computed, and the layers' rho; ValueError with the reason
        where there can be none.
        """
        rho = self._check_counts(
            {"rho": self._rho, "emission": self._emission, "calibration": self._calibration},
            self._layers,
        )
        if self._plan is None:
            self._plan = counts.plan(self.module, lambda module: isinstance(module, TimeBroadcast))
        return self._plan, rho

    @contextlib.contextmanager
    def _by_steps(self) -> Iterator[None]:
        """Runs step by step inside, nothing fused into the neurons, whatever the settings: for what
        looks at every step and spike.
        """
        execution, self._execution = self._execution, "steps"
        fused = [module for module in self.modules() if isinstance(module, (IFNode, PooledBefore))]
        try:
            for module in fused:
                module.apart = True
            yield
        finally:
            self._execution = execution
            for module in fused:
                module.apart = False

    @torch.no_grad()
    def counts(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The desired counts C* over rho steps of all neurons, int32 [B, ...], by call site, in one
        pass over means.

        Where `execution` may be "counts" (it need not be), these are the spikes that the neurons
        emit in every rho steps. All of them are kept, 4 bytes a neuron and sample.

        Raises:
            ValueError: `execution` could not be "counts", for the reason given.
        """
        plan, rho = self._counting()
        return plan.counts(self.module, rho, *inputs)

    @torch.no_grad()
    def spike_train(self, site: str, *inputs: Tensor) -> Tensor:
        """The spikes of one call site at steps 1..timesteps, [T, B, ...], 0 or θ in the inputs'
        dtype, from its counts.

        Raises:
            ValueError: there is no such call site, or `execution` could not be "counts", for the
                reason given.
        """
        if site not in self.nodes():
            raise ValueError(
                f"site must be a call site of the network, got {site!r}; those are "
                f"{list(self.nodes())}"
            )
        node, count = self.nodes()[site], self.counts(*inputs)[site]
        floats = (x.dtype for x in inputs if x.is_floating_point())
        dtype = next(floats, node.v_threshold.dtype)
        wide = count.to(F.state_dtype(dtype))
        return counts.train(
            wide,
            node.v_threshold,
            steps=self._timesteps,
            rho=node.rho,
            emission=node.emission,
            dtype=dtype,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_needs": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {
                "_execution": "steps",
                "_shared_rho": 0,
                "_plan": None,
                "_memory_limit": "auto",
                "_needs": {},
                **state,
            }
        )
        if self._execution == "counts":
            self._counting()

    def train(self, mode: bool = True) -> SpikingNetwork:
        """Stays in eval mode, whatever is asked for: dropout and running statistics have no place
        in a converted network.
        """
        return super().train(False)

    def nodes(self) -> dict[str, IFNode]:
        """The neurons by call site, in execution order."""
        root = self.module.model if isinstance(self.module, Walked) else self.module
        return {
            e.site: root.get_submodule(e.site)
            for e in self.report.entries
            if e.status == "converted"
        }

    def forward(self, *inputs: Tensor) -> Tensor:
        """The ANN's inputs, [B, ...] each, to per-step outputs [T, B, ...]; in parts of the batch
        where `memory_limit` asks for it.

        Floating-point inputs of another dtype than the network's (which all its parameters have)
        are converted to it.
        """
        self._batch(inputs)
        if self._memory_limit is None or (
            self._memory_limit == "auto" and torch.compiler.is_compiling()
        ):
            return self._whole(*inputs)
        return self._limited(*inputs)

    @torch.compiler.disable(
        reason="memory_limit splits the batch by its size; compile with memory_limit=None"
    )
    def _limited(self, *inputs: Tensor) -> Tensor:
        count = memory.parts(self, inputs)
        return self._whole(*inputs) if count == 1 else memory.run(self, inputs, count)

    def _whole(self, *inputs: Tensor) -> Tensor:
        """:meth:`forward` of the whole batch at once."""
        inputs = tuple(self._converted(x) for x in inputs)
        batch = self._batch(inputs)
        if self._execution == "counts":
            out = self._plan.outputs(self.module, self._timesteps, self._shared_rho, *inputs)
            return out.unflatten(0, (self._timesteps, batch))
        out = self.module(*inputs)
        return out.unflatten(0, (self._steps, batch))[: self._timesteps]

    @staticmethod
    def _batch(inputs: tuple[Tensor, ...]) -> int:
        batch = inputs[0].shape[0] if inputs else 0
        if any(x.shape[0] != batch for x in inputs):
            raise ValueError(f"inputs must have one batch size, got {[x.shape[0] for x in inputs]}")
        return batch

    def _converted(self, x: Tensor) -> Tensor:
        """A floating-point input in the network's dtype, where all its parameters and potentials
        have one.
        """
        if not x.is_floating_point():
            return x
        first = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        if first == x.dtype:
            return x
        dtypes = {t.dtype for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()}
        return x.to(first) if dtypes == {first} else x

    def _apply(self, fn, recurse: bool = True) -> SpikingNetwork:
        self._needs = {}
        return super()._apply(fn, recurse)

    def capture(self, *example_inputs: Tensor) -> CapturedForward:
        """A CUDA graph of :meth:`forward`, for inputs like these: called as the network is, it
        launches all kernels at once.

        The network must be on the GPU of the inputs. The result gives the outputs of the network's
        present settings and weights; after a change of the settings, or a move, it raises.
        :class:`cos_ext.network.capture.CapturedForward` says the rest.

        Raises:
            RuntimeError: the network or an input is not on a CUDA device; autocast is on with its
                cache.
            TypeError, ValueError: an input is no tensor, there are none, or they have several batch
                sizes.
        """
        self._batch(as_inputs(example_inputs, "example_inputs"))
        return capture(self, example_inputs)

    def rate(self, *inputs: Tensor) -> Tensor:
        """The mean over time of :meth:`forward`, [B, ...]: on the device, of the T steps that were
        asked for, without a copy.
        """
        return self(*inputs).mean(0)

    def statistics(self, batches: Iterable[Any], *, progress: bool = True) -> NetworkStatistics:
        """What the neurons of every layer do: offset spikes, spikes, silent and saturated shares,
        the split of the error.

        Summed by the kernels in the pass that simulates: nothing by neuron is written, and the
        device is waited for once. The sums are integers, so that they do not depend on how the data
        are split, nor on the device.

        Args:
            batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements
                are the network's inputs.
            progress: a progress bar on stderr.

        Raises:
            TypeError: batches yields something else.
            ValueError: batches yields no sample; neurons have hard reset; a layer has rho > 256
                (or, without calibration, T > 256).
        """
        with self._by_steps():
            return collect(self, batches, progress=progress)

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
    ) -> EnergyReport:
        """Synaptic operations, the ANN's multiplications, energies (pJ per operation) and latency,
        per image.

        What is counted, the arguments and the errors:
        :func:`cos_ext.analysis.energy.energy_report`.
        """
        from ..analysis.energy import energy_report  # which needs this module

        with self._by_steps():
            return energy_report(
                self,
                batches,
                ac_energy=ac_energy,
                mac_energy=mac_energy,
                neuron_energy=neuron_energy,
                bits=bits,
                quantised_mac_energy=quantised_mac_energy,
                progress=progress,
            )

    def save(self, path: str | Path) -> None:
        """Write the weights, thresholds and initial potentials as safetensors, with a JSON header
        in its metadata.

        The header has the format, cos_ext's version, timesteps, rho, iterations, emission,
        calibration, execution, layers of their own, the thresholds by call site (numbers, or the
        shape of a tensor), the shapes of fitted biases, static_calibration, and convert()'s
        options. :func:`cos_ext.load_network` reads it beside the ANN's architecture. The file is
        complete or not there.
        """
        thetas = {
            site: node.v_threshold
            for site, node in self.nodes().items()
            if site in self.options["sites"]
        }
        thresholds = {
            site: theta.item() if theta.dim() == 0 else list(theta.shape)
            for site, theta in thetas.items()
        }
        biases = {
            site: list(node.bias.shape)
            for site, node in self.nodes().items()
            if node.bias is not None
        }
        header = {
            "format": FORMAT,
            "cos_ext": build_info()["cos_ext"],
            "timesteps": self._timesteps,
            "rho": self._rho,
            "iterations": self._iterations,
            "emission": self._emission,
            "calibration": self._calibration,
            "execution": self._execution,
            "layers": self._layers,
            "thresholds": thresholds,
            "biases": biases,
            "static": self.static_calibration,
            "max_pool": self.options["max_pool"],
            "fold_batchnorm": self.options["fold_batchnorm"],
            "fuse": self.options["fuse"],
        }
        write_tensors(path, self.state_dict(), header)


class Walked(nn.Module):
    """A model that could not be traced, its activations replaced: time is folded into the batch
    from its inputs on.

    sizes: by its neurons, their first size as a multiple of the batch on the example. Control flow
    that depends on the size of the batch could change it, or call neurons more than once; that is
    noticed at every call.
    """

    def __init__(self, model: nn.Module, sizes: dict[IFNode, Fraction]) -> None:
        super().__init__()
        self.model = model
        self.broadcast = TimeBroadcast()
        self.sizes = {name: sizes[node] for name, node in model.named_modules() if node in sizes}
        self.seen: dict[str, list[int]] = {}
        for name in self.sizes:
            model.get_submodule(name).register_forward_pre_hook(functools.partial(self._note, name))

    def _note(self, name: str, node: IFNode, args: tuple[Tensor, ...]) -> None:
        self.seen.setdefault(name, []).append(args[0].shape[0])

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen = {}
        folded = [self.broadcast(x) for x in inputs]
        out = self.model(*folded)
        batch = folded[0].shape[0]
        for name, size in self.sizes.items():
            if self.seen.get(name) != [size * batch]:
                raise RuntimeError(
                    f"{name} was called with batches of {self.seen.get(name, [])}, expected one of "
                    f"{size * batch}: the "
                    "model's control flow depends on the size of its batch, into which time is "
                    "folded"
                )
        return out


def check_settings(
    timesteps: int,
    rho: int,
    iterations: int | None,
    emission: str = "calibrated",
    calibration: str = "cos",
) -> int:
    """The steps that hidden layers run; TypeError or ValueError where the settings do not fit."""
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"timesteps must be an int, got {type(timesteps).__name__}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be >= 1, got {timesteps}")
    most = max(timesteps, rho) if isinstance(rho, int) else timesteps
    # Knows what they may be.
    node = IFNode(
        timesteps=most, rho=rho, iterations=iterations, emission=emission, calibration=calibration
    )
    return max(timesteps, node.watch_steps)


def as_inputs(
    example: Tensor | tuple[Tensor, ...] | list[Tensor], name: str = "example_input"
) -> tuple[Tensor, ...]:
    """One input or several as a tuple; TypeError for anything but tensors."""
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = [type(x).__name__ for x in inputs if not isinstance(x, torch.Tensor)]
    if wrong or not inputs:
        raise TypeError(
            f"{name} must be a tensor or a tuple of tensors, got "
            f"{', '.join(wrong) or 'an empty tuple'}"
        )
    return inputs
