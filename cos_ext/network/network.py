"""The spiking network that convert() makes: running it by steps or by counts, in parts, captured.
Its settings are in settings.py, its file in storage.py; conversion and evaluation are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._batches import Inputs, device_of
from .._neuron.runs import Run, active, portion, running, steps_now
from . import counts, layout, memory, one_pass, worlds
from .capture import CapturedForward, capture
from .checkpointing import Segments
from .inputs import as_inputs, batch_size, check_shapes, folded, in_dtype_of
from .outputs import Flat
from .sequences import Sequenced
from .settings import Report
from .storage import save


class SpikingNetwork(Sequenced):
    """A converted network. Input: the ANN's, [B, ...]; output: the ANN's, every tensor in it
    [T, B, ...], one per time-step.

    `timesteps`, `rho`, `iterations`, `emission` and `calibration` can be changed at any time, for a
    layer of its own by :meth:`set_layer`. `execution` decides how a computer gets at the outputs,
    not what they are: "steps", or "counts" (cos_ext.network.counts). Hidden layers run
    max(timesteps, watch_steps) steps. Everything before the first neurons runs once per image, not
    once per step. In eval mode, and no parameter requires a gradient, unless it is
    :attr:`trainable`. `report` lists what the conversion did. Neurons write over their input where
    nothing else reads it. With forward hooks on any module, they leave it; neurons with hooks run
    apart from what is fused into them, so that the hooks see spikes. :meth:`record` needs no hooks.
    """

    def __init__(
        self,
        module: nn.Module,
        report: Report,
        timesteps: int,
        rho: int,
        iterations: int | None,
        options: dict[str, Any],
        emission: str = "calibrated",
        calibration: str = "cos",
    ) -> None:
        super().__init__(module, report, options)
        self._execution = "steps"
        self._memory_limit: int | str | None = "auto"
        self._checkpointing = False
        self._segments: Segments | None = None  # made when first needed; no copy has it
        # For "counts", made when first needed: the rho of all layers, and functions, which no copy
        # or file takes along.
        self._shared_rho = 0
        self._plan: worlds.Plan | None = None
        self._readers: one_pass.Readers | None = None
        self._configure(timesteps, rho, iterations, emission, {}, calibration)

    @property
    def execution(self) -> str:
        """How outputs are computed: "steps", step by step, or "counts", in one pass over the
        desired counts.

        Counts first is a simulator's shortcut (cos_ext.network.counts). The outputs and spikes are
        those of the step-by-step run. In float64 they are equal, but for sums that lie on a level
        to the last bit. In float32 a sum within rounding of a level may fall on either side. The
        latency that the network stands for stays rho + t. A network with forward hooks runs by
        steps in either mode.

        Raises:
            ValueError: when it is set, or a setting is changed that it needs: there is no such
                mode, or "counts" does not hold. It does not for an emission other than "even" and
                "front", rho = 0, layers with rho of their own, static calibration, a model that
                could not be traced, or a maximum over spikes (max_pool="spike") before other
                neurons. Nothing has changed then.
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

        "auto", the default: on a CPU the largest activation of a part is at most 16 MiB. That is
        below the size from which on malloc hands a tensor's pages back at every call, so that the
        next one faults them in again, and it is small enough for caches. Elsewhere there is no
        limit. "auto" leaves the batch whole while a module has forward hooks. An int does not, and
        they see parts then.

        What counts is what :meth:`activation_bytes` says of a part, and the output of all of them.
        Inputs, weights, the workspaces inside convolutions and the gaps that an allocator leaves
        come on top. Every sample is computed by itself, calibration included. So the parts' results
        are those of the whole, but for the rounding of convolutions and matrix products, whose
        libraries may sum in another order for another batch. On the shipped network they were equal
        bit for bit (tests/network/test_memory.py). It is not saved by :meth:`save`. The first run
        for a batch of a new shape takes some tenths of a second to plan. Under torch.compile and
        torch.export "auto" is None, and an int breaks the graph. While a trainable network learns,
        which keeps all activations, there is no limit.

        Raises:
            TypeError, ValueError: when it is set: it is no positive int, nor "auto", nor None.
            ValueError: when the network is called: one sample at a time needs more, which is named;
                or the model mixes samples before its first neurons. "auto" leaves the batch whole
                then.
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
        inputs = self.inputs.bound(inputs, {})
        batch = batch_size(as_inputs(inputs, "inputs"))
        return memory.need(self, inputs, batch).peak

    def _accept(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        if self._execution == "counts":
            self._shared_rho = self._check_counts(settings)

    def _check_counts(self, settings: Mapping[str, Mapping[str, Any]]) -> int:
        """The rho that all layers share under these settings, or ValueError where their counts do
        not decide their spikes.
        """
        return counts.check_settings(
            {
                site: (s["rho"], s["emission"], s["calibration"], s["neuron"])
                for site, s in settings.items()
            },
            static=bool(self.options.get("static")),
        )

    def _counting(self) -> tuple[worlds.Plan, int]:
        """The plan by which counts are computed, and the layers' rho; ValueError with the reason
        where there can be none.
        """
        rho = self._check_counts({site: node._settings for site, node in self.nodes().items()})
        if self._plan is None:
            self._plan = worlds.plan(self.module)
        return self._plan, rho

    def _counts_first(self) -> bool:
        """Whether a run goes by counts now: it is set, and nobody looks at steps."""
        watched = any(run.apart or run.recorder is not None for run in active())
        return self._execution == "counts" and not watched and not memory.hooked(self)

    @torch.no_grad()
    def counts(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The desired counts C* over rho steps of all neurons, int32 [B, ...], by call site, in one
        pass over means. The network is put in eval mode.

        Where `execution` may be "counts" (it need not be), these are the spikes that the neurons
        emit in every rho steps. All of them are kept, 4 bytes a neuron and sample.

        Raises:
            ValueError: `execution` could not be "counts", for the reason given.
        """
        plan, rho = self._counting()
        self.eval()
        return plan.counts(self.module, rho, *self.inputs.bound(inputs, {}))

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
        forgotten: dict[str, Any] = {
            "_plan": None,
            "_readers": None,
            "_segments": None,
            "_needs": {},
        }
        return {**self.__dict__, **forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {
                "_execution": "steps",
                "_convolution": "auto",
                "_own_convolutions": {},
                "_shared_rho": 0,
                "_plan": None,
                "_readers": None,
                "_memory_limit": "auto",
                "_checkpointing": False,
                "_segments": None,
                "_needs": {},
                "_neuron": None,
                "_given": {},
                **state,
            }
        )
        if self._execution == "counts":
            self._counting()

    @property
    def trainable(self) -> bool:
        """Whether convert(trainable=True) made it: parameters, θ and v(0) have gradients."""
        return bool(self.options.get("trainable"))

    @property
    def checkpointing(self) -> bool:
        """Whether a forward that needs a gradient keeps, of each layer, the spikes alone that go
        into it: currents are computed again in the backward pass. For long T. The gradients are
        the same. Not saved by :meth:`save`.

        Raises:
            ValueError: when it is set: the model could not be traced; or BatchNorm trains, whose
                statistics would be updated twice.
        """
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        trains = self.trainable and self.options["fold_batchnorm"] is False
        if value and trains and any(map(_is_batch_norm, self.modules())):
            raise ValueError(
                "checkpointing needs BatchNorm that does not train, since every layer runs twice: "
                'convert with fold_batchnorm=True or "frozen"'
            )
        self._segments = Segments(self.module) if value else None
        self._checkpointing = bool(value)

    def train(self, mode: bool = True) -> SpikingNetwork:
        """Train mode where the network is :attr:`trainable`; others stay in eval mode, whatever is
        asked for. BatchNorm trains where convert(fold_batchnorm=False) left it to, and else stays
        in eval mode.
        """
        super().train(mode and self.trainable)
        if self.options["fold_batchnorm"] is not False:
            for module in filter(_is_batch_norm, self.modules()):
                module.eval()
        return self

    @property
    def inputs(self) -> Inputs:
        """The names of the inputs, and the arguments that conversion fixed at their defaults."""
        return self.options["inputs"]

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The ANN's inputs, [B, ...] each, by position or by name, to per-step outputs
        [T, B, ...]; in parts of the batch where `memory_limit` asks for it.

        They stand in the ANN's own structure: :doc:`/guides/outputs`. Floating-point inputs of
        another dtype than the network's (which all its parameters have) are converted to it.

        Raises:
            TypeError: an input is no tensor, is missing, or was fixed by the conversion.
            ValueError: an input lacks the batch, or the inputs' batches differ in size.
        """
        inputs = self.inputs.bound(inputs, named)
        batch_size(inputs)
        check_shapes(inputs, self.options.get("ranks", ()), self.options.get("shapes", ()))
        return self._outputs(*inputs)

    def _outputs(self, *inputs: Tensor) -> Any:
        """Of inputs that fit, in parts of the batch where there is a limit."""
        learning = self.trainable and (self.training or torch.is_grad_enabled())
        auto = self._memory_limit == "auto"
        whole = self._memory_limit is None or (auto and torch.compiler.is_compiling())
        run = self._whole if whole or learning else self._limited
        return self.outputs.full(run(*inputs))

    @torch.compiler.disable(
        reason="memory_limit splits the batch by its size; compile with memory_limit=None"
    )
    def _limited(self, *inputs: Tensor) -> Flat:
        count = memory.parts(self, inputs)
        return self._whole(*inputs) if count == 1 else memory.run(self, inputs, count)

    def _whole(self, *inputs: Tensor) -> Flat:
        """The leaves of the whole batch at once."""
        inputs = tuple(in_dtype_of(self, x) for x in inputs)
        batch, inputs = batch_size(inputs), folded(inputs)
        if self._counts_first():
            assert self._plan is not None  # made when the mode was set
            steps = self._timesteps
            flat = self._plan.outputs(self.module, steps, self._shared_rho, *inputs)
        else:
            module: Callable[..., Flat] = self.module
            if self._checkpointing and torch.is_grad_enabled():
                module = self._segments = self._segments or Segments(self.module)
            with running(Run() if torch.compiler.is_compiling() else self._eager()):
                flat = module(*inputs)
            steps = steps_now(self._steps)
        flat = self.outputs.each(lambda x: layout.as_ann(self, x, inputs), flat)
        return self.outputs.by_step(flat, batch, steps, steps_now(self._timesteps))

    def _eager(self) -> Run:
        self._readers = one_pass.readers(self.module, self._readers)
        keeps = memory.hooked(self)
        if keeps or portion() is not None:
            return Run(keeps=keeps)
        return Run(waiting=one_pass.waiting(self.module, self._readers))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpikingNetwork:
        self._needs, self._segments, before = {}, None, device_of(self)
        super()._apply(fn, recurse)
        if device_of(self) != before:
            layout.lay_out(self)
        return self

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
        example_inputs = self.inputs.bound(example_inputs, {})
        batch_size(as_inputs(example_inputs, "example_inputs"))
        return capture(self, example_inputs)

    def rate(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The means over time of :meth:`forward`, [B, ...]: on the device, of the T steps that were
        asked for, without a copy. With convert(readout="mean"), what the model applies to its
        outputs last is applied to them.
        """
        means = self.outputs.means(self.outputs.flat(self(*inputs, **named)))
        return self.outputs.full(self.read_out(means))

    def save(self, path: str | Path) -> None:
        """Write the weights, thresholds and initial potentials as safetensors, with a JSON header
        in its metadata.

        The header has the format, cos_ext's version, timesteps, rho, iterations, emission,
        calibration, execution, trainable, layers of their own, the thresholds by call site
        (numbers, or the shape of a tensor), the shapes of fitted biases, static_calibration, and
        convert()'s options. :func:`cos_ext.load_network` reads it beside the ANN's architecture.
        The file is complete or not there.

        Raises:
            ValueError: neurons have hard reset, which is for :func:`cos_ext.to_nir`.
            OSError: it cannot be written.
        """
        save(self, path)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
