"""Any job for neuron_forward, drawn: dtypes, shapes, layouts, neurons, parameters, ties. No tests.

What a job must fit is the kernels' business: only what the public function accepts is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from conftest import DTYPES, layouts
from hypothesis import strategies as st
from torch import Tensor

import cos_ext
from cos_ext import functional as F
from cos_ext import reference
from cos_ext._functional.currents import composed

THETA = 0.75  # of ties: multiples of its parts are exact in every dtype
WHAT = ("contiguous", "misaligned", "channels_last", "batch_major", "time_innermost", "strided")


@dataclass
class Job:
    """What neuron_forward is given."""

    x: Tensor
    theta: float | Tensor
    v_init: float | Tensor | None
    options: dict[str, Any]
    fused: dict[str, Tensor] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, bool]:
        """The results that there are."""
        rho, emission = self.options["rho"], self.options["emission"]
        planned = rho > 0 and emission != "block"
        return {
            "return_v": emission == "calibrated",
            "return_count": True,
            "return_v_init": planned,
            "return_offset": planned,
        }

    def run(self, function: Any = F.neuron_forward, **more: Any) -> Any:
        """By the compiled kernels."""
        given = {**self.options, **self.fused, **self.asked, **more}
        return function(self.x, self.theta, self.v_init, **given)

    def refer(self) -> Any:
        """By the reference."""
        operands = (self.fused.get(name) for name in ("scale", "bias", "residual"))
        x = composed(self.x, *operands)
        return reference.neuron_forward(x, self.theta, self.v_init, **self.options)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Every result has the same dtype, the same values and NaN at the same places."""
    for name, a, b in zip(theirs._fields, ours, theirs):
        if a is None or b is None:
            assert a is b, name
            continue
        assert a.dtype == b.dtype and a.shape == b.shape, name
        same = (a == b) | (a.isnan() & b.isnan())
        assert bool(same.all()), (name, (~same).nonzero()[:4], a[~same][:4], b[~same][:4])


@st.composite
def neurons(draw: Any, x: Tensor, generator: torch.Generator) -> tuple[cos_ext.Neuron, bool]:
    """A neuron for these inputs, and whether it is one that can be calibrated."""
    steps, channels, state = x.shape[0], x.shape[2], F.state_dtype(x.dtype)
    kind = draw(st.sampled_from(["plain", "levels", "levels", "counted", "free", "ladder"]))
    given: dict[str, Any] = {}
    if kind != "ladder":
        high = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 15, 1000, 2**20]))
        low = draw(st.sampled_from([0, 0, -1, -2, -15, -(2**20)]))
        given["levels"] = (low, high)
        if low:
            given["lower"] = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]))
            given["strict"] = draw(st.booleans()) or given["lower"] == 0.0
    if kind == "counted":
        given["count"] = draw(
            st.sampled_from([(0, 3), (0, None), (-2, 2), (-8, 7), (0, 0), (None, 5)])
        )
    if kind in ("free", "counted"):
        given["upper"] = draw(st.sampled_from([1.0, 0.5, 0.6, 1.5, 3.0]))
    if kind not in ("ladder",):
        emitted = draw(st.sampled_from(["theta", "theta", "number", "channels"]))
        if emitted == "number":
            given["emitted"] = draw(st.sampled_from([1.0, -0.3, 0.0]))
        elif emitted == "channels":
            sizes = draw(st.sampled_from([(channels, 1, 1), tuple(x.shape[1:]), ()]))
            given["emitted"] = torch.rand(sizes, generator=generator).to(state)
    bias = draw(st.sampled_from(["none", "none", "steps", "channels"]))
    if bias != "none":
        sizes = (steps,) if bias == "steps" else (steps, channels)
        values = torch.randn(sizes, generator=generator) / 4
        given["step_bias"] = values.to(draw(st.sampled_from([x.dtype, state])))
    if kind in ("free", "ladder"):
        given["leak"] = draw(st.sampled_from([1.0, 0.9, 0.25, 1.25]))
        given["silent"] = draw(st.integers(0, 3))
        given["prediction"] = draw(st.booleans())
        if draw(st.booleans()) and given.get("emitted") is None:
            scales = (torch.rand(steps, generator=generator) + 0.5).tolist()
            given["step_scale"] = tuple(scales)
    if kind == "ladder":
        given["ladder"] = draw(st.integers(1, 8))
        given["ratio"] = draw(st.sampled_from([0.75, 1.0, 0.6]))
        given["gated"] = draw(st.booleans())
    return cos_ext.Neuron(**given), kind in ("plain", "levels", "counted")


@st.composite
def jobs(draw: Any) -> Job:
    """One job."""
    dtype = draw(st.sampled_from(DTYPES))
    state = F.state_dtype(dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps, batch, channels = (
        draw(st.integers(1, 16)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 9)),
    )
    height, width = draw(st.sampled_from([(1, 1), (2, 3), (4, 4), (3, 8), (8, 40), (1, 129)]))
    shape = (steps, batch, channels, height, width)

    def rand(*sizes: int, dtypes: Any = (dtype, state)) -> Tensor:
        values = torch.rand(sizes, generator=generator) + 0.5
        return values.to(draw(st.sampled_from(dtypes)))

    values = draw(st.sampled_from(["random", "random", "ties", "special"]))
    if values == "ties":
        parts = draw(st.sampled_from([1, 2, 3, 4, 8]))
        base = torch.randint(-2 * parts, 4 * parts, shape, generator=generator) * (THETA / parts)
        theta: float | Tensor = THETA
        v_init = draw(st.sampled_from([None, 0.0, THETA, -THETA / 4]))
    else:
        base = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.4, 1.2, 9.0]))
        base = base + draw(st.sampled_from([0.35, -0.1]))
        if values == "special":
            bad = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
            base[torch.rand(shape, generator=generator) < 0.1] = bad
        theta = draw(st.sampled_from([0.8, 1.7, "channels", "neurons"]))
        if isinstance(theta, str):
            theta = rand(*((channels, 1, 1) if theta == "channels" else shape[1:]))
        start = draw(st.sampled_from([None, -0.3, "channels", "neurons"]))
        v_init = (
            start
            if not isinstance(start, str)
            else (rand(*((channels, 1, 1) if start == "channels" else shape[1:])))
        )
    x = layouts(base.to(dtype))[draw(st.sampled_from(WHAT))]
    if draw(st.integers(0, 5)) == 0:
        x = x[:1].expand(shape)
    neuron, watched = draw(neurons(x, generator))
    options = {"neuron": neuron, "v_reset": None, "rho": 0, "iterations": 1}
    options["emission"] = "calibrated"
    if watched and draw(st.integers(0, 2)):
        orders = ["even", "front"]
        if neuron.count == (None, None):
            orders += ["block"] if neuron.upper != 1 else ["block", "calibrated", "calibrated"]
        options["rho"] = draw(st.integers(1, steps))
        options["iterations"] = draw(st.sampled_from([0, 1, 2, 3]))
        options["emission"] = draw(st.sampled_from(orders))
    elif not neuron.prediction:
        options["v_reset"] = draw(st.sampled_from([None, None, 0.0, 0.1]))
    fused = {}
    if draw(st.integers(0, 3)) == 0:
        fused["scale"] = rand(channels, 1, 1)
    if draw(st.integers(0, 3)) == 0:
        fused["bias"] = rand(*shape[1:])
    if draw(st.integers(0, 3)) == 0:
        fused["residual"] = rand(*shape, dtypes=(dtype,))
    return Job(x, theta, v_init, options, fused)
