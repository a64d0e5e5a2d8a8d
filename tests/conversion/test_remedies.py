"""Refusals say what to do, once; the end of a model; how much lies behind neurons."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as TF
from wrapped import IMAGES, Wrapped

import cos_ext
from cos_ext import QCFS, ConversionError, convert, evaluate
from cos_ext.conversion.rules import base
from cos_ext.conversion.rules.curves import Curved
from cos_ext.conversion.rules.refused import Refused

X = torch.randn(6, 5, generator=torch.manual_seed(0))


def ends_with(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), QCFS(4, 1.0), nn.Linear(16, 3), *last).eval()


class Ends(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = ends_with(), function

    def forward(self, x):
        return self.function(self.net(x))


ENDS = {
    "Softmax": lambda: ends_with(nn.Softmax(-1)),
    "LogSoftmax": lambda: ends_with(nn.LogSoftmax(1)),
    "Sigmoid": lambda: ends_with(nn.Sigmoid()),
    "Tanh": lambda: ends_with(nn.Tanh()),
    "F.softmax": lambda: Ends(lambda y: TF.softmax(y, dim=1)),
    "torch.softmax": lambda: Ends(lambda y: torch.softmax(y, 1)),
    "method": lambda: Ends(lambda y: y.log_softmax(-1)),
    "torch.sigmoid": lambda: Ends(torch.sigmoid),
    "tanh": lambda: Ends(lambda y: y.tanh()),
    "two": lambda: ends_with(nn.Tanh(), nn.Softmax(1)),
}


@pytest.mark.parametrize("example", [None, X])
@pytest.mark.parametrize("name", ENDS)
def test_a_readout_is_refused_left_out_or_applied_to_the_mean(name, example, tmp_path):
    model = ENDS[name]().eval()
    options = {"timesteps": 8, "rho": 8, "example_input": example}
    with pytest.raises(ConversionError, match='readout="drop".*readout="mean"'):
        convert(model, nonlinear="error", **options)
    logits = convert(ends_with(), **options)
    dropped = convert(model, readout="drop", **options)
    assert torch.equal(dropped(X), logits(X)) and dropped.readout is None
    applied = convert(model, readout="mean", **options)
    assert torch.equal(applied(X), logits(X))
    last = model[3:] if isinstance(model, nn.Sequential) else model.function
    assert torch.allclose(applied.rate(X), last(logits.rate(X)), atol=1e-6)
    answers = logits(X).sum(0).argmax(1)
    assert evaluate(applied, [(X, answers)], progress=False).accuracy[-1] == 1
    assert any(e.status == "kept" and "at the end" in e.reason for e in applied.report.entries)
    applied.save(tmp_path / "n")
    loaded = cos_ext.load_network(tmp_path / "n", model, example_input=example)
    assert torch.equal(loaded.rate(X), applied.rate(X))


def test_a_softmax_between_layers_is_no_readout():
    model = nn.Sequential(
        nn.Linear(5, 16), QCFS(4, 1.0), nn.Linear(16, 8), nn.Softmax(1), nn.Linear(8, 3)
    )
    for readout in ("error", "drop", "mean"):
        with pytest.raises(ConversionError, match='leave nonlinear at "difference"'):
            convert(model, timesteps=4, readout=readout, nonlinear="error")
        report = convert(model, timesteps=4, readout=readout).report
        assert [e.site for e in report.entries if e.status == "difference"] == ["3"]
    with pytest.raises(ValueError, match="readout must be one of"):
        convert(model, timesteps=4, readout="softmax")


def test_all_refusals_have_a_remedy():
    rules = set(base._RULES.values())
    refusals = [rule.why for rule in rules if isinstance(rule, (Refused, Curved))]
    assert len(refusals) > 12
    for refusal in refusals:
        assert len(refusal.remedy) > 10 and refusal.remedy != refusal.reason


REMEDIES = {
    "floor": (lambda h: torch.floor(h * 4) / 4, r"cos_ext.QCFS\(levels, threshold\)"),
    "round": (lambda h: (h * 4).round() / 4, "cos_ext.QCFS"),
    "sign": (lambda h: torch.sign(h), "cos_ext.QCFS"),
    "view with -1": (lambda h: h.view(2, 4, -1), "own size.0., or with -1 and the others written"),
    "view": (lambda h: h.view(8, 36), "begin with x.size.0. or -1"),
    "mean": (lambda h: h.mean(-1), "count from the front, or pass example_input"),
    "squeeze": (lambda h: h[:, :, :1].squeeze(-2), "count from the front, or pass example_input"),
    "GELU": (TF.gelu, 'leave nonlinear at "difference", or train with nn.ReLU'),
    "sigmoid": (torch.sigmoid, 'readout="drop"'),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_a_refusal_says_what_to_do(name):
    function, words = REMEDIES[name]

    def forward(m, x):
        return function(m.hidden(m.act(m.conv(x))) + 0.1)

    hidden = nn.AdaptiveAvgPool2d(6) if name not in ("mean", "squeeze") else nn.Unflatten(1, (4, 1))
    with pytest.raises(ConversionError, match=words):
        convert(Wrapped(forward, hidden=hidden), timesteps=4, rho=4, nonlinear="error")


def test_negative_dimensions_with_an_example():
    def forward(m, x):
        return m.head(m.act(m.conv(x)).flatten(1))[:, :, None].squeeze(-1).unsqueeze(2).mean(-1)

    model = Wrapped(forward).eval()
    network = convert(model, timesteps=4, rho=4, iterations=None, example_input=IMAGES)
    assert torch.allclose(network.rate(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "activation, name",
    [
        (nn.GELU(), "GELU"),
        (nn.LeakyReLU(), "LeakyReLU"),
        (nn.SiLU(), "SiLU"),
        (nn.PReLU(), "PReLU"),
        (TF.gelu, "gelu"),
        (TF.leaky_relu, "leaky_relu"),
        (torch.floor, "floor"),
    ],
)
def test_other_activations_are_named_where_there_is_none(activation, name):
    layers = {"own": activation} if isinstance(activation, nn.Module) else {}
    call = (lambda m: m.own) if layers else (lambda m: activation)
    model = Wrapped(lambda m, x: m.head(call(m)(m.conv(x)).flatten(1)), **layers)
    with pytest.raises(ConversionError, match=f"neurons cannot stand for {name}; train it with"):
        convert(model, timesteps=4, spikes="rectifiers")


def test_what_follows_from_a_refusal_is_not_listed():
    def forward(m, x):
        h = m.act(m.conv(x))
        h = torch.erf(h)
        h = torch.cat([h, h.flip(1)], 1) if False else torch.cat([h, m.act2(m.conv(x))], 1)
        return h.view(x.size(0), -1)[:, :4].mean(-1)

    with pytest.raises(ConversionError) as caught:
        convert(Wrapped(forward, act2=QCFS(4, 1.0)), timesteps=4, nonlinear="error")
    assert len(caught.value.report.unsupported()) == 1 and "erf" in str(caught.value)

    def two(m, x):
        return torch.erf(torch.erf(m.act(m.conv(x))).mean(-1)).softmax(1)

    with pytest.raises(ConversionError) as caught:
        convert(Wrapped(two), timesteps=4, nonlinear="error")
    assert len(caught.value.report.unsupported()) == 3  # each would be refused by itself


def test_why_a_model_cannot_be_traced_is_said():
    class Walks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.gelu = nn.Linear(5, 8), QCFS(4, 1.0), nn.GELU()

        def forward(self, x):
            if x.sum() > 0:
                x = -x
            return self.gelu(self.act(self.a(x)))

    for example in (None, X):
        with pytest.raises(
            ConversionError,
            match=r"(?s)traced by torch.fx.*(values|control flow).*test_remedies.py:",
        ):
            convert(Walks(), timesteps=4, example_input=example)


@pytest.mark.parametrize("sizes, share", [((5, 64, 64, 3), 0.93), ((64, 64, 3), 0.04)])
def test_the_share_behind_neurons(sizes, share):
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*(m for layer in layers for m in (layer, QCFS(4, 1.0))))[:-1]
    x = torch.randn(2, sizes[0])
    total = sum(a * b for a, b in itertools.pairwise(sizes))
    behind = 1 - sizes[0] * sizes[1] / total
    assert behind == pytest.approx(share, abs=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = convert(model, timesteps=4, rho=4, example_input=x)
        assert convert(model, timesteps=4).report.behind is None
    assert network.report.behind == pytest.approx(behind)
    assert f"{behind:.0%} of the multiplications lie behind neurons" in str(network.report)
    assert len(caught) == (behind < 0.5)
    if caught:
        assert caught[0].category is UserWarning and "stay dense" in str(caught[0].message)
        assert caught[0].filename == __file__


READ = {
    "squeezed": lambda out: torch.sigmoid(out).squeeze(1),
    "contiguous": lambda out: torch.tanh(out).contiguous(),
    "flattened": lambda out: torch.sigmoid(out).unsqueeze(1).flatten(1),
}


class Reads(nn.Module):
    def __init__(self, function, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), QCFS(4), nn.Linear(8, classes))
        self.function = function

    def forward(self, x):
        return self.function(self.body(x))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("function", READ.values(), ids=READ)
def test_a_readout_may_be_followed_by_a_change_of_shape(function, classes):
    model, x = Reads(function, classes), torch.randn(4, 8)
    dropped = convert(model, timesteps=4, rho=4, readout="drop")
    read = convert(model, timesteps=4, rho=4, readout="mean")
    rate = dropped.rate(x)
    assert rate.shape == model(x).shape
    name = torch.tanh if function is READ["contiguous"] else torch.sigmoid
    assert torch.allclose(read.rate(x), name(rate))


def test_what_scales_a_readout_is_told_so():
    model, x = Reads(lambda out: torch.sigmoid(out) * 2, 3), torch.randn(4, 8)
    with pytest.raises(ConversionError, match="do what follows it.*outside of the model"):
        convert(model, timesteps=4, readout="mean", nonlinear="error")
    logits = convert(Reads(lambda out: out, 3), timesteps=4, rho=4)
    logits.load_state_dict(convert(model, timesteps=4, rho=4).state_dict(), strict=False)
    network = convert(model, timesteps=4, rho=4, readout="mean")
    assert torch.allclose(network.rate(x), torch.sigmoid(logits.rate(x)) * 2, atol=1e-6)


def test_softmin_is_not_said_to_keep_the_order():
    model = Reads(nn.Softmin(1), 3)
    with pytest.raises(ConversionError) as caught:
        convert(model, timesteps=4, readout="drop", nonlinear="error")
    assert "readout=" not in str(caught.value)
    report = convert(model, timesteps=4, readout="drop").report
    assert [e.kind for e in report.entries if e.status == "difference"] == ["Softmin"]
