"""bench/coverage.py: its twin quantises what it should, and finds what is not exact; a record is
summed up rightly. Which networks convert is measured there, and not tested here.
"""

import inspect
import sys

import pytest
import torch
from conftest import ROOT, bench_script
from torch import nn
from torch.nn import functional as F

import cos_ext

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "bench"))
    yield bench_script("coverage")
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def parts(script):
    from _coverage import measure, networks, summary, tags, twin

    parts = {"measure": measure, "networks": networks, "summary": summary}
    return parts | {"tags": tags, "twin": twin}


def test_no_script_hides_a_package(script):
    """Scripts lie in the folder from which coverage.py imports."""
    scripts = {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert not scripts & {name.replace("-", "_") for name in script.PACKAGES}


def staircase(x, theta, steps, low=0.0):
    return theta * torch.floor(steps * x / theta + 0.5).div(steps).clamp(low, 1)


RECTIFIERS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "function": F.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(0, 4),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 5.0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_the_twin_quantises_every_rectifier_once(parts, name):
    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    twin = parts["twin"].Twin([torch.tensor(2.0)], 4)
    given = x.clone()
    with twin:
        out = RECTIFIERS[name](given)
    assert len(twin.calls) == 1
    assert torch.equal(out, staircase(x, 2.0, 4))
    if name in ("in place", "method in place"):
        assert out.data_ptr() == given.data_ptr()


@pytest.mark.parametrize(
    "call", [lambda x: x.clamp(-1, 1), F.hardtanh, F.gelu, torch.sigmoid, lambda x: x.clamp(1)]
)
def test_the_twin_leaves_the_others_alone(parts, call):
    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    twin = parts["twin"].Twin([torch.tensor(2.0)], 4)
    with twin:
        out = call(x)
    assert twin.calls == [] and torch.equal(out, call(x))


class Curves(nn.Module):
    """GELU before a layer, after a gate that scales; nothing is spiked before the first layer, or
    after the last.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x):
        h = self.a(F.silu(x))
        h = h * torch.sigmoid(h)
        return F.gelu(self.b(F.gelu(h)))


def run(parts, twin, model, x):
    with twin:
        return model(twin.begin(x))


def test_the_twin_quantises_curves_between_layers_with_a_sign(parts):
    model, x = Curves().eval(), torch.randn(8, 4, dtype=torch.float64)
    tags = parts["tags"].Tags()
    assert torch.equal(run(parts, tags, model, x), model(x)) and len(tags.signed()) == 1
    twin = parts["twin"].Twin([torch.tensor(0.5)], 4, tags.signed())
    out = run(parts, twin, model, x)
    h = model.a(F.silu(x))
    rate = staircase(F.gelu(h * torch.sigmoid(h)), 0.5, 4, low=-1)
    assert twin.calls == ["gelu"] and torch.equal(out, F.gelu(model.b(rate)))


def test_the_twin_quantises_inputs_of_layers_and_products_once(parts):
    model, x = Curves().eval(), torch.randn(8, 4, dtype=torch.float64)

    def forward(x):
        h = model.a(x)
        return (model.b(h) @ h.T)[:, :4] + model.b(h) @ model.a(model.a.weight)

    thetas = [torch.tensor(theta) for theta in (0.5, 0.7, 0.9, 1.1)]
    twin = parts["twin"].InputsTwin(thetas, 4)
    out = run(parts, twin, forward, x)
    h = model.a(x)
    one = staircase(h, 0.5, 4, low=-1)
    left = staircase(model.b(one), 0.7, 4, low=-1)
    right = staircase(h.T, 0.9, 4, low=-1)
    other = staircase(model.b(one), 1.1, 4, low=-1)
    assert twin.calls == ["linear", *["matmul"] * 3]
    torch.testing.assert_close(out, (left @ right)[:, :4] + other @ model.a(model.a.weight))


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_twins_attention_is_torchs(parts, need_weights):
    own = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    twin = parts["twin"].InputsTwin(None, 4)

    def forward(x):
        return own(x, x, x, need_weights=need_weights)

    out, shown = run(parts, twin, forward, x)
    expected, weights = forward(x)
    torch.testing.assert_close(out, expected)
    assert len(twin.calls) == 4 + need_weights and (weights is None) == (shown is None)
    if need_weights:
        torch.testing.assert_close(shown, weights)


class Branches(nn.Module):
    """Control flow on values: nothing can convert it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = F.relu(self.layer(x))
        return y if y.sum() > 0 else -y


def network(parts, make):
    networks = parts["networks"]
    return networks.Network("a network", make, (networks.Input((4,)),))


def small():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_network_is_exact_refused_or_unmade(parts):
    measure = parts["measure"].measure
    found = measure(network(parts, small))
    assert found["status"] == "exact" and found["error"] < 1e-12 < 1e-4 < found["quantised"]
    found = measure(network(parts, Branches))
    assert found["status"] == "refused" and found["reasons"]
    found = measure(network(parts, lambda: nn.Linear(5, 3)))
    assert found["status"] == "unmade"


def test_another_network_is_inexact(parts, monkeypatch):
    convert = cos_ext.convert

    def another(model, **options):
        thresholds = {site: 0.99 * theta for site, theta in options.pop("thresholds").items()}
        return convert(model, thresholds=thresholds, **options)

    another.__signature__ = inspect.signature(convert)  # which arguments there are is asked
    monkeypatch.setattr(cos_ext, "convert", another)
    found = parts["measure"].measure(network(parts, small))
    assert found["status"] == "inexact" and found["error"] > 1e-4


def test_a_record_is_summed_up(parts):
    rows = [
        {"name": "a", "status": "exact", "error": 2e-16, "seconds": 1.0},
        {"name": "b", "status": "refused", "reasons": ["is no rectifier; use one [b.py:3: x]"]},
        {"name": "c", "status": "refused", "reasons": ["is no rectifier; use 2", "has 7 outputs"]},
        {"name": "d", "status": "skipped", "reasons": ["timm is not installed"]},
    ]
    record = {"lists": {"all": rows}}
    summary = parts["summary"]
    assert "| all | 3 | 1 (33%) | 1 | 2e-16 | 2 | 0 | 1 |" in summary.counts(record)
    assert summary.reasons(record).splitlines()[2:] == [
        "| is no rectifier | 2 | 1 |",
        "| has N outputs | 1 | 0 |",
    ]
    assert "| b | refused | | | is no rectifier |" in summary.drawn(record)


def test_a_network_whose_package_is_missing_is_skipped(script, parts):
    networks = parts["networks"]
    absent = networks.Network("absent", small, (networks.Input((4,)),), needs=("no_such_package",))
    found = script.row(absent, 10.0)
    assert found["status"] == "skipped" and "no_such_package" in found["reasons"][0]
