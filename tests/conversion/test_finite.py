"""NaN and infinity: a network shows them in its output, and a model with them is refused."""

import math

import pytest
import torch
from torch import nn
from untraced import untraced

from cos_ext import QCFS, ConversionError, convert

INF = math.inf


class Sums(nn.Module):
    """A static branch that meets spikes, BatchNorm, pooled spikes."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 4, 3, padding=1), QCFS(4, 1.0)
        self.conv, self.norm, self.out = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            QCFS(4, 1.0),
        )
        self.side, self.pool, self.head = nn.Conv2d(2, 4, 1), nn.AvgPool2d(2), nn.Linear(36, 3)

    def forward(self, x):
        h = self.norm(self.conv(self.act(self.stem(x))) + self.side(x))
        return self.head(self.pool(self.out(h)).flatten(1))


class LateBranch(nn.Module):
    """The second input meets spikes, and has no neurons of its own before."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(5, 8), QCFS(4, 1.0), nn.Linear(8, 3)

    def forward(self, x, y):
        return self.head(self.act(self.a(x)) + y)


class Standardised(nn.Module):
    """A constant image has no deviation to divide by."""

    def __init__(self):
        super().__init__()
        self.net = Sums()

    def forward(self, x):
        x = x - x.mean((1, 2, 3), keepdim=True)
        return self.net(x / x.std((1, 2, 3), keepdim=True))


class Walks(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), QCFS(4, 1.0), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x if len(x) < 10**9 else -x)


def made(model, *shapes, **options):
    torch.manual_seed(0)
    inputs = tuple(torch.randn(3, *shape) for shape in shapes)
    model = model().eval()
    example = {"example_input": inputs} if isinstance(model, (Walks, Standardised)) else {}
    return convert(model, timesteps=4, **{"rho": 4, **example, **options}), inputs


CASES = {
    "sums": (Sums, (2, 6, 6)),
    "late branch": (LateBranch, (5,), (8,)),
    "walked": (Walks, (5,)),
    "one number a sample": (
        lambda: nn.Sequential(QCFS(4, 1.0), nn.Flatten(), nn.Linear(1, 2)),
        (1,),
    ),
}


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_shows_in_its_sample_alone(name, bad):
    network, inputs = made(*CASES[name])
    expected = network(*inputs)
    assert expected.isfinite().all()
    for which in range(len(inputs)):
        changed = [x.clone() for x in inputs]
        changed[which][1].view(-1)[0] = bad
        out = network(*changed)
        assert out[:, 1].isnan().all()
        assert torch.equal(out[:, ::2], expected[:, ::2])
    assert torch.equal(network(*inputs), expected)


def test_minus_infinity_is_shown_where_weights_have_both_signs():
    network, (x,) = made(Sums, (2, 6, 6))
    x[2, 0, 3, 3] = -INF
    assert network(x).isnan().any(0).any(1).tolist() == [False, False, True]


def test_what_the_model_makes_of_finite_numbers_shows_too():
    network, (x,) = made(Standardised, (2, 6, 6))
    x[1] = 0.5
    assert network(x).isnan().any(0).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"rho": 0},
        {"fuse": False},
        {"emission": "even", "execution": "counts"},
        {"calibration": "srp"},
        {"calibration": "parallel"},
    ],
    ids=str,
)
def test_every_setting_shows_it(options):
    network, (x,) = made(Sums, (2, 6, 6), **options)
    x[0, 1, 2, 2] = math.nan
    marked = [True, False, False]
    assert network(x).isnan().any(0).any(1).tolist() == marked
    network.memory_limit = network.activation_bytes(x[:1]) + 1000
    assert network(x).isnan().any(0).any(1).tolist() == marked
    assert network.rate(x).isnan().any(1).tolist() == marked


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_shows_it(dtype):
    network, (x,) = made(Sums, (2, 6, 6))
    x[0, 1, 2, 2] = math.nan
    out = network.to(dtype)(x)
    assert out.dtype == dtype and out.isnan().any(0).any(1).tolist() == [True, False, False]


def test_it_is_shown_by_what_was_compiled_pickled_and_exported(tmp_path):
    network, (x,) = made(Sums, (2, 6, 6))
    x[0, 1, 2, 2] = math.nan
    network.memory_limit = None
    torch.save(network, tmp_path / "whole.pt")
    others = (
        torch.compile(network, fullgraph=True, backend="aot_eager"),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        torch.export.export(network, (x,)).module(),
    )
    for other in others:
        assert torch.equal(other(x).isnan(), network(x).isnan())


def test_integers_have_neither():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.act, self.head = nn.Embedding(7, 5), QCFS(4, 1.0), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.act(self.words(x))).mean(1)

    network = convert(Words(), timesteps=2, rho=2)
    assert network(torch.randint(0, 7, (3, 4))).isfinite().all()


