"""fit_light: the biases against a plain computation, and what leaves the network as it was."""

import copy

import pytest
import torch
import zoo
from loops import run
from rival_networks import THRESHOLDS, images_of, in_double, plain_network, small
from torch import nn

import cos_ext
from cos_ext import convert, evaluate, fit_light

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_light(network, ann, x):
    """The biases of the light pipeline: layer after layer, each measured with the layers before it
    corrected.
    """
    desired, biases = {}, {}

    def note(site, a):
        desired[site] = a.mean((0, 2, 3))

    hooks = [
        ann.get_submodule(site).register_forward_hook(lambda m, i, a, site=site: note(site, a))
        for site in network.nodes()
    ]
    ann(x)
    for hook in hooks:
        hook.remove()
    for site in network.nodes():
        found = []

        def emitted(at, theta, v, x_seq, site=site, found=found):
            if at in biases:
                x_seq = x_seq + biases[at].view(-1, 1, 1)
            spikes = torch.where(run(x_seq, theta, v)[0], theta, 0.0)
            if at == site:
                found.append(spikes.mean((0, 1, 3, 4)))
            return spikes

        plain_network(network, x, emitted)
        biases[site] = desired[site] - found[0]
    return biases


def test_light_fits_the_biases_of_a_plain_computation(shipped_model, test_set):
    model = in_double(shipped_model)
    network = convert(model, timesteps=2, fuse=False)
    x = images_of(test_set, 4).double()
    expected = plain_light(network, model, x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fitted = fit_light(network, model, [x[:3], (x[3:], torch.zeros(1))], progress=False)
    assert network.calibration == "light" and list(fitted) == list(network.nodes())
    for site, node in network.nodes().items():
        assert node.bias.shape == (len(expected[site]), 1, 1)
        assert (node.bias.flatten() - expected[site]).abs().max() <= 1e-9, site
        assert torch.equal(fitted[site], node.bias)
    assert all(
        torch.equal(network.state_dict()[key], value) for key, value in before.items()
    )  # nothing else changed
    biases = {site: node.bias for site, node in network.nodes().items()}

    def corrected(site, theta, v, x_seq):
        return torch.where(run(x_seq + biases[site], theta, v)[0], theta, 0.0)

    assert torch.equal(network(x), plain_network(network, x, corrected))
    again = fit_light(
        network, model, iter([x]), progress=False
    )  # an earlier fit does not matter; a batch is as good as two
    assert all((again[site] - fitted[site]).abs().max() <= 1e-9 for site in fitted)
    assert network.watch_steps == 0 and not any(
        node._forward_hooks for node in network.nodes().values()
    )


def test_light_helps_on_images_that_it_was_not_fitted_on(shipped_model, test_set):
    network = convert(shipped_model, timesteps=1)
    subset = test_set.first(200)
    plain = evaluate(network, subset.batches(50), progress=False)
    fit_light(network, shipped_model, [images_of(test_set, 64, start=9000)], progress=False)
    light = evaluate(network, subset.batches(50), progress=False)
    assert light.accuracy[0] > plain.accuracy[0] + 0.15 and light.latency == plain.latency == [1]


def test_light_where_a_max_pooling_was_moved_before_the_neurons():
    torch.manual_seed(3)
    ann = (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(5 * 4, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )
        .double()
        .eval()
    )
    network = convert(
        ann, timesteps=3, thresholds={"1": 1.0, "3": 1.0, "7": 0.5}, max_pool="before"
    )
    x = torch.randn(10, 1, 8, 8, dtype=torch.float64)
    fitted = fit_light(network, ann, [x], progress=False)
    assert {site: tuple(bias.shape) for site, bias in fitted.items()} == {
        "1": (4, 1, 1),
        "3": (5, 1, 1),
        "7": (6,),
    }
    # The last layer, with what reaches it: the mean of the ANN's activation, less that of plain IF
    # neurons without a bias.
    reached = []
    network.nodes()["7"].register_forward_pre_hook(lambda m, args: reached.append(args[0].clone()))
    network(x)
    theta = torch.tensor(0.5, dtype=torch.float64)
    spikes = run(reached[0].unflatten(0, (3, 10)), theta, theta / 2)[0] * theta
    assert (fitted["7"] - (ann[:8](x).mean(0) - spikes.mean((0, 1)))).abs().max() <= 1e-12
    # And the pooled layer is held against the pooled activation.
    currents_of = []
    network.nodes()["3"].register_forward_pre_hook(
        lambda m, args: currents_of.append(args[0].clone())
    )
    network(x)
    one = torch.ones((), dtype=torch.float64)
    spikes = run(currents_of[0].unflatten(0, (3, 10)), one, one / 2)[0].double()
    assert (
        fitted["3"].flatten() - (ann[:5](x).mean((0, 2, 3)) - spikes.mean((0, 1, 3, 4)))
    ).abs().max() <= 1e-12


def state_of(network):
    return network.calibration, {site: node.bias for site, node in network.nodes().items()}


def test_fit_light_errors_leave_the_network_as_it_was():
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=2, rho=2, thresholds=THRESHOLDS)
    before = state_of(network)
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got Sequential"):
        fit_light(ann, ann, [x])
    with pytest.raises(TypeError, match="ann must be an nn.Module, got str"):
        fit_light(network, "ann", [x])
    with pytest.raises(TypeError, match="got a SpikingNetwork"):
        fit_light(network, network, [x])
    with pytest.raises(TypeError, match="batches must be an iterable"):
        fit_light(network, ann, x)
    with pytest.raises(ValueError, match="activations at"):
        fit_light(network, nn.Sequential(nn.Linear(2, 2), nn.ReLU()), [x])
    with pytest.raises(
        ValueError, match="ann must have the network's dtype torch.float32, it has torch.float64"
    ):
        fit_light(network, copy.deepcopy(ann).double(), [x.double()])
    for empty in ([], [x[:0]]):
        with pytest.raises(ValueError, match="at least one sample"):
            fit_light(network, ann, empty, progress=False)
    with pytest.raises(ValueError, match="must give finite activations, those at '1'"):
        fit_light(network, ann, [torch.full_like(x, torch.inf)], progress=False)
    other = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    with pytest.raises(
        ValueError, match="ann must be the model that the network was converted from.*'1'"
    ):
        fit_light(network, other.eval(), [x], progress=False)
    assert state_of(network) == before == ("cos", {"1": None, "3": None})
    fit_light(network, ann, [x], progress=False)
    calibration, biases = state_of(network)
    # The last batch breaks the second layer's pass, when the first one's bias is there already.
    handle = network.nodes()["3"].register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit_light(network, ann, [2 * x], progress=False)
    handle.remove()
    assert network.calibration == calibration
    assert all(node.bias is biases[site] for site, node in network.nodes().items())


def test_light_without_a_fit_says_so():
    network = convert(
        small(),
        timesteps=2,
        thresholds=THRESHOLDS,
        calibration="light",
        example_input=torch.randn(3, 1, 8, 8),
    )
    with pytest.raises(RuntimeError, match="call cos_ext.fit_light first"):
        network(torch.randn(1, 1, 8, 8))


def test_light_on_a_network_of_every_shape():
    """Linear layers, a site that is called twice, and layers that keep a calibration of their
    own.
    """
    ann = zoo.prepared("rivals", lambda: zoo.ResNet(zoo.BasicBlock))
    x = torch.randn(3, 3, 32, 32)
    network = convert(
        ann,
        timesteps=2,
        rho=2,
        thresholds=dict.fromkeys(cos_ext.calibrate_thresholds(ann, [x], progress=False), 1.0),
    )
    first = next(iter(network.nodes()))
    network.set_layer(first, calibration="srp")
    fitted = fit_light(network, ann, [x], progress=False)
    assert (
        first not in fitted
        and network.nodes()[first].bias is None
        and len(fitted) == len(network.nodes()) - 1
    )
    assert network(x).shape[0] == 2 and network.watch_steps == 2
