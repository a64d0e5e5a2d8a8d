"""fit_step_bias and spread_v_init: against plain loops, and what leaves the network as it was."""

import copy

import pytest
import torch
import zoo
from ann_pairs import (
    REFUSED,
    SITES,
    THRESHOLDS,
    assert_refused,
    batches_of,
    equal_states,
    layers_of,
    network_of,
    plain_replay,
    plain_stepwise,
    small,
    state_of,
    wide,
)
from rival_networks import images_of

from cos_ext import (
    Neuron,
    calibrate_thresholds,
    convert,
    evaluate,
    fit_step_bias,
    load_network,
    spread_v_init,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = {"replay": (plain_replay, 0.4), "stepwise": (plain_stepwise, 0.5)}


def fit(network, ann, batches, **options):
    return fit_step_bias(network, ann, batches, progress=False, **options)


def close(fitted, found, atol=1e-12):
    assert list(fitted) == list(SITES)
    for site, step_bias in fitted.items():
        assert step_bias.shape == found[site].shape
        assert (step_bias + found[site]).abs().max() <= atol, site


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("levels", [1, 3])
def test_the_biases_of_a_plain_loop(variant, steps, levels):
    ann, batches = small(), batches_of(5, 3, 4)
    network = network_of(ann, steps, levels)
    plain, alpha = PLAIN[variant]
    found = plain(ann, batches, steps, alpha, levels)
    fitted = fit(network, ann, [(batch, torch.zeros(1)) for batch in batches], variant=variant)
    close(fitted, found)
    assert max(each.abs().max() for each in fitted.values()) > 0.01
    for site, node in network.nodes().items():
        assert torch.equal(node.step_bias, fitted[site]) and torch.equal(
            network._layers[site]["neuron"].step_bias, fitted[site]
        )
    # The neurons add it, and the network is what the loop ran.
    into = [batches[0]] * steps
    for site, make, theta in layers_of(ann):
        v, sent = torch.zeros_like(make(into[0])) + theta / 2, []
        for t in range(steps):
            m = v + make(into[t]) - wide(found[site][t], v)
            sent.append((m / theta).floor().clamp(0, levels) * theta)
            v = m - sent[t]
        into = sent
    assert (network(batches[0]) - torch.stack([ann[7](each) for each in into])).abs().max() <= 1e-9


def test_alpha_and_the_start_of_snn_calibration():
    ann, batches = small(), batches_of(5, 3)
    network = network_of(ann, 4)
    spread_v_init(network)
    heads = {site: node.step_bias.clone() for site, node in network.nodes().items()}
    for site, node in network.nodes().items():
        theta = torch.as_tensor(THRESHOLDS[site]).double()
        assert not node.v_init.any()
        expected = (theta / 8).flatten().expand(heads[site].shape if theta.dim() else 4)
        assert torch.equal(heads[site], expected)
    found = plain_stepwise(ann, batches, 4, 0.2, spread=True)
    fitted = fit(network, ann, batches, variant="stepwise", alpha=0.2)
    wanted = {
        site: each - (heads[site] if heads[site].dim() == 2 else heads[site][:, None])
        for site, each in found.items()
    }
    close(fitted, wanted)


def test_another_fit_goes_on():
    ann, batches = small(), batches_of(5, 3)
    network = network_of(ann, 3)
    fit(network, ann, batches[:1], variant="stepwise")
    fitted = fit(network, ann, batches[1:], variant="stepwise")
    close(fitted, plain_stepwise(ann, batches, 3, 0.5))


def test_spread_potentials_are_the_same_after_all_steps():
    x = batches_of(1)[0] / 4
    network, spread = (network_of(small(), 4) for _ in range(2))
    spread_v_init(spread)
    again = state_of(spread)
    spread_v_init(spread)  # there is nothing left to spread
    assert equal_states(state_of(spread), again)
    first = next(iter(SITES))
    sums = []
    for each in (network, spread):
        kept = []
        handle = each.nodes()[first].register_forward_hook(lambda m, a, s, k=kept: k.append(s))
        each(x)
        handle.remove()
        sums.append(kept[0].unflatten(0, (4, 1)))
    # Never earlier, and where the current is above 0 the same number in the end.
    assert (sums[0].cumsum(0) - sums[1].cumsum(0)).min() >= -1e-12
    assert sums[0][0].sum() > sums[1][0].sum()
    theta = THRESHOLDS[first].double()
    current = small()[0](x)
    late = network_of(small(), 4)
    spread_v_init(late, steps=8)
    assert torch.equal(late.nodes()[first].step_bias, spread.nodes()[first].step_bias / 2)
    assert torch.equal(sums[1].sum(0)[current > theta], sums[0].sum(0)[current > theta])


def test_it_is_saved_with_the_network(tmp_path):
    ann, batches = small(), batches_of(5)
    network = network_of(ann, 3)
    spread_v_init(network)
    fit(network, ann, batches)
    network.save(tmp_path / "fitted.safetensors")
    again = load_network(tmp_path / "fitted.safetensors", ann)
    assert torch.equal(again(batches[0]), network(batches[0]))
    with pytest.raises(ValueError, match="step_bias must have a value for each of the 4 steps"):
        network.timesteps = 4
        network(batches[0])


def test_parts_threads_and_settings_of_memory_play_no_part():
    ann, batches = small(), batches_of(6, 6)
    fits = []
    for threads, limit in ((1, None), (2, "auto"), (1, 20_000)):
        torch.set_num_threads(threads)
        network = network_of(ann, 3)
        network.memory_limit = limit
        fits.append(fit(network, ann, iter(batches)))
        assert network.memory_limit == limit
    torch.set_num_threads(1)
    for other in fits[1:]:
        assert all((other[site] - fits[0][site]).abs().max() <= 1e-12 for site in SITES)


def test_it_helps_on_images_that_it_was_not_fitted_on(shipped_model, test_set):
    network = convert(shipped_model, timesteps=2)
    subset = test_set.first(200)
    plain = evaluate(network, subset.batches(50), progress=False)
    images = images_of(test_set, 96, start=9000)
    fit(network, shipped_model, images.split(32), variant="stepwise")
    fitted = evaluate(network, subset.batches(50), progress=False)
    assert fitted.accuracy[-1] > plain.accuracy[-1] + 0.05 and fitted.latency == plain.latency


def test_a_max_pooling_moved_before_the_neurons_and_layers_called_twice():
    ann = zoo.prepared("rivals", lambda: zoo.ResNet(zoo.BasicBlock, max_pool=True))
    x = torch.randn(3, 3, 32, 32)
    sites = calibrate_thresholds(ann, [x], progress=False)
    network = convert(ann, timesteps=2, thresholds=dict.fromkeys(sites, 1.0), max_pool="before")
    fitted = fit(network, ann, [x])
    assert list(fitted) == list(network.nodes()) and network(x).isfinite().all()


@pytest.mark.parametrize("variant", PLAIN)
def test_sixteen_bits_and_an_emitted_value(variant):
    """A network in bfloat16 is fitted as the same one in float32 is, but for its rounding."""
    ann, fits = small(torch.float32), []
    batch = batches_of(8, dtype=torch.float32)[0]
    for dtype in (torch.float32, torch.bfloat16):
        own = copy.deepcopy(ann).to(dtype)
        emitted = torch.tensor([1.5, 0.75, 0.5], dtype=dtype).view(3, 1, 1)
        network = network_of(own, 3)
        network.set_layer("1", neuron=Neuron(emitted=emitted))
        fits.append(fit(network, own, [batch.to(dtype)], variant=variant))
        assert network.nodes()["1"].neuron.emitted.flatten().tolist() == [1.5, 0.75, 0.5]
    for site in SITES:
        assert fits[1][site].dtype == torch.bfloat16
        assert (fits[1][site].float() - fits[0][site]).abs().max() < 0.03, site


HOSTILE = [
    *REFUSED,
    (TypeError, "batches must yield tensors", {"batches": [["x"]]}),
    (TypeError, "alpha must be a float or None", {"alpha": "1"}),
    (ValueError, "alpha must be positive and finite, got 0.0", {"alpha": 0.0}),
    (ValueError, "alpha must be positive and finite, got inf", {"alpha": float("inf")}),
    (ValueError, "variant must be one of", {"variant": "a"}),
    (ValueError, "at least one sample", {"batches": [torch.zeros(0, 1, 8, 8)]}),
    (ValueError, "ann must have the network's dtype", {"ann": small(torch.float32)}),
]


@pytest.mark.parametrize("error, words, changed", HOSTILE, ids=[words for _, words, _ in HOSTILE])
def test_what_is_refused_leaves_the_network_as_it_was(error, words, changed):
    assert_refused(fit, error, words, changed)


def test_networks_that_are_refused():
    ann, batches = small(), batches_of(2)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Sequential"):
        fit(ann, ann, batches)
    with pytest.raises(TypeError, match="got a SpikingNetwork"):
        fit(network_of(ann, 2), network_of(ann, 2), batches)
    with pytest.raises(ValueError, match="must have rho = 0.*watch 2 steps"):
        fit(network_of(ann, 2, rho=2), ann, batches)
    with pytest.raises(ValueError, match="must not be trainable"):
        fit(network_of(ann, 2, trainable=True), ann, batches)
    with pytest.raises(ValueError, match="execution 'steps'"):
        counting = network_of(ann, 2, rho=2, emission="front")
        counting.execution = "counts"
        fit(counting, ann, batches)
    for neuron, words in (
        (Neuron(prediction=True), "prediction"),
        (Neuron(count=(0, 3), silent=1), "a bounded count and silent steps"),
        (Neuron(ladder=3, gated=True), "a gated ladder"),
    ):
        network = network_of(ann, 2)
        network.neuron = neuron
        before = state_of(network)
        with pytest.raises(ValueError, match=f"'1' must depend on their potential.*{words}"):
            fit(network, ann, batches)
        assert equal_states(state_of(network), before)
    network = network_of(ann, 2)
    network.nodes()["3"].v_init = torch.rand(2, 4, 4, dtype=torch.float64)
    before = state_of(network)
    with pytest.raises(ValueError, match=r"v\(0\) must be one number .* at '3'"):
        spread_v_init(network)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        spread_v_init(network, 0)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork"):
        spread_v_init(ann)
    assert equal_states(state_of(network), before)


def test_an_interrupt_in_the_second_batch_leaves_the_network_as_it_was():
    ann, batches = small(), batches_of(3)

    def interrupted():
        yield batches[0]
        raise KeyboardInterrupt

    network = network_of(ann, 2)
    fit(network, ann, batches)
    before, answer = state_of(network), network(batches[0])
    with pytest.raises(KeyboardInterrupt):
        fit(network, ann, interrupted())
    assert equal_states(state_of(network), before) and torch.equal(network(batches[0]), answer)
