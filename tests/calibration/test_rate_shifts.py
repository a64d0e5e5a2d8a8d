"""fit_rate_shift: against a plain loop over quantised activations, and what leaves the network as
it was.
"""

import pytest
import torch
from ann_pairs import (
    REFUSED,
    SITES,
    assert_refused,
    batches_of,
    equal_states,
    layers_of,
    network_of,
    plain_shifts,
    small,
    state_of,
    wide,
)

from cos_ext import Neuron, fit_rate_shift, load_network

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(network, ann, batches, **options):
    return fit_rate_shift(network, ann, batches, progress=False, **options)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("beta", [0.99, 0.5, 0.0])
def test_the_shifts_of_a_plain_loop(steps, beta):
    ann, batches = small(), batches_of(5, 3, 4)
    network = network_of(ann, steps)
    psi, phi = plain_shifts(ann, batches, steps, beta)
    fitted = fit(network, ann, iter(batches), momentum=beta)
    assert list(fitted) == list(SITES[:2])  # the third has no positions
    for site, shifts in fitted.items():
        for ours, theirs in zip(shifts, (psi[site], phi[site])):
            assert ours.shape == (len(theirs), 1, 1)
            assert (ours.flatten() - theirs).abs().max() <= 1e-12, site
        assert max(each.abs().max() for each in shifts) > 1e-4
        node = network.nodes()[site]
        theta = node.v_threshold
        assert (node.v_init - theta / 2 - steps * shifts[0]).abs().max() <= 1e-12
        assert (node.emitted - theta - shifts[1]).abs().max() <= 1e-12
    assert (network.rho, network.emission, network.watch_steps) == (steps, "front", steps)
    # The mean over T steps is what the quantised ANN with the shifts answers.
    into = batches[0]
    for site, make, theta in layers_of(ann):
        x = make(into)
        own = (psi[site], phi[site]) if x.dim() == 4 else (0 * psi[site], 0 * phi[site])
        shifted = (x + wide(own[0], x)) * steps + theta / 2
        into = (shifted / theta).floor().clamp(0, steps) / steps * (theta + wide(own[1], x))
    assert (network(batches[0]).mean(0) - ann[7](into)).abs().max() <= 1e-9


def test_settings_of_single_layers_are_taken_back_but_for_their_neurons():
    ann, batches = small(), batches_of(3)
    network = network_of(ann, 2)
    network.set_layer("1", neuron=Neuron(levels=(0, 2)), emission="even", iterations=None)
    fit(network, ann, batches)
    assert network.nodes()["1"].emission == "front" and network.iterations == 1
    assert network.nodes()["1"].neuron.levels == (0, 2) and network.nodes()["3"].rho == 2
    assert network.nodes()["6"].neuron is None
    with pytest.raises(ValueError, match="rho must be 0 with a ladder"):
        ladder = network_of(ann, 2)
        ladder.neuron = Neuron(ladder=2)
        fit(ladder, ann, batches)


def test_another_fit_goes_on_from_the_first():
    ann, batches = small(), batches_of(3)
    network = network_of(ann, 2)
    first = fit(network, ann, batches, momentum=0.0)
    second = fit(network, ann, batches, momentum=0.0)
    for site, (psi, _) in second.items():
        node = network.nodes()[site]
        both = node.v_threshold / 2 + 2 * (first[site][0] + psi)
        assert (node.v_init - both).abs().max() <= 1e-12


def test_it_is_saved_with_the_network(tmp_path):
    ann, batches = small(), batches_of(5)
    network = network_of(ann, 3)
    fit(network, ann, batches)
    network.save(tmp_path / "fitted.safetensors")
    again = load_network(tmp_path / "fitted.safetensors", ann)
    assert torch.equal(again(batches[0]), network(batches[0])) and again.emission == "front"


def test_parts_threads_and_settings_of_memory_play_no_part():
    ann, batches = small(), batches_of(6, 6)
    fits = []
    for threads, limit in ((1, None), (2, "auto"), (1, 20_000)):
        torch.set_num_threads(threads)
        network = network_of(ann, 3)
        network.memory_limit = limit
        fits.append(fit(network, ann, batches))
    torch.set_num_threads(1)
    for other in fits[1:]:
        for site, shifts in fits[0].items():
            assert all((a - b).abs().max() <= 1e-12 for a, b in zip(other[site], shifts))


HOSTILE = [
    *REFUSED,
    (TypeError, "momentum must be a float", {"momentum": None}),
    (ValueError, r"momentum must lie in \[0, 1\), got 1.0", {"momentum": 1}),
    (ValueError, r"momentum must lie in \[0, 1\), got -0.1", {"momentum": -0.1}),
]


@pytest.mark.parametrize("error, words, changed", HOSTILE, ids=[words for _, words, _ in HOSTILE])
def test_what_is_refused_leaves_the_network_as_it_was(error, words, changed):
    assert_refused(fit, error, words, changed)


def test_networks_that_are_refused_and_an_interrupt():
    ann, batches = small(), batches_of(2)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Sequential"):
        fit(ann, ann, batches)
    with pytest.raises(ValueError, match="must not be trainable"):
        fit(network_of(ann, 2, trainable=True), ann, batches)
    network = network_of(ann, 2)
    network.neuron = Neuron(prediction=True)
    before = state_of(network)
    with pytest.raises(ValueError, match="rho must be 0 with prediction"):
        fit(network, ann, batches)
    assert equal_states(state_of(network), before)

    def interrupted():
        yield batches[0]
        raise KeyboardInterrupt

    network = network_of(ann, 2)
    before = state_of(network)
    with pytest.raises(KeyboardInterrupt):
        fit(network, ann, interrupted())
    assert equal_states(state_of(network), before)
