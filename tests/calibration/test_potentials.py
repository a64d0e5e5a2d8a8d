"""fit_v_init against plain torch over all data at once, in any split; the shipped network.

Interruptions, files and failures: test_potential_files.py.
"""

import dataclasses

import pytest
import torch
from fitted_networks import RHO, Small, fit, small, small_network
from hypothesis import given, settings
from hypothesis import strategies as st
from untraced import untraced

from cos_ext import IFNode, convert, evaluate, reference
from cos_ext.calibration.shift_statistics import PER, STATISTICS, ShiftStatistic

pytestmark = pytest.mark.usefixtures("one_thread")

BIN = 2 ** (1 / 16)  # by which a median may be off


class Untraceable(Small):
    def forward(self, x):
        untraced(x)
        return super().forward(x)


@pytest.fixture
def images():
    return (torch.randn(50, 2, 6, 6, dtype=torch.float64) * 16).round() / 16


def currents(network, images):
    """Currents of the network's nodes [S, B, *neurons] by site."""
    seen, hooks = {}, []
    for site, node in network.nodes().items():

        def note(node, args, site=site):
            x, steps = args[0].clone(), node.timesteps
            seen[site] = (
                x.expand(steps, *x.shape) if node.static_input else x.unflatten(0, (steps, -1))
            )

        hooks.append(node.register_forward_pre_hook(note))
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


