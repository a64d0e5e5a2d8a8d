"""The general neuron's operator: what torch asks of it, what it refuses, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import layouts
from general_jobs import Job, assert_equal, jobs
from hypothesis import given, settings

from cos_ext import Neuron
from cos_ext import functional as F
from cos_ext.surrogate import ATan

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = {"return_v": True, "return_count": True}
# s_min ... gated, as csrc/ops.cpp orders them
PLAIN = (0, 4, -math.inf, math.inf, 1.0, math.inf, True, 1.0, 0, False, 0, 0.75, False)
SIGNED = (-2, 3, -math.inf, math.inf, 1.0, 0.5, True, 1.0, 0, False, 0, 0.75, False)
LADDER = (0, 1, -math.inf, math.inf, 1.0, math.inf, True, 0.9, 1, True, 4, 0.75, True)
NONE = (False, False, False, False)


def currents(*shape, dtype=torch.float32):
    return (torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35).to(dtype)


def operands(x):
    """Sample inputs of general_forward, by name."""
    bias, emitted = x.new_zeros(4, 3), x.new_ones(3)
    scales = torch.ones(4, dtype=torch.float64)
    return {
        "levels": (x, None, 1.0, None, None, None, *PLAIN, None, None, None, 0, 0, 0, *NONE),
        "signed": (
            *(x, None, 1.0, None, 0.4, None, *SIGNED, emitted, bias, None),
            *(3, -1, 0, True, True, True, True),
        ),
        "ladder": (
            *(x, x.new_ones(3), 0.0, x.new_zeros(3), None, None, *LADDER, None, bias[:, :1]),
            *(scales, 0, 0, 0, True, True, False, False, emitted, emitted, x.clone()),
        ),
        "block": (
            *(x, None, 1.0, None, None, None, *SIGNED, None, None, None, 2, 0, 3),
            *(False, True, False, False),
        ),
    }


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["levels", "signed", "ladder", "block"])
def test_opcheck(name, inplace, dtype):
    x = currents(4, 2, 3, dtype=dtype)
    operator = torch.ops.cos_ext.general_forward_ if inplace else torch.ops.cos_ext.general_forward
    torch.library.opcheck(operator.default, operands(x)[name])


def test_fakes_have_the_layout_of_the_results():
    neuron = Neuron(levels=(-1, 3), lower=0.0, step_bias=torch.zeros(4, 3))
    meta_neuron = neuron.with_tensors(None, torch.zeros(4, 3, device="meta"))
    for x in layouts(currents(4, 2, 3, 4, 5)).values():
        real = F.neuron_forward(x, 1.0, neuron=neuron, rho=2, return_offset=True, **ALL)
        meta = torch.empty_strided(x.shape, x.stride(), device="meta")
        fake = F.neuron_forward(meta, 1.0, neuron=meta_neuron, rho=2, return_offset=True, **ALL)
        for a, b in zip(real, fake):
            assert (a is None) == (b is None)
            assert a is None or (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_compiles_without_graph_breaks():
    bias = torch.randn(6, 7) / 4
    neurons = (
        Neuron(levels=(-2, 4), lower=0.0, step_bias=bias, emitted=0.5),
        Neuron(ladder=3, prediction=True, step_scale=(1.0, 2.0, 1.0, 1.0, 0.5, 1.0)),
    )

    def function(x, theta):
        a = F.neuron_forward(x * 2, theta, neuron=neurons[0], rho=3, return_offset=True)
        b = F.neuron_forward(x + 1, theta, neuron=neurons[1], return_count=True)
        y = x * 3
        F.neuron_forward(y, theta, neuron=neurons[0], inplace=True)
        return a.spikes + b.spikes + y, a.offset_spikes, b.spike_count

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        x, theta = currents(6, batch, 7), torch.rand(7) + 0.5
        for ours, expected in zip(compiled(x, theta), function(x, theta)):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"levels": 5}, TypeError, "levels must be two numbers"),
        ({"levels": (0, 0)}, ValueError, "s_max must be >= 1"),
        ({"levels": (1, 2)}, ValueError, "s_min must be <= 0"),
        ({"levels": (0, 2**21)}, ValueError, "s_max must be <= 1048576"),
        ({"levels": (0, 1.5)}, TypeError, "s_max must be an int"),
        ({"levels": (-1, 1)}, ValueError, "negative levels need lower"),
        ({"lower": 0.0}, ValueError, "lower needs negative levels"),
        ({"levels": (-1, 1), "lower": -0.1}, ValueError, "lower must be >= 0"),
        ({"levels": (-1, 1), "lower": 2.0**21}, ValueError, "lower must be >= 0 and <= 1048576"),
        ({"levels": (-1, 1), "lower": "0"}, TypeError, "lower must be a float or None"),
        ({"upper": 0.0}, ValueError, "upper must be positive"),
        ({"upper": 1e8}, ValueError, "upper must be <= 1048576"),
        ({"upper": float("nan")}, ValueError, "upper must not be NaN"),
        ({"count": 3}, TypeError, "count must be two numbers"),
        ({"count": (1, None)}, ValueError, "n_min must be <= 0"),
        ({"count": (None, -1)}, ValueError, "n_max must be >= 0"),
        ({"leak": 0.0}, ValueError, "leak must be positive"),
        ({"leak": math.inf}, ValueError, "leak must be positive and finite"),
        ({"strict": 1}, TypeError, "strict must be True or False"),
        ({"prediction": torch.tensor(True)}, TypeError, "prediction must be True or False"),
        ({"silent": -1}, ValueError, "silent must be >= 0"),
        ({"ladder": 0}, ValueError, "ladder must be >= 1"),
        ({"ladder": 9}, ValueError, "ladder must be <= 8"),
        ({"ladder": 3, "levels": (0, 2)}, ValueError, "a ladder goes with no levels"),
        ({"ladder": 3, "emitted": 1.0}, ValueError, "a ladder goes with no levels"),
        ({"gated": True}, ValueError, "gated is for a ladder"),
        ({"ratio": 0.5}, ValueError, "ratio must lie in"),
        ({"emitted": math.inf}, ValueError, "emitted must be finite"),
        ({"emitted": "1"}, TypeError, "emitted must be a float, a tensor or None"),
        ({"step_bias": 1.0}, TypeError, "step_bias must be a tensor"),
        ({"step_bias": torch.zeros(2, 2, 2)}, TypeError, "step_bias must be a tensor"),
        ({"step_scale": ()}, TypeError, "step_scale must be numbers"),
        ({"step_scale": (1.0, 0.0)}, ValueError, "step_scale must be positive"),
        ({"step_scale": (1.0,), "emitted": 1.0}, ValueError, "emitted must be None"),
    ],
)
def test_a_neuron_that_makes_no_sense(given, error, message):
    with pytest.raises(error, match=message):
        Neuron(**given)


X = torch.ones(4, 2, 3)
BOUNDED = Neuron(levels=(-1, 1), lower=0.0, count=(0, 3))
TIED = Neuron(levels=(-1, 1), lower=0.0, strict=False)


@pytest.mark.parametrize(
    "neuron, options, error, message",
    [
        (None, {}, TypeError, "neuron must be a cos_ext.Neuron"),
        (Neuron(levels=(0, 2**20)), {"x": torch.ones(17, 1)}, ValueError, "levels times steps"),
        (Neuron(step_bias=torch.zeros(3)), {}, ValueError, "each of the 4 steps"),
        (Neuron(step_bias=torch.zeros(4, 5)), {}, ValueError, "step_bias must broadcast"),
        (Neuron(step_bias=torch.zeros(4).int()), {}, TypeError, "step_bias must have x_seq's"),
        (Neuron(emitted=torch.ones(4)), {}, ValueError, "emitted must broadcast"),
        (Neuron(emitted=torch.ones(3).half()), {}, TypeError, "emitted must have x_seq's dtype"),
        (Neuron(step_scale=(1.0,)), {}, ValueError, "each of the 4 steps"),
        (Neuron(prediction=True), {"v_reset": 0.0}, ValueError, "prediction needs soft reset"),
        (Neuron(), {"emission": "even"}, ValueError, "needs rho >= 1"),
        (Neuron(), {"emission": "odd", "rho": 2}, ValueError, "emission must be one of"),
        (Neuron(), {"rho": 5}, ValueError, "rho must lie in 1..T"),
        (Neuron(), {"rho": 2, "v_reset": 0.0}, ValueError, "hard reset"),
        (Neuron(ladder=2), {"rho": 2}, ValueError, "a ladder"),
        (Neuron(prediction=True), {"rho": 2}, ValueError, "prediction"),
        (Neuron(leak=0.5), {"rho": 2}, ValueError, "a leak"),
        (Neuron(silent=1), {"rho": 2}, ValueError, "silent steps"),
        (Neuron(step_scale=(1.0,) * 4), {"rho": 2}, ValueError, "step_scale"),
        (Neuron(upper=0.5), {"rho": 2}, ValueError, "an upper other than 1"),
        (BOUNDED, {"rho": 2}, ValueError, "a bounded count"),
        (BOUNDED, {"rho": 2, "emission": "block"}, ValueError, "a bounded count"),
        (TIED, {"rho": 2}, ValueError, "lower 0 and strict False"),
        (Neuron(), {"rho": 2, "emission": "even", "return_v": True}, ValueError, "return_v"),
        (Neuron(), {"rho": 2, "emission": "block", "return_v_init": True}, ValueError, "block"),
        (Neuron(), {"rho": 2, "emission": "block", "return_offset": True}, ValueError, "block"),
        (Neuron(emitted=X[0]), {"x": X, "inplace": True}, ValueError, "emitted must not share"),
        (Neuron(step_bias=X[:, 0]), {"x": X, "inplace": True}, ValueError, "must not share"),
        (Neuron(emitted=torch.ones(3, requires_grad=True)), {"rho": 2}, RuntimeError, "gradient"),
    ],
)
def test_arguments_that_do_not_fit(neuron, options, error, message):
    x = options.pop("x", torch.ones(4, 2, 3))
    with pytest.raises(error, match=message):
        F.neuron_forward(x, 1.0, neuron=neuron, **options)


HOSTILE = [
    {"s_min": 1},
    {"s_max": 0},
    {"s_max": 2**62},
    {"s_min": -(2**62)},
    {"n_min": math.nan},
    {"n_max": -1.0},
    {"upper": math.nan},
    {"upper": 1e30},
    {"lower": 1.0},
    {"s_min": -1, "lower": math.nan},
    {"s_min": -1, "lower": math.inf},
    {"leak": math.nan},
    {"silent": -(2**62)},
    {"rungs": 2**40},
    {"rungs": -(2**40)},
    {"ratio": math.nan},
    {"rungs": 2, "emitted": torch.ones(())},
    {"emitted": torch.ones(3), "step_scale": torch.ones(4).double()},
    {"step_bias": torch.ones(3)},
    {"step_bias": torch.ones(())},
    {"step_bias": torch.ones(4, 1, 1, 3)},
    {"step_bias": torch.ones(4).int()},
    {"step_scale": torch.ones(4)},
    {"step_scale": torch.ones(3).double()},
    {"step_scale": torch.ones(8).double()[::2]},
    {"emission": 1},
    {"emission": 7, "rho": 2},
    {"emission": -1, "rho": 2},
    {"emission": 2**33, "rho": 2},
    {"emission": 4, "rho": 2},
    {"rho": -1},
    {"rho": 2**40},
    {"rho": 2, "iterations": -5},
    {"rho": 2, "leak": 0.5},
    {"rho": 2, "upper": 0.5},
    {"rho": 2, "v_reset": 0.0},
    {"rho": 2, "n_max": 3.0},
    {"rho": 2, "s_min": -1, "lower": 0.0, "strict": False},
    {"rho": 2, "emission": 3, "return_v_init": True},
    {"rho": 2, "emission": 3, "return_offset": True},
    {"return_v_init": True},
    {"rho": 2, "emission": 1, "return_v": True},
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_direct_calls_are_refused(case):
    names = "s_min s_max n_min n_max upper lower strict leak silent prediction rungs ratio gated"
    asked = ("return_v", "return_count", "return_v_init", "return_offset")
    given = dict(zip(names.split(), PLAIN))
    given |= {"x": torch.ones(4, 2, 3), "v_reset": None, "rho": 0, "iterations": 0, "emission": 0}
    given |= {"emitted": None, "step_bias": None, "step_scale": None, **dict.fromkeys(asked, False)}
    given |= HOSTILE[case]
    x, reset = given.pop("x"), given.pop("v_reset")
    rest = [given[name] for name in names.split()]
    rest += [given[name] for name in ("emitted", "step_bias", "step_scale")]
    rest += [given[name] for name in ("rho", "iterations", "emission", *asked)]
    with pytest.raises(RuntimeError):
        torch.ops.cos_ext.general_forward(x, None, 1.0, None, None, reset, *rest)


def test_forward_where_a_gradient_is_needed_is_the_kernels():
    @settings(max_examples=150, derandomize=True)
    @given(jobs())
    def check(job: Job) -> None:
        neuron = job.options["neuron"]
        if job.options["rho"] or neuron.ladder or neuron.levels[1] - neuron.levels[0] > 40:
            return
        expected = job.run()
        job.x = torch.where(job.x.isfinite(), job.x, torch.zeros(())).to(job.x.dtype)
        expected = job.run()
        job.x.requires_grad_()
        assert_equal(job.run(), expected)

    check()


def steps_by_hand(x, theta, start, neuron, reset):
    """The gradient's own loop, by autograd through sums of smooth steps, written apart."""
    atan = ATan()
    v, n, mean, sent = start.expand(x.shape[1:]), 0.0, 0.0, []
    for t in range(x.shape[0]):
        m = neuron.leak * v + x[t]
        d = m - mean if neuron.prediction else m
        q = 0.0
        for k in range(1, neuron.levels[1] + 1):
            u = (d - (neuron.upper + k - 1) * theta) / theta
            q = q + atan(u) + ((u >= 0).double() - atan(u)).detach()
        for k in range(1, -neuron.levels[0] + 1):
            u = (-(neuron.lower + k - 1) * theta - d) / theta
            q = q - atan(u) - ((u > 0).double() - atan(u)).detach()
        if neuron.count[1] is not None:
            q = torch.where(n + q.detach() > neuron.count[1], neuron.count[1] - n + 0 * d, q)
        one = theta if neuron.emitted is None else neuron.emitted
        sent.append(q * one + mean)
        v = d - q * theta if reset is None else torch.where(q.detach() != 0, reset, d - q * theta)
        n = n + q.detach()
        mean = mean + q * one / (t + 1) if neuron.prediction else mean
    return torch.stack(sent)


