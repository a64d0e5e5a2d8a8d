"""The general neuron: its kernels against the loop of cos_ext.reference, EQUAL, over anything.

With the CUDA kernels' bodies: test_general_on_host.py. As published neurons:
test_published_neurons.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES
from general_jobs import Job, assert_equal, jobs
from hypothesis import given, settings

from cos_ext import Neuron
from cos_ext import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}


def currents(*shape, dtype=torch.float32):
    return (torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35).to(dtype)


def test_any_job_equals_the_reference():
    seen = set()

    @settings(max_examples=600, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        seen.add((job.x.dtype, job.options["emission"], job.options["neuron"].ladder is None))
        assert_equal(job.run(), job.refer())

    check()
    assert {dtype for dtype, _, _ in seen} == set(DTYPES) and len(seen) > 16


def test_any_job_in_place():
    @settings(max_examples=300, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        if job.x.stride(0) == 0 and job.x.shape[0] > 1:
            return
        expected = job.run()
        job.x = job.x.clone(memory_format=torch.preserve_format)
        ours = job.run(inplace=True)
        assert ours.spikes is job.x
        assert_equal(ours, expected)

    check()


@pytest.mark.parametrize("theta", [0.5, 1.25, "channels"])
def test_with_nothing_set_it_is_the_neuron_of_one_level(theta, dtype):
    """θ is a number of the dtype: else a reset takes off what was sent, in 16 bits."""
    x = currents(9, 2, 3, 4, 40, dtype=dtype)
    if theta == "channels":
        theta = (torch.rand(3, 1, 1) + 0.5).to(dtype)
    for v_init in (None, -0.3):
        for reset in (None, 0.1):
            ours = F.neuron_forward(x, theta, v_init, neuron=Neuron(), v_reset=reset, **ALL)
            assert_equal(ours, F.if_forward(x, theta, v_init, v_reset=reset, **ALL))
        for rho in (1, 5, 9):
            for iterations in (0, 1, None):
                given = {"rho": rho, "iterations": iterations, **ALL_COS}
                ours = F.neuron_forward(x, theta, v_init, neuron=Neuron(), **given)
                assert_equal(ours, F.cos_forward(x, theta, v_init, **given))
            for emission in ("even", "front"):
                given = {"rho": rho, "emission": emission, **ALL_COS, "return_v": False}
                ours = F.neuron_forward(x, theta, v_init, neuron=Neuron(), **given)
                assert_equal(ours, F.cos_forward(x, theta, v_init, **given))


SIGNED = [(0, 1), (0, 4), (-1, 1), (-2, 3), (-15, 15), (-4, 1)]
LOWER = [(0.0, True), (0.25, True), (0.25, False), (1.0, True), (1.0, False), (3.0, True)]


def adversarial(kind, rho, size):
    """Currents and v(0) in θ = 1 whose sums are exact in float64, and which tie on purpose."""
    whole = torch.randint(-64, 100, (rho, size)).double()
    signs = torch.tensor([1.0, -1.0] * 10)[:rho, None].double()
    rare = torch.where(torch.rand(rho, size) < 0.3, whole / 4, 0.0)
    kinds = {"fine": whole / 32, "ties": (whole / 12).round() / 2, "alternating": whole / 8 * signs}
    return {**kinds, "rare": rare}[kind], float(torch.randint(-2, 3, ())) / 2


@pytest.mark.parametrize("kind", ["fine", "ties", "alternating", "rare"])
@pytest.mark.parametrize("levels", SIGNED, ids=str)
def test_the_count_is_the_floor_of_what_came_in(levels, kind):
    """C* = clip(floor((Σ x + v(0)) / θ), rho s_min, rho s_max), by every emission."""
    for lower, strict in LOWER if levels[0] else [(None, True)]:
        neuron = Neuron(levels=levels, lower=lower, strict=strict)
        for rho in (1, 2, 3, 5, 8):
            x, start = adversarial(kind, rho, 2000)
            wanted = (x.sum(0) + start).floor().clamp(rho * levels[0], rho * levels[1])
            for emission in ("calibrated", "even", "front", "block"):
                given = {"neuron": neuron, "rho": rho, "emission": emission, "iterations": None}
                sent = F.neuron_forward(x, 1.0, start, **given).spikes
                assert torch.equal(sent.sum(0), wanted), (lower, strict, rho, emission)
                assert sent.min() >= levels[0] and sent.max() <= levels[1]


def test_bounds_of_the_count_hold_when_planned():
    x, start = adversarial("fine", 8, 2000)
    neuron = Neuron(levels=(-2, 3), lower=0.0, count=(-3, 5))
    for emission in ("even", "front"):
        sent = F.neuron_forward(x, 1.0, start, neuron=neuron, rho=8, emission=emission).spikes
        assert torch.equal(sent.sum(0), (x.sum(0) + start).floor().clamp(-3, 5))


def test_blocks_carry_over_what_is_left():
    x, start = adversarial("fine", 4, 2000)
    x = torch.cat([x, torch.zeros(4, 2000).double()])
    given = {"neuron": Neuron(levels=(0, 2)), "rho": 4, "emission": "block"}
    sent = F.neuron_forward(x, 1.0, start, **given).spikes
    total = x.sum(0) + start
    assert torch.equal(sent[:4].sum(0), total.floor().clamp(0, 8))
    left = total - sent[:4].sum(0)
    assert torch.equal(sent[4:].sum(0), left.floor().clamp(0, 8))


def test_levels_are_the_largest_that_are_reached():
    """Against every level, compared one by one, at the thresholds and beside them."""
    for theta in (0.1, 0.7, 1.0, 3e-3):
        one = torch.tensor(theta)
        k = torch.arange(0, 3000)
        first = 0.6 * one
        at = first + k * one
        near = [at, torch.nextafter(at, at + 1), torch.nextafter(at, at - 1)]
        x = torch.stack(near).view(1, -1)
        neuron = Neuron(levels=(0, 2500), upper=0.6)
        count = F.neuron_forward(x, theta, 0.0, neuron=neuron, return_count=True).spike_count
        assert torch.equal(count, (x[0, :, None] >= at[:2500]).sum(1).int())
