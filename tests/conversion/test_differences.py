"""What is not affine between neurons, as differences on running means: against a plain loop, in
every way to run a network.
"""

import pytest
import torch
from differences import NETS, X, net, plain

from cos_ext import convert

pytestmark = pytest.mark.usefixtures("one_thread")
NEAR = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_step_is_that_of_a_plain_loop(name):
    model = net(name)
    network = convert(model, timesteps=7, example_input=X)
    torch.testing.assert_close(network(X), plain(model, X, 7), **NEAR)
    assert "difference" in {entry.status for entry in network.report.entries}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_mean_is_the_models_output_by_steps_and_by_counts(name):
    """At T = rho = L the neurons' means are the activations."""
    model = net(name)
    options = {"iterations": None, "emission": "even", "example_input": X}
    network = convert(model, timesteps=4, rho=4, **options)
    by_steps = network(X)
    torch.testing.assert_close(by_steps.mean(0), model(X), **NEAR)
    network.execution = "counts"
    torch.testing.assert_close(network(X), by_steps, **NEAR)
