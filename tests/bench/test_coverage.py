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
    from _coverage import measure, networks, summary, twin

    return {"measure": measure, "networks": networks, "summary": summary, "twin": twin}


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


def test_the_twin_quantises_curves_with_a_sign_where_it_is_asked(parts):
    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    twin = parts["twin"].Twin([torch.tensor(0.125), torch.tensor(2.0)], 4, curves=True)
    with twin:
        out, other = F.gelu(x), F.relu(x)
    assert torch.equal(out, staircase(F.gelu(x), 0.125, 4, low=-1)) and out.min() < 0
    assert torch.equal(other, staircase(x, 2.0, 4))


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
