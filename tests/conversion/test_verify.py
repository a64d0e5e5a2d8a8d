"""The check on an example: models that cast by themselves, and rewrites that are wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped

import cos_ext
from cos_ext import QCFS, ConversionError, convert
from cos_ext.conversion import classify, fold, forced, fuse
from cos_ext.network import over_time


class DQN(nn.Module):
    """The Atari network of Mnih et al. (2015), on frames of bytes."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(4, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 8, 4, 2), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(8 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.head(self.features(x.float() / 255))


class OneHot(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(7, 16), QCFS(4, 1.0), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.act(self.a(TF.one_hot(x, 7).float()))).mean(1)


class FilterBank(nn.Module):
    """Constant filters that are no buffer, and a constant of another kind."""

    def __init__(self):
        super().__init__()
        self.bank, self.scale = torch.randn(4, 1, 3, 3), [torch.tensor(0.5)]
        self.act, self.head = QCFS(4, 1.0), nn.Linear(4, 3)

    def forward(self, x):
        h = TF.conv2d(x, self.bank) * self.scale[0]
        return self.head(self.act(h).mean((2, 3)))


class Casts(nn.Module):
    """Computes in float32 between spikes, whatever comes."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(5, 16), QCFS(4, 1.0), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.act(self.a(x.to(torch.float32))))


CASTING = {
    "DQN": (DQN, torch.randint(0, 256, (2, 4, 44, 44), dtype=torch.uint8)),
    "one hot": (OneHot, torch.randint(0, 7, (2, 6))),
    "filter bank": (FilterBank, torch.randn(2, 1, 8, 8)),
    "casts": (Casts, torch.randn(2, 5, dtype=torch.float64)),
    "half": (
        lambda: nn.Sequential(nn.Linear(5, 16), QCFS(4, 1.0), nn.Linear(16, 3)).half(),
        torch.randn(2, 5).half(),
    ),
    "bfloat16": (
        lambda: nn.Sequential(nn.Linear(5, 16), QCFS(4, 1.0), nn.Linear(16, 3)).bfloat16(),
        torch.randn(2, 5).bfloat16(),
    ),
}


@pytest.mark.parametrize("name", CASTING)
def test_models_that_cast_are_checked_in_their_own_dtype(name):
    torch.manual_seed(0)
    make, x = CASTING[name]
    model = make().eval()
    thresholds = None
    if name == "DQN":
        thresholds = cos_ext.calibrate_thresholds(model, [x], progress=False)
    network = convert(model, timesteps=16, rho=16, thresholds=thresholds, example_input=x)
    with torch.no_grad():
        expected = model(x)
    assert (network.rate(x) - expected).abs().max() < 0.5 * expected.abs().max()


def test_the_check_takes_no_copy_of_the_weights():
    """One copy for the network, and none for the check."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), QCFS(4, 1.0), nn.Linear(16, 3)).eval()
    copies = []
    original = nn.Parameter.__deepcopy__

    def counted(self, memo):
        copies.append(id(self) not in memo)
        return original(self, memo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Parameter, "__deepcopy__", counted)
        convert(model, timesteps=4, rho=4)
        without = sum(copies)
        copies.clear()
        convert(model, timesteps=4, rho=4, example_input=torch.randn(2, 8))
    assert sum(copies) == without > 0


def test_the_model_is_left_as_it_is():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = DQN(), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen += 1
            return self.net(x)

    model, x = Counts().train(), CASTING["DQN"][1]
    for site in ("net.features.1", "net.features.3", "net.head.1"):
        assert dict(model.named_modules())[site].training
    thresholds = dict.fromkeys(("net.features.1", "net.features.3", "net.head.1"), 1.0)
    convert(model, timesteps=4, rho=4, thresholds=thresholds, example_input=x)
    assert model.calls == 0 and model.seen == 0 and model.training and model.net.training


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            QCFS(4, 1.0),
        )
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.out, self.side, self.head = QCFS(4, 1.0), nn.Conv2d(1, 4, 1), nn.Linear(36, 3)

    def forward(self, x):
        h = self.act(self.norm(self.stem(x)))
        h = self.out(self.a(h) + self.b(h) + self.side(x))
        return self.head(TF.avg_pool2d(h, 2).flatten(1))


def wrong_order(x, timesteps):
    return x.repeat_interleave(timesteps, 0)


def without_residual(conversion, node, neuron):
    (total,) = node.all_input_nodes
    if total.target in fuse.SUMS:
        node.args = (total.args[0],)
    return []


def another_window(model, node):
    return ((3, 3), nn.AvgPool2d(2)) if "avg" in node.name else (None, None)


def off_by_a_hundredth(*arguments, **options):
    right = torch.nn.utils.fusion.fuse_conv_bn_weights(*arguments, **options)
    return tuple(nn.Parameter(1.01 * x) for x in right)


MUTATIONS = {
    "order of time": (over_time, "over_time", wrong_order),
    "a residual is lost": (fuse, "_residual", without_residual),
    "another window": (fuse, "_window", another_window),
    "a fold that is off": (fold, "fuse_conv_bn_weights", off_by_a_hundredth),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_rewrites_are_seen(name, monkeypatch):
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 1, 6, 6)
    convert(model, timesteps=4, rho=4, example_input=x)
    place, attribute, wrong = MUTATIONS[name]
    monkeypatch.setattr(place, attribute, wrong)
    if name == "a fold that is off":
        monkeypatch.setattr(fold, "_agrees", lambda *_: True)
    with pytest.raises(ConversionError, match="on example_input"):
        convert(model, timesteps=4, rho=4, example_input=x)


def test_writing_over_what_others_read_is_seen(monkeypatch):
    torch.manual_seed(0)
    model = Wrapped(
        lambda m, x: m.head((lambda h: m.act(h) + h)(m.conv(m.first(x))).flatten(1)),
        first=QCFS(4, 1.0),
    ).eval()
    convert(model, timesteps=4, rho=4, example_input=IMAGES)
    monkeypatch.setattr(classify, "owned", lambda *_: True)
    with pytest.raises(ConversionError, match="on example_input"):
        convert(model, timesteps=4, rho=4, example_input=IMAGES)


def test_agreement_is_to_the_rounding_of_the_dtype():
    x = torch.tensor([1.0, -3.0, 2.0])
    assert forced.agree(x, x + 1e-4) and not forced.agree(x, x + 1e-3)
    assert not forced.agree(x.double(), x.double() + 1e-6)
    assert forced.agree(x.bfloat16(), (x + 0.05).bfloat16())
    assert not forced.agree(x, x[:2]) and not forced.agree(x, x.double())
    odd = torch.tensor([float("nan"), float("inf"), 1.0])
    assert forced.agree(odd, odd.clone()) and not forced.agree(odd, torch.ones(3))
    assert not forced.agree(odd, -odd)
