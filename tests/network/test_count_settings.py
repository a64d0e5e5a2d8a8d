"""execution="counts": the settings that it holds for, and how others are refused. Its results:
test_counts.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_networks import converted

from cos_ext import convert

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(**options):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    return convert(
        model,
        **{
            "timesteps": 4,
            "rho": 4,
            "emission": "even",
            "thresholds": {"1": 0.7, "3": 0.5},
            **options,
        },
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"emission": "calibrated"}, r"emission to be one of \('even', 'front'\)"),
        ({"rho": 0}, "rho >= 1"),
    ],
)
def test_convert_refuses_what_does_not_hold(options, message):
    with pytest.raises(ValueError, match=message):
        plain(execution="counts", **options)
    network = plain(**options)
    with pytest.raises(ValueError, match=message):
        network.execution = "counts"
    assert network.execution == "steps"
    with pytest.raises(ValueError, match=message):
        network.counts(torch.randn(2, 6))
    with pytest.raises(ValueError, match=message):
        network.spike_train("1", torch.randn(2, 6))


def test_names_of_modes_and_sites():
    for make in (lambda: plain(execution="count"), lambda: setattr(plain(), "execution", "count")):
        with pytest.raises(
            ValueError, match=r"execution must be one of \('steps', 'counts'\), got 'count'"
        ):
            make()
    with pytest.raises(
        ValueError,
        match=r"site must be a call site of the network, got '0'; those are \['1', '3'\]",
    ):
        plain().spike_train("0", torch.randn(2, 6))


def test_settings_that_would_break_it_are_refused_and_change_nothing():
    network, x = plain(execution="counts"), torch.randn(3, 6)
    expected = network(x)
    for change, message in (
        (lambda: setattr(network, "emission", "calibrated"), "emission to be one of"),
        (lambda: setattr(network, "rho", 0), "rho >= 1"),
        (lambda: network.set_layer("3", rho=2), r"one rho for all layers.*'1': 4, '3': 2"),
        (lambda: network.set_layer("3", rho=0), r"rho = 0 for \['3'\]"),
        (lambda: network.set_layer("1", emission="calibrated"), r"got {'1': 'calibrated'}"),
    ):
        with pytest.raises(ValueError, match=message):
            change()
        assert (network.execution, network.rho, network.emission, network._layers) == (
            "counts",
            4,
            "even",
            {},
        )
        assert torch.equal(network(x), expected)
    network.execution = "steps"
    for site in ("1", "3"):
        network.set_layer(site, rho=2)
    network.execution = "counts"  # one rho again, though not the network's
    assert [count.amax() <= 2 for count in network.counts(x).values()] == [True, True]
    network.rho = 3  # plays no part
    by_counts = network(x)
    network.execution = "steps"
    assert torch.allclose(network(x), by_counts, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one rho for all layers"):
        network.set_layer("3")
        network.execution = "counts"
    assert network.execution == "steps"


def test_refusals_of_static_calibration_and_of_models_without_a_graph():
    network = plain()
    network.options["static"] = True
    with pytest.raises(ValueError, match="static calibration"):
        network.execution = "counts"
    network, _ = converted("untraceable")
    with pytest.raises(ValueError, match="could not be traced"):
        network.execution = "counts"


def test_a_layer_changed_past_the_network_is_noticed():
    network = plain(execution="counts")
    network.nodes()["3"].rho = 2
    with pytest.raises(RuntimeError, match="changed past the network"):
        network(torch.randn(2, 6))


def test_settings_follow_without_converting_again():
    network, x = plain(execution="counts").double(), torch.randn(5, 6).double()
    assert network(x).dtype == torch.float64
    network.timesteps, network.rho, network.emission = 11, 6, "front"
    by_counts = network(x)
    assert by_counts.shape == (11, 5, 5) and torch.equal(network.rate(x), by_counts.mean(0))
    network.timesteps = 2
    assert torch.equal(network(x), by_counts[:2])
    network.execution, network.timesteps = "steps", 11
    assert torch.allclose(network(x), by_counts, rtol=0, atol=1e-9)


def test_gradients_are_refused_as_in_the_step_by_step_run():
    network = plain(execution="counts")
    with pytest.raises(RuntimeError, match="no gradient"):
        network(torch.randn(2, 6, requires_grad=True))