@pytest.mark.parametrize(
    "neuron, reset",
    [
        (Neuron(levels=(0, 4)), None),
        (Neuron(levels=(-2, 3), lower=0.5, upper=0.75, leak=0.9), None),
        (Neuron(levels=(-1, 1), lower=0.5), 0.1),
        (Neuron(levels=(-2, 3), lower=0.5, prediction=True), None),
        (Neuron(levels=(0, 2), count=(None, 3)), None),
        (Neuron(levels=(0, 2), emitted=0.7), None),
    ],
)
def test_gradient_equals_a_loop_written_apart(neuron, reset):
    x = currents(6, 5, 7, dtype=torch.float64).requires_grad_()
    theta = (torch.rand(7).double() + 0.5).requires_grad_()
    start = torch.rand(7).double().requires_grad_()
    weight = torch.randn(6, 5, 7).double()
    given = {"neuron": neuron, "v_reset": reset, "surrogate": ATan()}
    ours = F.neuron_forward(x, theta, start, **given).spikes
    theirs = steps_by_hand(x, theta, start, neuron, reset)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    found = torch.autograd.grad((ours * weight).sum(), (x, theta, start))
    expected = torch.autograd.grad((theirs * weight).sum(), (x, theta, start))
    for a, b in zip(found, expected):
        assert b.abs().max() > 0 and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_what_has_no_gradient_says_so():
    x = torch.ones(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="a ladder has no gradient"):
        F.neuron_forward(x, 1.0, neuron=Neuron(ladder=2))
    with pytest.raises(RuntimeError, match="more than 1024 levels have no gradient"):
        F.neuron_forward(x, 1.0, neuron=Neuron(levels=(0, 2**20)))
    with pytest.raises(RuntimeError, match="inplace must be False"):
        F.neuron_forward(x, 1.0, neuron=Neuron(levels=(0, 2)), inplace=True)
    with pytest.raises(RuntimeError, match="calibration has no gradient"):
        F.neuron_forward(x, 1.0, neuron=Neuron(levels=(0, 2)), rho=2)