def expected(shift, psi, theta, per, statistic):
    """A statistic [*neurons] or [C, 1, ...] of Δ and ψ [B, *neurons], by its definition."""
    shape = shift.shape[1:]
    if per == "channel":
        shape = (shape[0], *[1] * (len(shape) - 1))
        shift, psi = (x.transpose(0, 1).flatten(1).T for x in (shift, psi))
    found = {
        "mean": lambda: shift.double().mean(0),
        "median": lambda: shift.sort(0).values[(len(shift) - 1) // 2],
        "vote": lambda: theta * ((psi > 0).sum(0) - (psi < 0).sum(0)).double() / len(psi),
    }
    return found[statistic]().reshape(shape)


def check(shift, x_seq, theta, v_init, per, statistic, iterations=1, rho=RHO):
    wanted = reference.calibrate_v_init(x_seq[:rho], theta, v_init, rho=rho, iterations=iterations)
    wanted = expected(wanted.v_init - v_init, wanted.offset_spikes, theta, per, statistic)
    assert shift.shape == wanted.shape and shift.dtype == torch.float64
    if statistic == "median":
        assert torch.equal(shift == 0, wanted == 0)
        ratio = (shift / wanted)[wanted != 0]
        assert ((ratio < BIN * 1.001) & (ratio > 1 / BIN / 1.001)).all()
    else:
        torch.testing.assert_close(shift, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_each_layer_is_fitted_to_what_it_sees_at_inference(statistic, per, images):
    network = small_network()
    before = {site: node.v_init for site, node in network.nodes().items()}
    shifts = fit(network, images.split(16), per=per, statistic=statistic)
    assert list(shifts) == list(network.nodes()) and network.rho == 0
    seen = currents(network, images)  # the fitted network at T = RHO
    for site, node in network.nodes().items():
        check(shifts[site], seen[site], 0.5, before[site], per, statistic)
        assert torch.equal(node.v_init, before[site] + shifts[site])
    if statistic != "median":
        assert sum(bool(shift.any()) for shift in shifts.values()) == 3  # all but the static one
    again = small_network()
    again.load_state_dict(network.state_dict())
    again.rho = 0
    assert torch.equal(again(images), network(images))


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_pass_sees_what_calibrated_layers_emit(statistic, per, images):
    network = small_network(iterations=None)
    before = {site: node.v_init for site, node in network.nodes().items()}
    seen = currents(network, images)
    shifts = fit(network, iter(images.split(16)), per=per, statistic=statistic, sequential=False)
    for site in network.nodes():
        check(shifts[site], seen[site], 0.5, before[site], per, statistic, iterations=None)


def test_static_currents_that_make_offset_spikes(images):
    """From v_init > θ negative constant currents fire once too often, which they never do from
    θ/2.
    """
    network = small_network()
    node = network.nodes()["act1"]
    node.v_init = torch.tensor(0.75, dtype=torch.float64)
    assert node.static_input
    seen = currents(network, images)["act1"]
    shift = fit(network, images.split(16))["act1"]
    assert (shift < 0).any()
    check(shift, seen, 0.5, 0.75, "neuron", "mean")


def test_layers_of_their_own_and_rho(images):
    network = small_network(rho=3)
    network.set_layer("act2", rho=6, iterations=None)
    network.set_layer("act3", rho=1)
    shifts = fit(network, images.split(25))
    assert list(shifts) == ["act1", "act2", "act4"]
    assert network.static_calibration == {
        "rho": 3,
        "iterations": 1,
        "per": "neuron",
        "statistic": "mean",
        "sequential": True,
        "samples": 50,
        "layers": {"act2": {"rho": 6, "iterations": None}, "act3": {"rho": 1}},
    }
    assert network.timesteps == RHO and len(network(images)) == RHO
    network.timesteps = 6
    seen = currents(network, images)
    check(shifts["act2"], seen["act2"], 0.5, 0.25, "neuron", "mean", iterations=None, rho=6)
    check(shifts["act4"], seen["act4"], 0.5, 0.25, "neuron", "mean", rho=3)
    # rho given is for all layers, and a network with rho = 0 is watched for its own time-steps.
    ours, theirs = small_network(rho=0), small_network(rho=2)
    ours.set_layer("act2", rho=0)
    theirs.set_layer("act2", rho=2)
    ours, theirs = fit(ours, images.split(25)), fit(theirs, images.split(25), rho=RHO)
    assert list(ours) == list(theirs) and all(
        torch.equal(ours[site], theirs[site]) for site in ours
    )


def test_a_model_that_cannot_be_traced_is_fitted_alike(images):
    traced = convert(small(), timesteps=RHO, rho=RHO, max_pool="spike")
    walked = convert(
        small(Untraceable), timesteps=RHO, rho=RHO, max_pool="spike", example_input=images[:4]
    )
    assert not isinstance(walked.module, torch.fx.GraphModule)
    ours, theirs = fit(walked, images.split(20)), fit(traced, images.split(20))
    assert list(ours) == list(theirs) and all(
        torch.equal(ours[site], theirs[site]) for site in ours
    )
    torch.testing.assert_close(walked(images), traced(images))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_statistics_of_any_currents_in_any_split(data):
    draw = data.draw
    per, statistic = draw(st.sampled_from(PER)), draw(st.sampled_from(STATISTICS))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    neurons = draw(st.sampled_from([(3,), (2, 3), (2, 3, 2)]))
    iterations, rho = draw(st.sampled_from([1, 2, None])), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    theta = 0.5 + torch.rand(
        (neurons[0], *[1] * (len(neurons) - 1)), generator=generator, dtype=dtype
    )
    drift = draw(st.sampled_from([-0.6, 0.0, 0.6])) * torch.linspace(1, -1, rho, dtype=dtype)
    x = (
        torch.randn(rho, 12, *neurons, generator=generator, dtype=dtype)
        + drift.view(-1, *[1] * (len(neurons) + 1)) * 3
    )
    node = IFNode(theta)
    cut = draw(st.integers(1, 11))
    results = []
    for parts in ((12,), (cut, 12 - cut)):
        seen = ShiftStatistic(
            "site", {"statistic": statistic, "per": per}, torch.Size(neurons), x.device
        )
        for part in x.split(parts, 1):
            seen.see(node, part, rho, iterations)
        results.append(seen.result(node))
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-15)
    start = theta / 2
    found = reference.calibrate_v_init(x, theta, start, rho=rho, iterations=iterations)
    shift, psi = found.v_init.double() - start.double(), found.offset_spikes
    if statistic == "vote":  # in units of θ, which differs between channels
        theta = theta.double()
        wanted = theta * expected(shift, psi, 1.0, per, statistic)
        torch.testing.assert_close(results[0], wanted, rtol=1e-12, atol=0)
    elif statistic == "mean":
        torch.testing.assert_close(
            results[0], expected(shift, psi, None, per, statistic), rtol=1e-10, atol=1e-10
        )
    else:
        wanted = expected(shift, psi, None, per, statistic)
        assert torch.equal(results[0] == 0, wanted == 0)
        size = wanted.abs().minimum(theta.double() * 2 ** (31 / 8))  # beyond which sizes are one
        ratio = (results[0] / size)[wanted != 0].abs()
        assert ((ratio < BIN * 1.001) & (ratio > 1 / BIN / 1.001)).all()
        assert torch.equal(results[0].sign(), wanted.sign())


@pytest.mark.parametrize("sequential", [True, False])
def test_the_split_plays_no_part(sequential, images):
    whole, labelled = small_network(), small_network()
    ours = fit(whole, [images], sequential=sequential)
    batches = [(x, torch.zeros(len(x))) for x in images.split([1, 7, 30, 12])] + [
        (images[:0], torch.zeros(0))
    ]
    theirs = fit(labelled, batches, sequential=sequential)
    for site in ours:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-12, atol=1e-15)
    assert labelled.static_calibration["samples"] == 50


@pytest.mark.slow
def test_the_shipped_network_answers_better(shipped_model, test_set, capsys):
    """Fitted on 250 images, labels unused, and measured on 500 others."""
    chosen = slice(-250, None)
    seen = dataclasses.replace(
        test_set, images=test_set.images[chosen], labels=test_set.labels[chosen]
    )
    network = convert(shipped_model, timesteps=4)
    before = evaluate(network, test_set.first(500).batches(50), progress=False)
    fit(network, seen.batches(50))
    after = evaluate(network, test_set.first(500).batches(50), progress=False)
    with capsys.disabled():
        for t, (a, b) in enumerate(zip(before.accuracy, after.accuracy), 1):
            print(f"\nt = {t}: {a:.2%} uncalibrated, {b:.2%} from static potentials", end="")
    assert before.latency == after.latency == [1, 2, 3, 4]
    gains = [b - a for a, b in zip(before.accuracy, after.accuracy)]
    assert gains[1] > 0.02 and gains[2] > 0 and gains[3] > 0
