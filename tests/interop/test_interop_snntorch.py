"""Spike trains that record_spikegen.py recorded of snntorch's spikegen, through models. snntorch is
not needed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cos_ext import IFNode, convert
from cos_ext.interop import snntorch, spikingjelly

with np.load(Path(__file__).parents[1] / "golden" / "snntorch_spikegen.npz") as record:
    RECORD = {name: record[name] for name in record.files}
TRAINS = ("rate", "latency", "delta")


def train(name):
    dtype = getattr(torch, str(RECORD["dtypes"][TRAINS.index(name)]).removeprefix("torch."))
    return torch.from_numpy(RECORD[name]).to(dtype)


def convolutional(steps):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), IFNode(0.3, timesteps=steps)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5), IFNode(0.2, timesteps=steps)),
    ).eval()


@pytest.mark.parametrize("name", ["rate", "latency"])
def test_a_train_drives_a_network_as_step_by_step(name):
    spikes, model = train(name), convolutional(7)
    assert spikes.shape == (7, 3, 1, 6, 6) and set(spikes.unique().tolist()) == {0, 1}
    with torch.no_grad():
        out = snntorch.run(model, spikes)
        assert out.shape == (7, 3, 5) and out.any()
        for module in model.modules():
            if isinstance(module, IFNode):
                module.configure(timesteps=None, step_mode="s")
        alone = torch.stack([model(x) for x in spikes])
    assert torch.equal(out != 0, alone != 0)


def test_time_first_without_folding():
    spikes = train("delta")
    assert spikes.unique().tolist() == [-1, 0, 1]
    model = nn.Sequential(nn.Linear(5, 8), IFNode(0.3), nn.Linear(8, 2))
    folded = nn.Sequential(model[0], IFNode(0.3, timesteps=7), model[2])
    out = snntorch.run(model, spikes)
    assert out.shape == (7, 3, 2)
    assert torch.allclose(out, snntorch.run(folded, spikes), atol=1e-6)
    model[1].configure(timesteps=7, time="first")
    assert torch.equal(out, snntorch.run(model, spikes))
    out.mean(0).sum().backward()
    assert model[0].weight.grad.any()


def test_a_rate_is_a_rate():
    """The recorded train is what the encoder says: 1 as often as the image is bright."""
    images = torch.from_numpy(RECORD["images"])
    torch.manual_seed(0)
    assert torch.equal(train("rate"), torch.bernoulli(images.repeat(7, 1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("nodes", "spikes", "error", "message"),
    [
        ([{"timesteps": 5}], torch.zeros(10, 2, 3), ValueError, "0.timesteps must be 10 .*got 5"),
        ([{"timesteps": 5}, {}], torch.zeros(5, 2), ValueError, "1.timesteps must be 5.*got None"),
        (
            [{"timesteps": 5, "static_input": True}],
            torch.zeros(5, 2),
            ValueError,
            "0.static_input must be False",
        ),
        (
            [{"timesteps": 5}, {"timesteps": 5, "time": "first"}],
            torch.zeros(5, 2),
            ValueError,
            "1.time must be 'batch'",
        ),
        ([{"step_mode": "s"}], torch.zeros(5, 2), ValueError, "0.step_mode must be 'm'.*got 's'"),
        ([{}], torch.zeros(5), ValueError, r"must be \[T, B, ...\], got shape \(5,\)"),
        ([{}], torch.zeros(5, 2, dtype=torch.uint8), TypeError, "floating-point.*got torch.uint8"),
        ([{}], [[0.0]], TypeError, "floating-point.*got list"),
    ],
)
def test_what_does_not_fit(nodes, spikes, error, message):
    with pytest.raises(error, match=message):
        snntorch.run(nn.Sequential(*(IFNode(**settings) for settings in nodes)), spikes)


def test_a_model_that_loses_steps():
    model = nn.Sequential(IFNode(timesteps=4), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"must return \[T\*B, ...\], T\*B = 8, got \(24,\)"):
        snntorch.run(model, torch.zeros(4, 2, 3))


def test_neurons_of_spikingjellys_contract():
    folded, other = IFNode(timesteps=4), spikingjelly.IFNode(step_mode="m")
    x = torch.rand(4, 2, 3)
    with pytest.raises(ValueError, match="^1 takes its first dimension for time.*time='first'"):
        snntorch.run(nn.Sequential(folded, other), x)
    first = nn.Sequential(IFNode(timesteps=4, time="first"), other)
    assert torch.equal(snntorch.run(first, x), spikingjelly.IFNode(step_mode="m")(IFNode()(x)))
    other.step_mode = "s"
    with pytest.raises(ValueError, match="^1 takes its input for one step: .*must be 'm'"):
        snntorch.run(first, x)


def test_a_converted_network_takes_images():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    network = convert(model, timesteps=4, thresholds={"1": 1.0})
    with pytest.raises(ValueError, match="given images .*, not spike trains"):
        snntorch.run(network, torch.ones(4, 2, 6))
