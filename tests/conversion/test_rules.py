"""The rules: their mathematical condition on real modules, the registry, a rule of one's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext import QCFS, ConversionError, convert
from cos_ext.conversion.rules import Refusal, Rule, base, register, rule_for
from cos_ext.conversion.rules.curves import Curved
from cos_ext.conversion.rules.normalisation import BatchNormAny
from cos_ext.conversion.rules.pooling import MaxPool
from cos_ext.conversion.rules.rectifiers import Rectifier, is_rectifier
from cos_ext.conversion.rules.refused import Refused
from cos_ext.network.over_time import Difference, RunningMean

IMAGES = torch.rand(2, 1, 6, 6, dtype=torch.float64)

# A module of every type that has a rule to be kept, and the shape of one sample.
KEPT = [
    (nn.Conv1d(2, 3, 3), (2, 8)),
    (nn.Conv2d(2, 3, 3), (2, 6, 6)),
    (nn.Conv3d(2, 3, 3), (2, 4, 4, 4)),
    (nn.ConvTranspose1d(2, 3, 3), (2, 8)),
    (nn.ConvTranspose2d(2, 3, 3), (2, 6, 6)),
    (nn.ConvTranspose3d(2, 3, 3), (2, 4, 4, 4)),
    (nn.Linear(6, 3), (2, 6)),
    (nn.Identity(), (2, 6)),
    (nn.AvgPool1d(2), (2, 8)),
    (nn.AvgPool2d(2), (2, 6, 6)),
    (nn.AvgPool3d(2), (2, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(2), (2, 8)),
    (nn.AdaptiveAvgPool2d(2), (2, 6, 6)),
    (nn.AdaptiveAvgPool3d(2), (2, 4, 4, 4)),
    (nn.Dropout(), (2, 6)),
    (nn.Dropout1d(), (2, 6)),
    (nn.Dropout2d(), (2, 6, 6)),
    (nn.Dropout3d(), (2, 4, 4, 4)),
    (nn.AlphaDropout(), (2, 6)),
    (nn.FeatureAlphaDropout(), (2, 6)),
    (nn.ZeroPad1d(1), (2, 6)),
    (nn.ZeroPad2d(1), (2, 6, 6)),
    (nn.ZeroPad3d(1), (2, 4, 4, 4)),
    (nn.ConstantPad1d(1, 0.5), (2, 6)),
    (nn.ConstantPad2d(1, 0.5), (2, 6, 6)),
    (nn.ConstantPad3d(1, 0.5), (2, 4, 4, 4)),
    (nn.ReflectionPad1d(1), (2, 6)),
    (nn.ReflectionPad2d(1), (2, 6, 6)),
    (nn.ReflectionPad3d(1), (2, 4, 4, 4)),
    (nn.ReplicationPad1d(1), (2, 6)),
    (nn.ReplicationPad2d(1), (2, 6, 6)),
    (nn.ReplicationPad3d(1), (2, 4, 4, 4)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 6, 6)),
    (nn.UpsamplingNearest2d(scale_factor=2), (2, 6, 6)),
    (nn.UpsamplingBilinear2d(scale_factor=2), (2, 6, 6)),
    (nn.PixelShuffle(2), (4, 3, 3)),
    (nn.PixelUnshuffle(2), (2, 6, 6)),
    (nn.ChannelShuffle(2), (4, 3, 3)),
    (nn.Flatten(), (2, 6)),
    (nn.Unflatten(1, (2, 2)), (4, 3)),
    (nn.BatchNorm1d(2), (2, 6)),
    (nn.BatchNorm2d(2), (2, 6, 6)),
    (nn.BatchNorm3d(2), (2, 4, 4, 4)),
    (BatchNormAny(2), (2, 4, 4)),
]


@pytest.mark.parametrize(("module", "shape"), KEPT, ids=lambda each: type(each).__name__)
@torch.no_grad()
def test_what_is_kept_commutes_with_the_mean_over_time(module, shape):
    """f(mean of x(t)) = mean of f(x(t)), with time folded into the batch, sample by sample."""
    module = module.double().eval()
    assert rule_for(type(module)).check_module(module) is None
    x = torch.randn(4, 3, *shape, dtype=torch.float64, generator=torch.manual_seed(0))
    folded = module(x.flatten(0, 1)).unflatten(0, (4, 3))
    torch.testing.assert_close(folded.mean(0), module(x.mean(0)), rtol=0, atol=1e-12)
    assert torch.equal(folded[1:2, 2], module(x[1, 2:3]))


# Likewise of every type that may become a difference on running means.
CURVED = [
    (nn.GELU(), (6,)),
    (nn.SiLU(), (6,)),
    (nn.Mish(), (6,)),
    (nn.ELU(), (6,)),
    (nn.CELU(), (6,)),
    (nn.SELU(), (6,)),
    (nn.LeakyReLU(), (6,)),
    (nn.PReLU(3), (3, 4)),
    (nn.Hardswish(), (6,)),
    (nn.Hardsigmoid(), (6,)),
    (nn.Sigmoid(), (6,)),
    (nn.Tanh(), (6,)),
    (nn.Softplus(), (6,)),
    (nn.Softsign(), (6,)),
    (nn.Softshrink(), (6,)),
    (nn.Hardshrink(), (6,)),
    (nn.Tanhshrink(), (6,)),
    (nn.LogSigmoid(), (6,)),
    (nn.Softmax(1), (6,)),
    (nn.LogSoftmax(2), (2, 6)),
    (nn.Softmin(1), (6,)),
    (nn.GLU(1), (6,)),
    (nn.LayerNorm(6), (2, 6)),
    (nn.RMSNorm(6), (2, 6)),
    (nn.GroupNorm(2, 4), (4, 5)),
    (nn.LocalResponseNorm(2), (4, 5)),
    (nn.InstanceNorm1d(2), (2, 6)),
    (nn.InstanceNorm2d(2), (2, 4, 4)),
    (nn.InstanceNorm3d(2), (2, 3, 3, 3)),
    (nn.LPPool1d(2, 2), (2, 6)),
    (nn.LPPool2d(2, 2), (2, 4, 4)),
    (nn.LSTM(4, 3, batch_first=True), (5, 4)),
    (nn.GRU(4, 3, 2, batch_first=True, bidirectional=True), (5, 4)),
    (nn.RNN(4, 3, batch_first=True), (5, 4)),
]


class First(nn.Module):
    """The first of what a module gives."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        out = self.module(x)
        return out[0] if isinstance(out, tuple) else out


