"""The settings of a neuron: what they are, and which of them fit together. No tensors here."""

from __future__ import annotations

import warnings
from typing import TypedDict, cast

import torch

from .. import functional as F
from .._functional.checks import GENERAL_EMISSIONS, UNFUSED
from .._functional.general import uncalibrated
from .._numbers import whole
from ..general import Neuron

STEP_MODES = ("m", "s")
TIMES = ("batch", "first")
SWITCHES = ("static_input", "keep_state", "store_v_seq")


class Settings(TypedDict):
    """What ``IFNode.configure`` changes; :class:`cos_ext.IFNode` says what each one means."""

    v_reset: float | None
    timesteps: int | None
    rho: int
    iterations: int | None
    emission: str
    calibration: str
    step_mode: str
    static_input: bool
    keep_state: bool
    store_v_seq: bool
    time: str
    neuron: Neuron | None  # without its tensors, which are the node's


# What pickles of version 0.1 lack, and mean.
LATER: dict[str, object] = {
    "keep_state": False,
    "store_v_seq": False,
    "time": "batch",
    "neuron": None,
}
# What no neurons of a converted network can do.
OWN_TIME: dict[str, object] = {
    "keep_state": False,
    "store_v_seq": False,
    "time": "batch",
    "step_mode": "m",
}


def shown(settings: Settings) -> list[str]:
    """The settings as a node shows them: those that are seldom changed, only where they are."""
    usual: dict[str, object] = {"static_input": False, **LATER}
    return [
        f"{k}={value!r}" for k, value in settings.items() if k not in usual or value != usual[k]
    ]


def folded_steps(settings: Settings) -> int | None:
    """The steps that are folded into the batch; None where time is the first dimension."""
    return settings["timesteps"] if settings["time"] == "batch" else None


def watch_steps(settings: Settings) -> int:
    """The steps that are watched before the first spike: rho, or 0 where it plays no part."""
    return settings["rho"] if settings["calibration"] in F.WATCHING else 0


def is_general(settings: Settings) -> bool:
    """Whether these are general neurons: those of one level have faster kernels."""
    return settings["neuron"] is not None or (
        settings["emission"] == "block" and watch_steps(settings) > 0
    )


def warn_left() -> None:
    """Say that a potential of step mode "s" is there, and a whole simulation leaves it there."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            "step_mode is 'm' and a potential is kept from earlier calls: this call starts from "
            "v_init. Set keep_state=True to go on from it, or call reset() first",
            stacklevel=2,
        )


def _switch(name: str, value: object) -> bool:
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _refuse_in_network(settings: dict[str, object]) -> None:
    """Refuse what no neurons of a converted network can do: it runs parts of a batch one after
    another, and layers twice.

    Raises:
        ValueError: they would keep a potential, or have time elsewhere than in the batch.
    """
    for name, value in OWN_TIME.items():
        if settings[name] != value:
            raise ValueError(
                f"{name} must be {value!r} in a converted network, whose neurons start anew at "
                f"every call, got {settings[name]!r}; network.record(site, what=['v']) shows "
                "potentials"
            )


def check_settings(settings: Settings, in_network: bool = False) -> Settings:
    """Validate settings, each by itself and all together.

    Returns:
        The settings, v_reset as a float.

    Raises:
        TypeError: a setting has another type.
        ValueError: a setting is out of range, or two do not fit together.
    """
    given = cast(dict[str, object], settings)
    switches = {name: _switch(name, given[name]) for name in SWITCHES}
    if in_network:
        _refuse_in_network(given)
    timesteps, rho, v_reset = settings["timesteps"], settings["rho"], settings["v_reset"]
    if v_reset is not None:
        v_reset = F.check_number("v_reset", v_reset)
    if timesteps is not None:
        timesteps = whole("timesteps", timesteps, 1, F.MAX_STEPS, or_=" or None")
    rho = whole("rho", rho, 0, F.MAX_STEPS)
    F.check_method(settings["calibration"])
    watched = watch_steps(settings)
    if timesteps is not None and watched > timesteps:
        raise ValueError(f"rho must be at most timesteps = {timesteps}, got {watched}")
    rounds = F.check_calibration(max(watched, 1), settings["iterations"])
    F.check_choice("emission", settings["emission"], GENERAL_EMISSIONS)
    step_mode = settings["step_mode"]
    if step_mode not in STEP_MODES:
        raise ValueError(f"step_mode must be one of {STEP_MODES}, got {step_mode!r}")
    if watched and v_reset is not None:
        raise ValueError(
            "rho must be 0 with hard reset (calibration is defined for v_reset=None), got "
            f"{watched}"
        )
    if watched and step_mode == "s":
        raise ValueError(
            f"rho must be 0 with step_mode 's' (calibration needs the whole input), got {watched}"
        )
    if settings["static_input"] and (timesteps is None or step_mode == "s"):
        raise ValueError("static_input needs timesteps and step_mode 'm'")
    if watched and (settings["keep_state"] or settings["store_v_seq"]):
        raise ValueError(
            "keep_state and store_v_seq need rho = 0 (calibration moves the potential that a call "
            f"starts from), got {watched}"
        )
    if settings["time"] not in TIMES:
        raise ValueError(f"time must be one of {TIMES}, got {settings['time']!r}")
    if settings["static_input"] and settings["time"] == "first":
        raise ValueError("static_input has no dimension for time; time must be 'batch'")
    if settings["store_v_seq"] and step_mode == "s":
        raise ValueError("store_v_seq needs step_mode 'm'; in 's' v is there after every step")
    _check_neuron(settings, watched, v_reset)
    iterations = None if rounds < 0 else rounds
    numbers = {"timesteps": timesteps, "rho": rho, "iterations": iterations, "v_reset": v_reset}
    return cast(Settings, {**settings, **numbers, **switches})


def _check_neuron(settings: Settings, rho: int, v_reset: float | None) -> None:
    """TypeError or ValueError where general neurons do not go with the other settings."""
    neuron, calibration = settings["neuron"], settings["calibration"]
    if neuron is not None and not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a cos_ext.Neuron or None, got {type(neuron).__name__}")
    if rho and settings["emission"] == "block" and calibration in UNFUSED:
        raise ValueError(f"emission 'block' is for calibration 'cos', got {calibration!r}")
    if neuron is None:
        return
    if calibration in UNFUSED:
        raise ValueError(
            f"calibration {calibration!r} is for neurons of one level; with a neuron take 'cos' "
            "(emission 'front' is parallel conversion)"
        )
    goes_on = settings["keep_state"] or settings["store_v_seq"] or settings["step_mode"] == "s"
    if goes_on:
        raise ValueError(
            "a neuron simulates all steps in one call: step_mode must be 'm', keep_state and "
            "store_v_seq False"
        )
    if neuron.prediction and v_reset is not None:
        raise ValueError(f"prediction needs soft reset, got v_reset={v_reset}")
    if rho and (reason := uncalibrated(neuron, v_reset, settings["emission"])):
        raise ValueError(f"rho must be 0 with {reason}, got {rho}")
