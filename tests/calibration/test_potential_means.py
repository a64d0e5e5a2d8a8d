"""fit_potentials: against a plain loop, and what leaves the network as it was."""

import pytest
import torch
from ann_pairs import (
    REFUSED,
    SITES,
    assert_refused,
    batches_of,
    equal_states,
    network_of,
    plain_potentials,
    small,
    state_of,
)
from rival_networks import images_of
from torch import nn

from cos_ext import convert, evaluate, fit_potentials, load_network, spread_v_init

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(network, ann, batches):
    return fit_potentials(network, ann, batches, progress=False)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_potentials_of_a_plain_loop(steps):
    ann, batches = small(), batches_of(5, 3, 4)
    network = network_of(ann, steps)
    found = plain_potentials(ann, torch.cat(batches), steps)
    fitted = fit(network, ann, iter([*batches, batches[0][:0]]))
    assert list(fitted) == list(SITES)
    for site, node in network.nodes().items():
        assert (fitted[site] - found[site]).abs().max() <= 1e-12, site
        assert torch.equal(node.v_init, fitted[site]) and fitted[site].abs().max() > 0.01
        share = (node.v_threshold / (2 * steps)).flatten()
        assert torch.equal(node.step_bias, share.expand(node.step_bias.shape))
    assert network.static_calibration is None and network.watch_steps == 0


def test_potentials_that_were_spread_before_are_so_once():
    ann, batches = small(), batches_of(5)
    network, spread = (network_of(ann, 3) for _ in range(2))
    spread_v_init(spread)
    fit(network, ann, batches)
    fit(spread, ann, batches)
    assert equal_states(state_of(spread), state_of(network))


def test_batches_threads_and_parts_play_no_part():
    ann, x = small(), batches_of(12)[0]
    fits = []
    for split, threads, limit in ((12, 1, None), (5, 2, "auto"), (1, 1, 20_000)):
        torch.set_num_threads(threads)
        network = network_of(ann, 3)
        network.memory_limit = limit
        fits.append(fit(network, ann, x.split(split)))
    torch.set_num_threads(1)
    for other in fits[1:]:
        assert all((other[site] - fits[0][site]).abs().max() <= 1e-12 for site in SITES)


def test_it_is_saved_with_the_network(tmp_path):
    ann, batches = small(), batches_of(5)
    network = network_of(ann, 3)
    fit(network, ann, batches)
    network.save(tmp_path / "fitted.safetensors")
    again = load_network(tmp_path / "fitted.safetensors", ann)
    assert torch.equal(again(batches[0]), network(batches[0]))


def test_it_helps_on_images_that_it_was_not_fitted_on(shipped_model, test_set):
    network = convert(shipped_model, timesteps=2)
    subset = test_set.first(200)
    plain = evaluate(network, subset.batches(50), progress=False)
    fit(network, shipped_model, [images_of(test_set, 64, start=9000)])
    fitted = evaluate(network, subset.batches(50), progress=False)
    assert fitted.accuracy[-1] > plain.accuracy[-1] + 0.05 and fitted.latency == plain.latency


def test_a_max_pooling_moved_before_the_neurons():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    ann = nn.Sequential(*layers).double().eval()
    network = convert(ann, timesteps=2, thresholds={"1": 1.0}, max_pool="before")
    x = batches_of(6)[0]
    current = ann[2](ann[0](x)) + 0.25
    first = (current >= 1).double()
    second = (2 * current - first >= 1).double()
    missing = ann[:3](x) - (first + second) / 2
    assert (fit(network, ann, [x])["1"] - 2 * missing.mean(0)).abs().max() <= 1e-12


HOSTILE = REFUSED


@pytest.mark.parametrize("error, words, changed", HOSTILE, ids=[words for _, words, _ in HOSTILE])
def test_what_is_refused_leaves_the_network_as_it_was(error, words, changed):
    assert_refused(fit, error, words, changed)


def test_networks_that_are_refused():
    ann, batches = small(), batches_of(2)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Sequential"):
        fit(ann, ann, batches)
    with pytest.raises(ValueError, match="must have rho = 0"):
        fit(network_of(ann, 2, rho=2), ann, batches)
    with pytest.raises(ValueError, match="must not be trainable"):
        fit(network_of(ann, 2, trainable=True), ann, batches)
    network = network_of(ann, 2)
    fit(network, ann, batches)
    before = state_of(network)
    with pytest.raises(ValueError, match=r"v\(0\) must be one number .*convert anew"):
        fit(network, ann, batches)
    assert equal_states(state_of(network), before)


def test_images_of_several_sizes_are_refused():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    ann = nn.Sequential(*layers).double().eval()
    network = convert(ann, timesteps=2, thresholds={"1": 1.0})
    before = state_of(network)
    sizes = [torch.rand(2, 1, n, n).double() for n in (8, 9)]
    with pytest.raises(ValueError, match="the same neurons every time: '1' has"):
        fit(network, ann, sizes)
    assert equal_states(state_of(network), before)


def test_a_failure_in_the_last_layer_leaves_the_network_as_it_was():
    ann, batches = small(), batches_of(3)
    network = network_of(ann, 2)
    handle = network.nodes()["6"].register_forward_pre_hook(lambda m, a: 1 / 0)
    before = state_of(network)
    with pytest.raises(ZeroDivisionError):
        fit(network, ann, batches)
    assert equal_states(state_of(network), before)
    handle.remove()
    assert network(batches[0]).isfinite().all()
