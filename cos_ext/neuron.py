"""IFNode: integrate-and-fire neurons as a module that stands where an activation was.

What a node keeps, and how it sees its input, is here. Settings and the choice of an operator are in
_neuron/, the mathematics in functional.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as TF

from . import functional as F
from ._functional.checks import UNFUSED, check_not_nan
from ._functional.currents import composed
from ._neuron.general import Fused, keep_tensors, neuron_of, tensors_of
from ._neuron.kept import Kept, parameters_for
from ._neuron.layer import sizes_of, spikes_or_currents
from ._neuron.parameters import (
    LEARNED,
    check_set,
    light_bias,
    load_into,
    operands,
    own,
    parameter,
    start_of,
)
from ._neuron.parameters import learn as make_parameters
from ._neuron.runs import NOBODY, Watch, note_call, tell, watch
from ._neuron.settings import LATER, Settings, check_settings, shown, warn_left, watch_steps
from ._neuron.simulation import now, over_time, simulate, simulate_on, single_step, window_of
from .general import TENSORS, Neuron
from .surrogate import ATan, check_surrogate


def _setting(name: str) -> property:
    """One of configure()'s settings as an attribute that is validated when it is set."""
    return property(
        lambda node: node._settings[name], lambda node, value: node.configure(**{name: value})
    )