def spoilt(name, value):
    model = Sums().eval()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("name", ["stem.weight", "side.bias", "norm.weight", "act.threshold"])
def test_a_model_with_bad_parameters_is_refused(name, value):
    with pytest.raises(ConversionError, match=rf"NaN or infinite numbers in {name};"):
        convert(spoilt(name, value), timesteps=2)


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_model_with_bad_running_statistics_is_refused(statistic, value):
    model = Sums()
    getattr(model.norm, statistic)[2] = value
    with pytest.raises(ConversionError, match=f"numbers in norm.{statistic};"):
        convert(model, timesteps=2)


def test_a_model_on_the_meta_device_has_no_numbers():
    with pytest.raises(ConversionError, match="on the meta device"):
        convert(Sums().to("meta"), timesteps=2)


def test_all_are_named_and_masks_may_be_infinite():
    model = spoilt("stem.weight", math.nan)
    model.register_buffer("mask", torch.tensor([0.0, -INF]))
    model.register_buffer("table", torch.tensor([0.0, math.nan]))
    with pytest.raises(ConversionError, match=r"numbers in stem\.weight, table;"):
        convert(model, timesteps=2)
    masked = Sums()
    masked.register_buffer("mask", torch.tensor([0.0, -INF]))
    masked.register_buffer("large", torch.full((9,), 3e38))  # whose sum is infinite
    convert(masked, timesteps=2)


@pytest.mark.parametrize(
    "value", [math.nan, INF, -INF, 0.0, 10**400, torch.tensor([1.0, math.nan]).view(2, 1, 1)]
)
def test_bad_thresholds_are_refused_by_name(value):
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(ConversionError, match=r"1 \(ReLU\): v_threshold must be"):
        convert(model, timesteps=2, thresholds={"1": value})


class Applies(nn.Module):
    """A function between a layer and neurons."""

    def __init__(self, function):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), QCFS(4), nn.Linear(8, 2)
        self.scale, self.function = nn.Parameter(-torch.ones(8)), function
        self.constant = torch.tensor(math.nan)

    def forward(self, x):
        return self.last(self.act(self.function(self, self.first(x))))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x * math.nan,
        lambda self, x: x * self.scale.log(),
        lambda self, x: x * self.constant,
    ],
    ids=["number", "computed", "attribute"],
)
def test_constants_with_nan_are_refused(function):
    with pytest.raises(ConversionError, match="has NaN"):
        convert(Applies(function), timesteps=2)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_nan_once_computed_are_refused(norm):
    layer = nn.Linear(8, 8)
    layer.weight.data[0] = 0
    with pytest.raises(ConversionError, match="NaN or infinite numbers in 0.weight"):
        convert(nn.Sequential(norm(layer), QCFS(4), nn.Linear(8, 2)), timesteps=2)


def test_a_variance_below_0_is_refused():
    norm = nn.BatchNorm1d(8)
    norm.running_var.fill_(-1)
    with pytest.raises(ConversionError, match=r"in 1/sqrt\(1.running_var \+ eps\)"):
        convert(nn.Sequential(nn.Linear(8, 8), norm, QCFS(4), nn.Linear(8, 2)), timesteps=2)


def test_lazy_modules_are_to_be_run_once():
    with pytest.raises(ConversionError, match="lazy modules"):
        convert(nn.Sequential(nn.LazyLinear(8), QCFS(4), nn.Linear(8, 2)), timesteps=2)


class Joined(nn.Module):
    """Spikes beside an input that no neurons are given."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), QCFS(4), nn.Linear(16, 8)
        self.second, self.head = QCFS(4), nn.Linear(8, 2)

    def forward(self, x, y):
        both = torch.cat([self.act(self.first(x)), y], 1)
        return self.head(self.second(self.last(both)))


def test_minus_infinity_that_meets_spikes_is_shown():
    y = torch.randn(3, 8)
    y[1, 0] = -math.inf
    out = convert(Joined(), timesteps=2)(torch.randn(3, 8), y)
    assert out.isnan().all(-1).tolist() == [[False, True, False]] * 2


class WalkedNorm(nn.Module):
    """Cannot be traced, and divides by 0 where a sample is 0."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        untraced(x)
        x = x / x.norm(dim=1, keepdim=True)
        return self.last(self.act(self.first(x)))


def test_nan_that_arises_in_a_walked_model_is_shown():
    x = torch.randn(3, 8)
    network = convert(WalkedNorm(), timesteps=2, thresholds={"act": 1.0}, example_input=x)
    assert type(network.module).__name__ == "Walked"
    x[1] = 0
    assert network(x).isnan().all(-1).tolist() == [[False, True, False]] * 2