def with_samples_apart(module, x):
    """What a module makes of [B, ...], one sample at a time."""
    return torch.cat([module(x[i : i + 1]) for i in range(len(x))])


@pytest.mark.parametrize(("module", "shape"), CURVED, ids=lambda each: type(each).__name__)
@torch.no_grad()
def test_a_difference_has_the_function_of_the_mean_as_its_mean_at_every_step(module, shape):
    """mean over 1..t of the difference = f(mean over 1..t of x), for every t and sample."""
    module = module.double().eval()
    rule = rule_for(type(module))
    assert rule.check_module(module) is not None and rule.check_sample_module(module) is None
    steps, module = 5, First(module)
    x = torch.randn(steps, 3, *shape, dtype=torch.float64, generator=torch.manual_seed(0))
    ends = nn.Sequential(RunningMean(steps), module, Difference(steps))
    y = ends(x.flatten(0, 1)).unflatten(0, (steps, 3))
    for t in range(1, steps + 1):
        expected = with_samples_apart(module, x[:t].mean(0))
        torch.testing.assert_close(y[:t].mean(0), expected, rtol=0, atol=1e-12)


def test_every_module_with_a_rule_is_in_a_table():
    kept, curved = set(), set()
    for target, rule in base._RULES.items():
        if not isinstance(target, type) or isinstance(rule, (MaxPool, Rectifier, Refused)):
            continue
        if issubclass(target, nn.Module):
            (curved if isinstance(rule, Curved) else kept).add(target)
    assert kept == {type(module) for module, _ in KEPT}
    assert curved == {type(module) for module, _ in CURVED}


def test_every_rule_states_its_condition():
    for rule in set(base._RULES.values()):
        assert type(rule).__doc__, type(rule)
        if isinstance(rule, (Refused, Curved)):
            assert rule.why.reason and rule.why.remedy


class Wrapped(nn.Module):
    """A model whose forward between two layers is the given function of (self, x)."""

    def __init__(self, between, **layers):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 36, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self, self.conv(x)).flatten(1))