class IFNode(nn.Module):
    """Integrate-and-fire neurons with soft or hard reset, calibrated where rho > 0.

    Args:
        v_threshold: θ > 0. A float (kept in torch's default dtype), or a tensor that broadcasts to
            the neurons (per channel: ``[C, 1, 1]``).
        v_init: v(0), likewise; None is θ/2 as it is now: a θ that learns does not move it.
        v_reset: None for soft reset, else the potential after a spike (hard reset).
        timesteps: None: the input is ``[T, *neurons]``. An int T: time is folded into the batch,
            time-major, ``[T*B, ...]``, so that convolutions, BatchNorm, pooling and Flatten work
            unmodified between nodes.
        time: where T steps of an input are, given timesteps=T: "batch" as above, or "first": the
            input is ``[T, *neurons]``, and one of another length is refused.
        rho: steps to watch for calibration (:func:`cos_ext.functional.cos_forward`); 0 is none.
        iterations: of the calibration; None is until exact. For "cos" only.
        emission: the order in time of a calibrated neuron's spikes, as for
            :func:`cos_ext.functional.neuron_forward`. For "cos" only.
        calibration: one of the five below. With "light" and "none" rho plays no part.
        step_mode: "m": each call is a whole simulation from v_init. "s": each call is one step,
            input ``[*neurons]``, and the potential is kept until :meth:`reset`.
        inplace: write the spikes over the input, unless a gradient needs it.
        static_input: the input is ``[B, ...]`` and the same at every step. It is read once, and the
            output is ``[T*B, ...]``.
        keep_state: in step mode "m", too, the potential is kept in ``v`` until :meth:`reset`: calls
            are chunks of one simulation.
        store_v_seq: keep the potentials after every step of a call in ``v_seq``,
            ``[T, *neurons]``. The steps are then taken one by one, which is slower.
        neuron: what it does in a step, a :class:`cos_ext.Neuron`; None is one level, 0 or θ. Its
            tensors become the buffers ``emitted`` and ``step_bias``. Such neurons simulate all
            steps in one call.
        surrogate, detach_reset: for gradients, as for :func:`cos_ext.functional.if_forward`. The
            parameters of a surrogate that is a module are the node's.
        learn: "v_threshold" and "v_init", or one of them, are parameters instead of buffers.

    The calibrations are "cos", its rivals, and none:

    * "cos": :func:`cos_ext.functional.cos_forward`.
    * "srp": :func:`cos_ext.functional.srp_forward`, tau = rho.
    * "parallel": :func:`cos_ext.functional.parallel_forward`.
    * "light": a current per channel, found by :func:`cos_ext.fit_light`, is added at every step.
    * "none".

    Called with (x) or (x, residual): the residual, like x, is added to the input in the same pass.
    convert() also lets a node scale and shift the input (buffers ``in_scale`` and ``in_bias``, None
    unless used) and pool the spikes (``pool``).

    In float16 and bfloat16 the potential is float32, and θ is θ rounded to the input's dtype. That
    holds for the comparison, the reset and the spike alike: the next layer receives exactly what
    the reset took off (also with a float32 node under torch.autocast). The network is then the
    exact one with the rounded thresholds. Other residuals than these would be lost at every spike.

    ``v_threshold`` and ``v_init`` are buffers unless they are learned, and part of the state_dict;
    so is ``bias``, the current of "light", once it is there. θ's values are looked at where it is
    set, converted or loaded, and on a CPU by the first call after something was written to it. What
    is written through ``.data`` is not noticed: write under ``torch.no_grad()``.

    In float32 with ``v_init=0., v_threshold=1.`` the output equals, spike for spike, that of a
    SpikingJelly ``neuron.IFNode(v_reset=None)`` that is fresh or reset.

    Raises:
        RuntimeError: calibration "light" without a fitted bias, when run.
        TypeError, ValueError: a bad argument, also when it is set later, or loaded; rho > 0 with
            hard reset, with step_mode "s", or above ``timesteps``; a batch that timesteps does not
            divide; and as for the functional forms.
    """

    v_threshold: Tensor
    v_init: Tensor
    bias: Tensor | None
    in_scale: Tensor | None
    in_bias: Tensor | None
    surrogate: Callable[[Tensor], Tensor]
    in_network = False  # convert() sets it: every call is then a whole simulation

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        *,
        v_init: float | Tensor | None = None,
        v_reset: float | None = None,
        timesteps: int | None = None,
        rho: int = 0,
        iterations: int | None = 1,
        emission: str = "calibrated",
        calibration: str = "cos",
        step_mode: str = "m",
        inplace: bool = False,
        static_input: bool = False,
        keep_state: bool = False,
        store_v_seq: bool = False,
        time: str = "batch",
        neuron: Neuron | None = None,
        surrogate: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        threshold = parameter("v_threshold", v_threshold)
        F.check_values("v_threshold", threshold)
        self.register_buffer("v_threshold", threshold)
        start = (
            threshold / 2 if v_init is None else parameter("v_init", v_init).to(threshold.device)
        )
        check_not_nan("v_init", start)
        self.register_buffer("v_init", start)
        self.register_buffer("bias", None)
        # What convert() fuses into the pass: the input is x · in_scale + in_bias + a residual, the
        # spikes are pooled over windows, (0, 0) for the whole plane.
        self.register_buffer("in_scale", None)
        self.register_buffer("in_bias", None)
        self.pool: tuple[int, int] | None = None
        self.inplace = bool(inplace)
        self.surrogate, self.detach_reset = check_surrogate(surrogate), bool(detach_reset)
        self.v: Tensor | None = None
        self.v_seq: Tensor | None = None
        self._kept: Kept | None = None
        for name in TENSORS:
            self.register_buffer(name, None)
        settings = check_settings(
            {
                "v_reset": v_reset,
                "timesteps": timesteps,
                "rho": rho,
                "iterations": iterations,
                "emission": emission,
                "calibration": calibration,
                "step_mode": step_mode,
                "static_input": static_input,
                "keep_state": keep_state,
                "store_v_seq": store_v_seq,
                "time": time,
                "neuron": neuron,
            }
        )
        settings["neuron"] = keep_tensors(self, neuron)
        self._settings = settings
        make_parameters(self, learn)

    def configure(self, **changes: Any) -> None:
        """Change settings together; the node is unchanged if they do not fit.

        Args:
            changes: any of v_reset, timesteps, rho, iterations, emission, calibration, step_mode,
                static_input, keep_state, store_v_seq, time and neuron, as for the constructor.

        Raises:
            TypeError, ValueError: as for the constructor; a setting of another name; one with which
                the neurons of a converted network would go on from call to call.
        """
        unknown = sorted(set(changes) - set(self._settings))
        if unknown:
            raise TypeError(f"the settings are {list(self._settings)}, got {unknown}")
        settings = cast(Settings, {**self._settings, **changes})
        checked = check_settings(settings, self.in_network)
        if "neuron" in changes:
            checked["neuron"] = keep_tensors(self, checked["neuron"])
        self._settings = checked

    v_reset = _setting("v_reset")
    timesteps = _setting("timesteps")
    rho = _setting("rho")
    iterations = _setting("iterations")
    emission = _setting("emission")
    calibration = _setting("calibration")
    step_mode = _setting("step_mode")
    static_input = _setting("static_input")
    keep_state = _setting("keep_state")
    store_v_seq = _setting("store_v_seq")
    time = _setting("time")

    @property
    def neuron(self) -> Neuron | None:
        """What a neuron does in a step; None: one level, 0 or θ."""
        return neuron_of(self, self._settings)

    @neuron.setter
    def neuron(self, value: Neuron | None) -> None:
        self.configure(neuron=value)

    @property
    def watch_steps(self) -> int:
        """The steps watched before the first spike, rho or 0 by the calibration."""
        return watch_steps(self._settings)

    @property
    def apart(self) -> bool:
        """Whether what is fused runs in passes of its own now: somebody looks at the spikes."""
        return watch(self).apart

    def reset(self) -> None:
        """Forget the potentials that were kept; the next call starts from v_init."""
        self.v = self.v_seq = None

    def detach(self) -> None:
        """Keep the potential, and let no gradient go further back."""
        self.v = None if self.v is None else self.v.detach()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Simulate the neurons on an input current.

        Args:
            x: float32, float64, float16 or bfloat16, in the shape that ``timesteps``, ``step_mode``
                and ``static_input`` ask for.
            residual: added to x; None, or a tensor like it.

        Returns:
            The spikes, 0 or θ, in x's dtype.
        """
        spikes, x, residual = spikes_or_currents(self, x, residual)
        if spikes is not None:
            return spikes
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dtype not in F.FLOAT_DTYPES:
            raise TypeError(f"x must be float32, float64, float16 or bfloat16, got {x.dtype}")
        settings, watched = self._settings, watch(self)
        if watched is not NOBODY:
            note_call(self, x)
            settings = now(settings, watched)
        if self.v is not None and settings["step_mode"] == "m" and not settings["keep_state"]:
            warn_left()
        operands: dict[str, Tensor] = {}
        if self._fuses(x, residual, watched):
            operands, owned = self._operands(x), self.inplace and not watched.keeps
        else:
            x, owned = self._currents(x, residual)
            residual = None
        if settings["step_mode"] == "s":
            return self._single_step(x)
        x_seq = over_time(x, settings)
        added = None if residual is None else over_time(residual, settings)
        owned = owned and not settings["static_input"]
        spikes = self._emit(x_seq, owned, added, operands, watched)
        return spikes if x_seq is x else spikes.flatten(0, 1)

    def _emit(
        self,
        x_seq: Tensor,
        owned: bool,
        residual: Tensor | None,
        operands: dict[str, Tensor],
        watched: Watch,
    ) -> Tensor:
        """The spikes, pooled where convert() wants it; x_seq may be written over where owned."""
        portion = watched.steps is not None
        apart = watched.apart or self._goes_on or portion
        window = None if apart else window_of(x_seq, self.pool, self._settings, watched.counts)
        inplace = owned and window is None and not watched.recorders
        how = (self.surrogate, self.detach_reset, inplace, watched.counts, watched.statistics)
        theta, v_init = self._parameters_for(x_seq)
        if portion:
            v_init = start_of(self, x_seq, v_init)
        if self._goes_on:
            kept = self.v if self._settings["keep_state"] else None
            gone = simulate_on(x_seq, kept, theta, v_init, self._settings, *how)
            emitted, self.v_seq = gone.emitted, gone.v_seq
            self.v = gone.v if self._settings["keep_state"] else self.v
        else:
            tensors = () if self._settings["neuron"] is None else tensors_of(self)
            fused = Fused(operands.get("scale"), operands.get("bias"), residual, window, *tensors)
            emitted = simulate(x_seq, theta, v_init, self._settings, fused, *how, portion)
        if watched is not NOBODY:
            tell(self, watched, x_seq, *emitted)
        spikes = emitted.spikes
        if self.pool is None or watched.apart or window is not None:
            return spikes
        # What the kernel cannot pool.
        pooled = TF.avg_pool2d(spikes.flatten(0, 1), sizes_of(spikes.shape, self.pool))
        return pooled.unflatten(0, spikes.shape[:2])

    @property
    def _goes_on(self) -> bool:
        """Whether the kernel's pass is not all of a call: potentials come in or go out."""
        return self._settings["keep_state"] or self._settings["store_v_seq"]

    def _fuses(self, x: Tensor, residual: Tensor | None, watched: Watch | None = None) -> bool:
        """Whether the kernels take in what stands around these neurons."""
        settings, watched = self._settings, watched or watch(self)
        if watched.apart or self._goes_on or settings["step_mode"] == "s":
            return False
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            return False
        steps = settings["timesteps"] or (x.shape[0] if x.shape else None)
        fits = steps is not None and bool(x.shape) and steps <= F.MAX_FUSED_STEPS
        return fits and settings["calibration"] not in UNFUSED

    def _operands(self, x: Tensor) -> dict[str, Tensor]:
        """scale and bias as the kernels take them, each where there is one."""
        light = self._settings["calibration"] == "light"
        current = light_bias(own(self, "bias")) if light else None
        return operands(x.dtype, own(self, "in_scale"), own(self, "in_bias"), current)

    def _currents(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, bool]:
        """What the neurons see, in passes of their own; whether spikes may be written over it."""
        given = self._operands(x)
        if not given and residual is None:
            return x, self.inplace and not watch(self).keeps
        return composed(x, given.get("scale"), given.get("bias"), residual), True

    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """θ and v(0) in dtypes that the kernels take, θ's values looked at."""
        return parameters_for(self, x.dtype)

    def _single_step(self, x: Tensor) -> Tensor:
        given = (x, self.v, *self._parameters_for(x), self.v_reset, self.inplace)
        spikes, self.v = single_step(*given, self.surrogate, self.detach_reset)
        return spikes

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "surrogate":
            value = check_surrogate(value)
            self._modules.pop(name, None)  # a function may follow a module
        elif name in LEARNED:
            check_set(name, value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        v, v_seq = (None if t is None else t.detach() for t in (self.v, self.v_seq))
        return {**self.__dict__, "v": v, "v_seq": v_seq, "_kept": None}  # no graph

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of version 0.1 lack these.
        own = {} if "surrogate" in state["_modules"] else {"surrogate": ATan()}
        super().__setstate__({**own, "detach_reset": False, "v_seq": None, "_kept": None, **state})
        self._settings = cast(Settings, {**LATER, **state["_settings"]})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:  # as torch calls it, by position
        own = {"v_threshold": self.v_threshold, "v_init": self.v_init, "bias": self.bias}
        try:
            load_into(self, state_dict, prefix, own)
        except ValueError as error:
            rest[-1].append(str(error))
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IFNode:
        converted = fn(self.v_threshold)
        if converted.dtype != self.v_threshold.dtype and not converted.is_meta:
            F.check_values("v_threshold", converted)
        self._kept = None
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """The settings, with θ where it is one number and its shape where it is a tensor."""
        theta, size = self.v_threshold, tuple(self.v_threshold.shape)
        return ", ".join((f"v_threshold={size or f'{theta.item():.4g}'}", *shown(self._settings)))
