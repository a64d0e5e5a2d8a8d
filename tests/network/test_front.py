"""A part before the first neurons that mixes samples: the batch is not run in parts."""

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext.network.front import mixes


class Net(nn.Module):
    """`front` and then neurons."""

    def __init__(self, front):
        super().__init__()
        self.front, self.act = front, cos_ext.QCFS(4, 1.0)
        self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(108, 2)

    def forward(self, x):
        return self.out(self.act(self.conv(self.front(x))).flatten(1))


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def no_statistics(x):
    return nn.functional.batch_norm(x, None, None, training=True)


MIXED = {
    "mean": lambda x: x - x.mean(),
    "mean over the batch": lambda x: x - x.mean(0, keepdim=True),
    "standard deviation": lambda x: x / (x.std() + 1),
    "largest": lambda x: x / x.abs().max(),
    "batch_norm": no_statistics,
    "cumulated": lambda x: x.cumsum(0),
    "rolled": lambda x: x.roll(1, 0),
    "reversed": lambda x: x.flip(0),
    "batch size": lambda x: x / x.size(0),
    "sorted": lambda x: x.sort(0)[0],
}
APART = {
    "identity": lambda x: x * 1,
    "mean of each": lambda x: x - x.mean((1, 2, 3), keepdim=True),
    "sigmoid": torch.sigmoid,
    "sorted within": lambda x: x.sort(3)[0],
    "constant": torch.zeros_like,
}


def network(front):
    torch.manual_seed(0)
    front = front if isinstance(front, nn.Module) else Of(front)
    return cos_ext.convert(Net(front), timesteps=4, rho=4)


def images(count=6):
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("front", MIXED.values(), ids=MIXED)
def test_samples_that_are_mixed_are_not_split(front, monkeypatch):
    made, x = network(front), images()
    made.memory_limit = None
    expected = made(x)
    made.memory_limit = made.activation_bytes(x[:3])
    with pytest.raises(ValueError, match='memory_limit must be None or "auto": before its first'):
        made(x)
    made.memory_limit = made.activation_bytes(x)
    assert torch.equal(made(x), expected)
    monkeypatch.setattr(cos_ext.network.memory, "AUTO_BYTES", 2000)
    made.memory_limit = "auto"
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize("front", [*APART.values(), nn.BatchNorm2d(2)], ids=[*APART, "BatchNorm"])
def test_samples_by_themselves_are_split(front, monkeypatch):
    made, x = network(front), images()
    made.memory_limit = None
    expected, parts, run = made(x), [], cos_ext.network.memory.run
    monkeypatch.setattr(
        cos_ext.network.memory, "run", lambda *given: parts.append(given[2]) or run(*given)
    )
    made.memory_limit = made.activation_bytes(x[:3]) + 1000
    assert torch.allclose(made(x), expected, atol=1e-5)
    assert parts[0] > 1


PIXELS = {
    "mean": lambda x: (x.float() - x.float().mean()) / 64,
    "largest": lambda x: x.float() / x.max(),
    "smallest": lambda x: x.float() - x.min(),
    "standard deviation": lambda x: x.float() / x.float().std(),
}


@pytest.mark.parametrize("front", PIXELS.values(), ids=PIXELS)
@pytest.mark.parametrize("bright", [255, 100])
def test_integers_that_are_mixed(front, bright):
    x = torch.randint(0, 256, (2, 2, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    x[1] = x[1] // (256 // bright) + 1
    x[0] = x[0] // 2 + 3
    for pixels in (x, x.flip(0), x.int()):
        assert mixes(network(front), (pixels,))
        assert not mixes(network(lambda x: x.float() / 64), (pixels,))


def test_integers_stay_indices():
    made = network(lambda x: nn.functional.one_hot(x, 8).float().sum(-1))
    assert not mixes(made, (torch.full((2, 2, 8, 8), 7),))


def test_constant_images_do_not_hide_it():
    assert mixes(network(MIXED["mean"]), (torch.zeros(2, 2, 8, 8),))
    assert not mixes(network(APART["identity"]), (torch.zeros(2, 2, 8, 8),))


def test_norms_without_running_statistics():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    assert mixes(network(norm), (images(),))
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    made = cos_ext.convert(
        nn.Sequential(norm, cos_ext.QCFS(4), nn.Linear(4, 2)), timesteps=2, rho=2
    )
    assert mixes(made, (torch.randn(4, 4),))