def lossless(model, **options):
    """With rho = T = 4 and exact calibration the rate is the model with activations of 4 levels,
    which convert() checks on the example; here that it accepts it, and that it spikes.
    """
    torch.manual_seed(0)
    model = model.double().eval()
    network = convert(model, timesteps=4, rho=4, iterations=None, example_input=IMAGES, **options)
    assert network(IMAGES).shape == (4, 2, 3)
    return network


RECTIFIERS = {
    "nn.Threshold(0, 0)": (lambda m, x: m.act(x), {"act": nn.Threshold(0, 0)}),
    "F.threshold": (lambda m, x: TF.threshold(x, 0, 0), {}),
    "torch.threshold": (lambda m, x: torch.threshold(x, 0, 0), {}),
    "F.threshold, in place": (lambda m, x: TF.threshold(x, 0.0, 0.0, True), {}),
    "x.clamp_min": (lambda m, x: x.clamp_min(0), {}),
    "x.clamp_min_": (lambda m, x: x.clamp_min_(0), {}),
    "torch.clamp_min": (lambda m, x: torch.clamp_min(x, 0.0), {}),
}


@pytest.mark.parametrize(("between", "layers"), RECTIFIERS.values(), ids=RECTIFIERS)
def test_rectifiers_by_other_names(between, layers):
    model = Wrapped(between, **layers)
    sites = cos_ext.calibrate_thresholds(model.double(), [IMAGES], progress=False)
    assert len(sites) == 1
    network = lossless(model, thresholds=sites)
    assert [entry.status for entry in network.report.entries].count("converted") == 1


@pytest.mark.parametrize(
    ("between", "layers"),
    [
        (lambda m, x: m.other(m.act(x)), {"other": nn.Threshold(0.1, 0)}),
        (lambda m, x: m.other(m.act(x)), {"other": nn.Threshold(0, 1)}),
        (lambda m, x: m.act(x).clamp_min(1), {}),
        (lambda m, x: TF.threshold(m.act(x), 0, 1), {}),
        (lambda m, x: m.act(x).clamp_min(x), {}),
    ],
)
def test_what_does_not_start_at_zero_is_refused(between, layers):
    model = Wrapped(between, act=QCFS(4, 1.0), **layers)
    with pytest.raises(ConversionError, match=r"does not start at 0; clip to \[0, b\]"):
        convert(model, timesteps=4, nonlinear="error")


def test_is_rectifier_goes_by_the_values_and_the_forward():
    assert is_rectifier(nn.Threshold(0, 0)) and not is_rectifier(nn.Threshold(0, 1))
    assert is_rectifier(nn.Hardtanh(0, 2)) and not is_rectifier(nn.Hardtanh(-1, 1))
    patched = nn.ReLU()
    patched.forward = lambda x: x
    assert not is_rectifier(patched) and not is_rectifier(nn.GELU())


@pytest.fixture
def registry(monkeypatch):
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))


def flipped(m, x):
    return torch.flip(m.act(x), [3])


def test_a_new_operation_is_one_class(registry):
    with pytest.raises(ConversionError, match="no rule converts this function; write it with"):
        convert(Wrapped(flipped, act=QCFS(4, 1.0)), timesteps=4)

    @register
    class Flip(Rule):
        """The order of positions, within each sample."""

        functions = (torch.flip,)

        def check(self, call):
            if all(isinstance(dim, int) and dim >= 1 for dim in call.argument(1, "dims")):
                return None
            return Refusal("may flip the batch", "count dimensions from the front")

    model = Wrapped(flipped, act=QCFS(4, 1.0)).double().eval()
    network = convert(model, timesteps=4, rho=4, iterations=None, example_input=IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(network.rate(IMAGES), model(IMAGES), rtol=0, atol=1e-9)
    with pytest.raises(ConversionError, match="may flip the batch; count dimensions from the"):
        wrong = Wrapped(lambda m, x: torch.flip(m.act(x), [0]), act=QCFS(4, 1.0))
        convert(wrong, timesteps=4)


def test_two_rules_for_one_operation_are_an_error(registry):
    with pytest.raises(ValueError, match="have a rule already: Convolution"):

        @register
        class Another(Rule):
            """A second rule."""

            modules = (nn.Conv2d,)


def test_a_custom_function_is_not_taken_for_one_of_the_same_name():
    def exp(x):
        return x.flip(0)

    assert rule_for(torch.exp) is not None and rule_for(exp) is None
