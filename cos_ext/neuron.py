"""IFNode: integrate-and-fire neurons as a module that stands where an activation was. The
mathematics is in functional.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from . import functional as F
from ._ops import TALLIES

STEP_MODES = ("m", "s")


def _setting(name: str) -> property:
    """One of configure()'s settings as an attribute that is validated when it is set."""
    return property(
        lambda node: node._settings[name], lambda node, value: node.configure(**{name: value})
    )


class IFNode(nn.Module):
    """Integrate-and-fire neurons with soft or hard reset, and calibration of offset spikes where
    rho > 0.

    Args:
        v_threshold: θ > 0, a float (kept in torch's default dtype) or a tensor that broadcasts to
            the neurons (per channel: [C, 1, 1]).
        v_init: v(0), likewise; None is θ/2.
        v_reset: None for soft reset, else the potential after a spike (hard reset).
        timesteps: None: the input is [T, *neurons]. An int T: time is folded into the batch,
            time-major, [T*B, ...], so that convolutions, BatchNorm, pooling and Flatten work
            unmodified between nodes.
        rho: steps to watch for calibration (:func:`cos_ext.functional.cos_forward`); 0 is none.
        iterations: of the calibration; None is until exact.
        emission: the order in time of a calibrated neuron's spikes, as for
            :func:`cos_ext.functional.cos_forward`.
        calibration: "cos", or a rival of it: "srp" (:func:`cos_ext.functional.srp_forward`, tau =
            rho), "parallel" (:func:`cos_ext.functional.parallel_forward`), "light" (a current per
            channel that :func:`cos_ext.fit_light` found is added at every step), "none". iterations
            and emission are for "cos" only; with "light" and "none" rho plays no part.
        step_mode: "m": each call is a whole simulation from v_init. "s": each call is one step,
            input [*neurons], and the potential is kept until :meth:`reset`.
        inplace: write the spikes over the input.
        static_input: the input is [B, ...] and the same at every step; it is read once, and the
            output is [T*B, ...].

    Called with (x) or (x, residual): the residual, like x, is added to the input in the same pass.
    convert() also lets it scale and shift the input (buffers in_scale and in_bias, None unless
    used) and pool the spikes (`pool`).

    In float16 and bfloat16 the potential is float32, and θ is θ rounded to the input's dtype, for
    the comparison, the reset and the spike alike: the next layer receives exactly what the reset
    took off (also with a float32 node under torch.autocast). The network is then the exact one with
    the rounded thresholds, where other residuals than these would be lost at every spike.

    v_threshold and v_init are buffers and part of the state_dict; so is bias, the current of
    "light", once it is there. In float32 with ``v_init=0., v_threshold=1.`` the output equals,
    spike for spike, that of a fresh (or reset) SpikingJelly ``neuron.IFNode(v_reset=None)``.

    Raises:
        RuntimeError: calibration "light" without a fitted bias, when run.
        TypeError, ValueError: a bad argument (also when it is set later, or loaded), rho > 0 with
            hard reset, step_mode "s" or more than `timesteps`, a batch that is not divisible by
            timesteps; and as for the functional forms.
    """

    v_threshold: Tensor
    v_init: Tensor
    bias: Tensor | None

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
    ) -> None:
        super().__init__()
        threshold = _parameter("v_threshold", v_threshold)
        F.check_values("v_threshold", threshold)
        self.register_buffer("v_threshold", threshold)
        start = (
            threshold / 2 if v_init is None else _parameter("v_init", v_init).to(threshold.device)
        )
        _check_not_nan("v_init", start)
        self.register_buffer("v_init", start)
        self.register_buffer("bias", None)
        # What convert() fuses into the pass: the input is x · in_scale + in_bias + a residual, the
        # spikes are pooled over windows, (0, 0) for the whole plane. `apart` does all of that in
        # passes of their own and leaves the spikes as they are.
        self.register_buffer("in_scale", None)
        self.register_buffer("in_bias", None)
        self.pool: tuple[int, int] | None = None
        self.apart = False
        self.inplace = bool(inplace)
        self.v: Tensor | None = None
        # Where set, forward adds up what it emitted: (spikes, neurons · steps), for the mean firing
        # rate.
        self.count_spikes = False
        self.emitted: tuple[Tensor, int] | None = None
        # Where set, forward adds up the kernels' statistics (cos_ext.analysis.statistics).
        self.keep_statistics = False
        self.statistics: Tensor | None = None
        self._settings: dict[str, Any] = {}
        self.configure(
            v_reset=v_reset,
            timesteps=timesteps,
            rho=rho,
            iterations=iterations,
            emission=emission,
            calibration=calibration,
            step_mode=step_mode,
            static_input=bool(static_input),
        )

    def configure(self, **changes: Any) -> None:
        """Change any of v_reset, timesteps, rho, iterations, emission, calibration, step_mode,
        static_input; validated together.

        The node is unchanged if they do not fit.
        """
        new = {**self._settings, **changes}
        timesteps, rho, v_reset = new["timesteps"], new["rho"], new["v_reset"]
        if v_reset is not None:
            new["v_reset"] = F.check_number("v_reset", v_reset)
        if timesteps is not None and (
            isinstance(timesteps, bool) or not isinstance(timesteps, int)
        ):
            raise TypeError(f"timesteps must be an int or None, got {type(timesteps).__name__}")
        if timesteps is not None and timesteps < 1:
            raise ValueError(f"timesteps must be >= 1, got {timesteps}")
        if isinstance(rho, bool) or not isinstance(rho, int):
            raise TypeError(f"rho must be an int, got {type(rho).__name__}")
        if rho < 0:
            raise ValueError(f"rho must be >= 0, got {rho}")
        rho = rho if F.check_method(new["calibration"]) in F.WATCHING else 0
        if timesteps is not None and rho > timesteps:
            raise ValueError(f"rho must be at most timesteps = {timesteps}, got {rho}")
        F.check_calibration(max(rho, 1), new["iterations"])
        F.check_emission(new["emission"])
        if new["step_mode"] not in STEP_MODES:
            raise ValueError(f"step_mode must be one of {STEP_MODES}, got {new['step_mode']!r}")
        if rho and v_reset is not None:
            raise ValueError(
                "rho must be 0 with hard reset (calibration is defined for v_reset=None), got "
                f"{rho}"
            )
        if rho and new["step_mode"] == "s":
            raise ValueError(
                f"rho must be 0 with step_mode 's' (calibration needs the whole input), got {rho}"
            )
        if new["static_input"] and (timesteps is None or new["step_mode"] == "s"):
            raise ValueError("static_input needs timesteps and step_mode 'm'")
        self._settings = new

    v_reset = _setting("v_reset")
    timesteps = _setting("timesteps")
    rho = _setting("rho")
    iterations = _setting("iterations")
    emission = _setting("emission")
    calibration = _setting("calibration")
    step_mode = _setting("step_mode")
    static_input = _setting("static_input")

    @property
    def watch_steps(self) -> int:
        """The steps that are watched before the first spike: rho, or 0 where the calibration has no
        use for it.
        """
        return self.rho if self.calibration in F.WATCHING else 0

    def reset(self) -> None:
        """Forget the potential kept by step_mode "s"; the next step starts from v_init."""
        self.v = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dtype not in F.FLOAT_DTYPES:
            raise TypeError(f"x must be float32, float64, float16 or bfloat16, got {x.dtype}")
        timesteps, fused = self.timesteps, {}
        if self._fuses(x, residual):
            fused, owned = self._operands(x), self.inplace
        else:
            x, owned = self._currents(x, residual)
            residual = None
        if self.step_mode == "s":
            return self._single_step(x)
        if timesteps is None:
            return self._emit(x, owned, residual, fused)
        if x.dim() == 0:
            raise ValueError("x must have a batch dimension, got a tensor without dimensions")
        if self.static_input:
            over_time = [
                None if t is None else t.unsqueeze(0).expand(timesteps, *t.shape)
                for t in (x, residual)
            ]
            owned = False
        elif x.shape[0] % timesteps:
            raise ValueError(
                f"the batch must be divisible by timesteps = {timesteps} (time is folded into it), "
                f"got shape {tuple(x.shape)}"
            )
        else:
            samples = x.shape[0] // timesteps
            over_time = [
                None if t is None else t.unflatten(0, (timesteps, samples)) for t in (x, residual)
            ]
        return self._emit(over_time[0], owned, over_time[1], fused).flatten(0, 1)

    def _emit(
        self, x_seq: Tensor, owned: bool, residual: Tensor | None, fused: dict[str, Tensor]
    ) -> Tensor:
        window = self._window(x_seq)
        spikes = self._simulate(
            x_seq, owned and window is None, pool=window, residual=residual, **fused
        )
        if self.pool is None or self.apart or window is not None:
            return spikes
        # What the kernel cannot pool.
        return TF.avg_pool2d(spikes.flatten(0, 1), self._sizes(spikes)).unflatten(
            0, spikes.shape[:2]
        )

    def _fuses(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether the kernels take in what stands around these neurons."""
        if self.apart or self.calibration in ("srp", "parallel") or self.step_mode == "s":
            return False
        fits = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        return fits and (self.timesteps or x.shape[0]) <= F.MAX_FUSED_STEPS

    def _operands(self, x: Tensor) -> dict[str, Tensor]:
        """scale and bias as the kernels take them."""
        bias = self._light_bias()
        if self.in_bias is not None:
            bias = self.in_bias if bias is None else self.in_bias + bias
        allowed = (x.dtype, F.state_dtype(x.dtype))
        given = {"scale": self.in_scale, "bias": bias}
        return {
            name: t if t.dtype in allowed else t.to(allowed[1])
            for name, t in given.items()
            if t is not None
        }

    def _light_bias(self) -> Tensor | None:
        if self.calibration != "light":
            return None
        if self.bias is None:
            raise RuntimeError(
                'calibration is "light" and this layer has no fitted bias; call cos_ext.fit_light '
                "first"
            )
        return self.bias

    def _currents(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, bool]:
        """What the neurons see, in passes of their own, and whether spikes may be written over
        it.
        """
        given = self._operands(x)
        if not given and residual is None:
            return x, self.inplace
        if given:
            state = F.state_dtype(x.dtype)
            scaled = x.to(state) * given["scale"].to(state) if "scale" in given else x.to(state)
            x = (scaled + given["bias"].to(state) if "bias" in given else scaled).to(x.dtype)
        return (x if residual is None else x + residual), True

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        return tuple(x.shape[-2:]) if self.pool == (0, 0) else self.pool

    def _window(self, x_seq: Tensor) -> tuple[int, int] | None:
        """The windows that the kernel pools over; None where there are none, or it cannot."""
        if (
            self.pool is None
            or self.apart
            or self.calibration in ("srp", "parallel")
            or x_seq.dim() < 4
        ):
            return None
        rows, columns = self._sizes(x_seq)
        whole = (
            x_seq.shape[-2] % rows == 0
            and x_seq.shape[-1] % columns == 0
            and x_seq.shape[0] <= F.MAX_FUSED_STEPS
        )
        served = x_seq.device.type != "cuda" or (rows, columns) == (2, 2)
        counted = not self.count_spikes or 0 < self.watch_steps <= F.MAX_STATISTICS_RHO
        return (rows, columns) if whole and served and counted else None

    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        allowed = (x.dtype, F.state_dtype(x.dtype))
        start = self.v_init if self.v_init.dtype in allowed else self.v_init.to(allowed[1])
        return self.v_threshold.to(
            x.dtype
        ), start  # θ as the spikes carry it: a reset takes off what was sent

    def _simulate(
        self,
        x_seq: Tensor,
        inplace: bool,
        *,
        pool: tuple[int, int] | None = None,
        **fused: Tensor | None,
    ) -> Tensor:
        theta, v_init = self._parameters_for(x_seq)
        if self.keep_statistics and (
            self.v_reset is not None or self.calibration in ("srp", "parallel")
        ):
            raise ValueError(
                "statistics need soft reset, for which offset spikes are defined, and the kernels "
                "of calibration 'cos', "
                f"'light' or 'none', got v_reset={self.v_reset} and "
                f"calibration={self.calibration!r}"
            )
        count = self.count_spikes and pool is None
        options = {"inplace": inplace, "return_count": count}
        rho = self.watch_steps
        if self.calibration == "srp" and rho:
            result = F.srp_forward(x_seq, theta, v_init, tau=rho, **options)
        elif self.calibration == "parallel" and rho:
            result = F.parallel_forward(x_seq, theta, v_init, rho=rho, **options)
        elif rho or self.keep_statistics:
            # Without calibration: watched, and left as they are.
            iterations = self.iterations if rho else 0
            emission = self.emission if rho else "calibrated"
            sums = self.keep_statistics or (self.count_spikes and pool is not None)
            result = F.cos_forward(
                x_seq,
                theta,
                v_init,
                rho=rho or x_seq.shape[0],
                iterations=iterations,
                emission=emission,
                return_statistics=sums,
                pool=pool,
                **options,
                **fused,
            )
        else:
            result = F.if_forward(
                x_seq, theta, v_init, v_reset=self.v_reset, pool=pool, **options, **fused
            )
        if self.keep_statistics:
            sums = result.statistics
            self.statistics = sums if self.statistics is None else self.statistics + sums
        if self.count_spikes:
            spikes, steps = self.emitted or (0, 0)
            now = (
                result.spike_count.sum()
                if count
                else result.statistics[2 * rho + 1 + TALLIES.index("spikes")]
            )
            self.emitted = (spikes + now, steps + x_seq.numel())
        return result.spikes

    def _single_step(self, x: Tensor) -> Tensor:
        theta, v_init = self._parameters_for(x)
        if self.v is not None:
            if (
                self.v.shape != x.shape
                or self.v.device != x.device
                or self.v.dtype != F.state_dtype(x.dtype)
            ):
                raise ValueError(
                    f"x must fit the kept potential {self.v.dtype} {tuple(self.v.shape)} on "
                    f"{self.v.device}, "
                    f"got {x.dtype} {tuple(x.shape)} on {x.device}; call reset() between inputs"
                )
            v_init = self.v
        result = F.if_forward(
            x.unsqueeze(0), theta, v_init, v_reset=self.v_reset, inplace=self.inplace, return_v=True
        )
        self.v = result.v
        return result.spikes[0]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata,
        strict,
        missing_keys,
        unexpected_keys,
        error_msgs,
    ) -> None:
        try:
            # As they will be: rounded to this node's dtype.
            for name, check in (
                ("v_threshold", F.check_values),
                ("v_init", _check_not_nan),
                ("bias", _check_not_nan),
            ):
                loaded = state_dict.get(prefix + name)
                if (
                    isinstance(loaded, Tensor)
                    and not loaded.is_meta
                    and getattr(self, name) is not None
                ):
                    check(prefix + name, loaded.detach().to(getattr(self, name).dtype))
        except ValueError as error:
            error_msgs.append(str(error))
            return
        start = state_dict.get(prefix + "v_init")
        if (
            isinstance(start, Tensor)
            and start.shape != self.v_init.shape
            and _fit_together(start, self.v_threshold)
        ):
            self.v_init = self.v_init.new_empty(
                start.shape
            )  # fit_v_init gives it a shape of its own
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _apply(self, fn, recurse: bool = True):
        converted = fn(self.v_threshold)
        if converted.dtype != self.v_threshold.dtype and not converted.is_meta:
            F.check_values("v_threshold", converted)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        theta = (
            f"{self.v_threshold.item():.4g}"
            if self.v_threshold.dim() == 0
            else f"{tuple(self.v_threshold.shape)}"
        )
        parts = [
            f"v_threshold={theta}",
            f"v_reset={self.v_reset}",
            f"timesteps={self.timesteps}",
            f"rho={self.rho}",
            f"iterations={self.iterations}",
            f"emission={self.emission!r}",
            f"calibration={self.calibration!r}",
            f"step_mode={self.step_mode!r}",
        ]
        return ", ".join(parts)


def _check_not_nan(name: str, value: Tensor) -> None:
    if not value.is_meta and torch.isnan(value).any():
        raise ValueError(f"{name} must not be NaN")


def _fit_together(a: Tensor, b: Tensor) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a.shape), reversed(b.shape)))


def _parameter(name: str, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {value.dtype}")
        return value.detach().clone()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
    return torch.tensor(float(value), dtype=torch.get_default_dtype())
