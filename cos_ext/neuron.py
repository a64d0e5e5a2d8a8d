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
from ._functional.checks import check_not_nan
from ._functional.currents import composed
from ._neuron.layer import sizes_of, spikes_or_currents
from ._neuron.parameters import learn as make_parameters
from ._neuron.parameters import light_bias, load_into, operands, parameter, start_of
from ._neuron.runs import active, hooked, note_call, recorders, steps_now, tell
from ._neuron.settings import LATER, Settings, check_settings, shown, warn_left, watch_steps
from ._neuron.simulation import UNFUSED, Fused, fits_window, simulate, simulate_on, single_step
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
            :func:`cos_ext.functional.cos_forward`. For "cos" only.
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
    so is ``bias``, the current of "light", once it is there.

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
        self._settings = check_settings(
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
            }
        )
        make_parameters(self, learn)

    def configure(self, **changes: Any) -> None:
        """Change settings together; the node is unchanged if they do not fit.

        Args:
            changes: any of v_reset, timesteps, rho, iterations, emission, calibration, step_mode,
                static_input, keep_state, store_v_seq and time, as for the constructor.

        Raises:
            TypeError, ValueError: as for the constructor; a setting of another name; one with which
                the neurons of a converted network would go on from call to call.
        """
        unknown = sorted(set(changes) - set(self._settings))
        if unknown:
            raise TypeError(f"the settings are {list(self._settings)}, got {unknown}")
        settings = cast(Settings, {**self._settings, **changes})
        self._settings = check_settings(settings, self.in_network)

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
    def watch_steps(self) -> int:
        """The steps watched before the first spike, rho or 0 by the calibration."""
        return watch_steps(self._settings)

    @property
    def apart(self) -> bool:
        """Whether what is fused runs in passes of its own now, so that the spikes come out as they
        are: somebody looks at them.
        """
        return hooked(self) or any(run.apart for run in active()) or bool(recorders(self))

    def reset(self) -> None:
        """Forget the potentials that were kept; the next call starts from v_init."""
        self.v = self.v_seq = None

    def detach(self) -> None:
        """Keep the potential and cut it from the steps that led to it: no gradient goes further
        back.
        """
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
        note_call(self, x)
        if self.v is not None and self.step_mode == "m" and not self.keep_state:
            warn_left()
        operands: dict[str, Tensor] = {}
        if self._fuses(x, residual):
            operands, owned = self._operands(x), self._may_overwrite
        else:
            x, owned = self._currents(x, residual)
            residual = None
        if self.step_mode == "s":
            return self._single_step(x)
        timesteps = steps_now(self.timesteps)
        if timesteps is not None and self.time == "first" and x.shape[:1] != (timesteps,):
            raise ValueError(
                f"the first dimension must be timesteps = {timesteps}, got shape {tuple(x.shape)}"
            )
        if timesteps is None or self.time == "first":
            return self._emit(x, owned, residual, operands)
        if x.dim() == 0:
            raise ValueError("x must have a batch dimension, got a tensor without dimensions")
        if not self.static_input and x.shape[0] % timesteps:
            raise ValueError(
                f"the batch must be divisible by timesteps = {timesteps} (time is folded into it), "
                f"got shape {tuple(x.shape)}"
            )
        added = None if residual is None else self._over_time(residual)
        owned = owned and not self.static_input
        return self._emit(self._over_time(x), owned, added, operands).flatten(0, 1)

    @property
    def _may_overwrite(self) -> bool:
        """Whether spikes may be written over the input: nobody looks at it."""
        watched = hooked(self) or any(run.keeps or run.recorder is not None for run in active())
        return self.inplace and not watched

    def _over_time(self, x: Tensor) -> Tensor:
        """``[T, B, ...]`` of an input that is folded, or the same at every step."""
        steps = steps_now(self.timesteps)
        if self.static_input:
            return x.unsqueeze(0).expand(steps, *x.shape)
        return x.unflatten(0, (steps, x.shape[0] // steps))

    def _emit(
        self, x_seq: Tensor, owned: bool, residual: Tensor | None, operands: dict[str, Tensor]
    ) -> Tensor:
        """The spikes, pooled where convert() wants it; x_seq may be written over where owned."""
        window = self._window(x_seq)
        spikes = self._simulate(
            x_seq, owned and window is None, pool=window, residual=residual, **operands
        )
        if self.pool is None or self.apart or window is not None:
            return spikes
        # What the kernel cannot pool.
        pooled = TF.avg_pool2d(spikes.flatten(0, 1), sizes_of(spikes.shape, self.pool))
        return pooled.unflatten(0, spikes.shape[:2])

    def _simulate(
        self,
        x_seq: Tensor,
        inplace: bool,
        *,
        pool: tuple[int, int] | None = None,
        residual: Tensor | None = None,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The spikes as the operator gives them; what the active runs ask for is added up."""
        theta, v_init = self._parameters_for(x_seq)
        v_init = start_of(self, x_seq, v_init)
        how: dict[str, Any] = {
            "surrogate": self.surrogate,
            "detach_reset": self.detach_reset,
            "inplace": inplace and not recorders(self),
            "count": any(run.counts for run in active()),
            "keep_statistics": any(run.statistics for run in active()),
        }
        if self._goes_on:
            kept = self.v if self.keep_state else None
            gone = simulate_on(x_seq, kept, theta, v_init, self._settings, **how)
            emitted, self.v_seq = gone.emitted, gone.v_seq
            self.v = gone.v if self.keep_state else self.v
        else:
            fused = Fused(scale, bias, residual, pool)
            emitted = simulate(x_seq, theta, v_init, self._settings, fused, **how)
        tell(self, x_seq, *emitted)
        return emitted.spikes

    @property
    def _goes_on(self) -> bool:
        """Whether the kernel's pass is not all of a call: potentials come in or go out."""
        return self.keep_state or self.store_v_seq

    def _fuses(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether the kernels take in what stands around these neurons."""
        if self.apart or self._goes_on or self.calibration in UNFUSED or self.step_mode == "s":
            return False
        fits = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        return fits and bool(x.shape) and (self.timesteps or x.shape[0]) <= F.MAX_FUSED_STEPS

    def _operands(self, x: Tensor) -> dict[str, Tensor]:
        """scale and bias as the kernels take them, each where there is one."""
        bias = light_bias(self.calibration, self.bias)
        return operands(x.dtype, self.in_scale, self.in_bias, bias)

    def _currents(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, bool]:
        """What the neurons see, in passes of their own; whether spikes may be written over it."""
        given = self._operands(x)
        if not given and residual is None:
            return x, self._may_overwrite
        return composed(x, given.get("scale"), given.get("bias"), residual), True

    def _window(self, x_seq: Tensor) -> tuple[int, int] | None:
        """The windows that the kernel pools over; None where there are none, or it cannot."""
        unfused = self.apart or self._goes_on or self.calibration in UNFUSED
        if self.pool is None or unfused or x_seq.dim() < 4:
            return None
        window = sizes_of(x_seq.shape, self.pool)
        counts = any(run.counts for run in active())
        counted = not counts or 0 < self.watch_steps <= F.MAX_STATISTICS_RHO
        return window if counted and fits_window(x_seq, window) else None

    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """θ and v(0) in dtypes that the kernels take."""
        allowed = (x.dtype, F.state_dtype(x.dtype))
        start = self.v_init if self.v_init.dtype in allowed else self.v_init.to(allowed[1])
        # θ as the spikes carry it: a reset takes off what was sent.
        return self.v_threshold.to(x.dtype), start

    def _single_step(self, x: Tensor) -> Tensor:
        given = (x, self.v, *self._parameters_for(x), self.v_reset, self.inplace)
        spikes, self.v = single_step(*given, self.surrogate, self.detach_reset)
        return spikes

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "surrogate":
            value = check_surrogate(value)
            self._modules.pop(name, None)  # a function may follow a module
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        v, v_seq = (None if t is None else t.detach() for t in (self.v, self.v_seq))
        return {**self.__dict__, "v": v, "v_seq": v_seq}  # no graph

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of version 0.1 lack these.
        own = {} if "surrogate" in state["_modules"] else {"surrogate": ATan()}
        super().__setstate__({**own, "detach_reset": False, "v_seq": None, **state})
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
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """The settings, with θ where it is one number and its shape where it is a tensor."""
        theta, size = self.v_threshold, tuple(self.v_threshold.shape)
        return ", ".join((f"v_threshold={size or f'{theta.item():.4g}'}", *shown(self._settings)))
