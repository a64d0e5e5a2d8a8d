"""energy_report of networks with differences and products of two tensors, against counts by hand.
Signed neurons: test_energy_signed.py; layers of spikes alone: test_energy_layers.py.
"""

import pytest
import torch
from energy_counts import inputs_and_kinds, inputs_of, layers_of, report_of
from torch import nn
from torch.nn import functional as TF
from untraced import untraced

from cos_ext import QCFS, convert
from cos_ext.network.modules import Walked

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3
ON_AND_OFF = [{"rho": 0}, {"rho": STEPS}]


def every_step(layer):
    """Whether all MACs are done at each step."""
    return layer.operation == "MAC" and layer.per_step == (layer.macs,) * STEPS


class Attends(nn.Module):
    """Neurons on the tokens [B, 3, 4] themselves, attention in 2 heads, layers and neurons."""

    def __init__(self, attend):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.attend = QCFS(4, 0.5), attend
        self.mix, self.two, self.last = nn.Linear(4, 6), QCFS(4, 0.25), nn.Linear(6, 2)

    def forward(self, x):
        heads = self.act(x).unflatten(2, (2, 2)).transpose(1, 2)
        return self.last(self.two(self.mix(self.attend(heads).transpose(1, 2).flatten(2))))


def matmul(h):
    return torch.softmax(h @ h.transpose(2, 3), -1) @ h


def einsum(h):
    scores = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", h, h), -1)
    return torch.einsum("bhnm,bhmd->bhnd", scores, h)


def fused(h):
    return TF.scaled_dot_product_attention(h, h, h)


TOKENS = torch.rand(5, 3, 4, generator=torch.manual_seed(0))
BLOCK = {"matmul": matmul, "einsum": einsum, "fused": fused}


@pytest.mark.parametrize("settings", ON_AND_OFF, ids=str)
@pytest.mark.parametrize("name", BLOCK)
def test_an_attention_block_counted_by_hand(name, settings):
    network = convert(
        Attends(BLOCK[name]).eval(), timesteps=STEPS, example_input=TOKENS, **settings
    )
    report = report_of(network, TOKENS)
    first, second, mix, last = report.layers
    rho, products = settings["rho"], 2 * 3 * 3 * 2  # heads, queries, keys, features
    for layer in (first, second):
        assert (layer.input, layer.macs, layer.operation) == ("product", products, "MAC")
        assert every_step(layer) and layer.nonzero == 1
    assert (mix.input, mix.macs) == ("graded", 3 * 4 * 6) and every_step(mix)
    assert (last.input, last.macs) == ("spikes", 3 * 6 * 2)
    for layer in (first, second, mix):  # neurons watch what follows
        assert (layer.watch, layer.watched) == (rho, rho * layer.macs)
        steps = [t if rho == 0 else max(t, rho) for t in (1, 2, 3)]
        again = [1, 2, 3] if rho == 0 else [rho + t for t in (1, 2, 3)]
        assert layer.operations == tuple(layer.macs * n for n in again)
        assert layer.kept_operations == tuple(layer.macs * n for n in steps)
    dense = 2 * products + 3 * 4 * 6
    assert report.graded_macs == [dense * n for n in again] and report.static_macs == 0
    assert report.ann_macs == dense + 36
    spikes = (inputs_of(network, "last", TOKENS) != 0).sum((1, 2, 3)) * 2 / 5
    assert last.per_step == pytest.approx(spikes.tolist())
    assert report.quantised_joules == pytest.approx(1e-12 * (4.6 * dense + 36 * 0.9 * 2))
    taken = [spikes[:t].sum().item() for t in (1, 2, 3)]
    assert report.snn_joules == pytest.approx(
        [
            1e-12 * (4.6 * dense * n + 0.9 * (acs + updates))
            for n, acs, updates in zip(again, taken, report.neuron_updates)
        ]
    )
    assert sum("  product         -" in line for line in str(report).splitlines()) == 2


def test_what_is_not_counted_is_listed_with_its_elements():
    network = convert(Attends(matmul).eval(), timesteps=STEPS, example_input=TOKENS, rho=2)
    heads, scores = 2 * 3 * 2, 2 * 3 * 3
    assert report_of(network, TOKENS).uncounted == {
        "running_mean": 2 * heads,  # of the spikes, and of the spikes transposed
        "softmax": scores,
        "difference": 3 * 6,  # behind the layer, which reads running means
    }


def test_products_of_batches_of_matrices():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.last = QCFS(4, 0.5), nn.Linear(3, 2)

        def forward(self, x):
            y = self.act(x)
            return self.last(torch.bmm(y, y.transpose(1, 2)))

    network = convert(Products(), timesteps=STEPS, example_input=TOKENS)
    assert inputs_and_kinds(report_of(network, TOKENS)) == {
        "bmm": ("product", 3 * 3 * 4),
        "last": ("graded", 3 * 3 * 2),
    }


class SqueezeAndExcite(nn.Module):
    """Neurons on the image itself; a gate by channel; layers and neurons."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.down, self.mid = QCFS(4, 0.5), nn.Conv2d(4, 2, 1), QCFS(4, 0.25)
        self.up, self.gate, self.conv = nn.Conv2d(2, 4, 1), nn.Hardsigmoid(), nn.Conv2d(4, 3, 2)
        self.two, self.last = QCFS(4, 0.25), nn.Linear(3 * 4, 2)
        self.down.bias.data.add_(0.5)

    def forward(self, x):
        y = self.act(x)
        gate = self.gate(self.up(self.mid(self.down(y.mean((2, 3), keepdim=True)))))
        return self.last(self.two(self.conv(y * gate)).flatten(1))


IMAGES = torch.rand(5, 4, 3, 3, generator=torch.manual_seed(1))


@pytest.mark.parametrize("settings", ON_AND_OFF, ids=str)
def test_squeeze_and_excitation_counted_by_hand(settings):
    rho = settings["rho"]
    network = convert(SqueezeAndExcite().eval(), timesteps=STEPS, **settings)
    report = report_of(network, IMAGES)
    found, size = layers_of(report), 4 * 3 * 3
    assert inputs_and_kinds(report) == {
        "down": ("graded", 8),  # of averages of spikes
        "up": ("spikes", 8),
        "mul": ("product", size),
        "conv": ("graded", 4 * 2 * 2 * 3 * 4),
        "last": ("spikes", 24),
    }
    assert every_step(found["mul"]) and every_step(found["conv"])
    pooled = inputs_of(network, "down", IMAGES)
    assert found["down"].per_step == pytest.approx(
        ((pooled != 0).sum((1, 2, 3, 4)) * 2 / 5).tolist()
    )
    middle = inputs_of(network, "up", IMAGES)
    spikes = ((middle != 0).sum((1, 2, 3, 4)) * 4 / 5).tolist()
    assert found["up"].per_step == pytest.approx(spikes) and sum(spikes) > 0
    times = [rho + t for t in (1, 2, 3)]
    assert found["mul"].operations == tuple(size * n for n in times)
    assert found["conv"].operations == tuple(192 * n for n in times)
    assert report.uncounted == {
        "mean": size,
        "running_mean": 4 + size,
        "hardsigmoid": 4,
        "difference": 12,  # behind the convolution
    }
    assert report.neurons == size + 2 + 12


class Maximum(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.pool, self.last = QCFS(4, 1.0), nn.MaxPool2d(2), nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.last(self.pool(self.act(x)))


def test_what_leaves_a_difference_costs_a_multiplication_though_it_looks_like_spikes():
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 1, 1] = 1.0
    network = convert(Maximum(), timesteps=STEPS, max_pool="difference")
    seen = inputs_of(network, "last", x)
    assert set(seen.unique().tolist()) == {0.0, 1.0} and (seen != 0).double().mean() == 1 / 8
    (layer,) = report_of(network, x).layers
    assert layer.input == "graded" and every_step(layer) and layer.macs == 8
    assert layer.nonzero == 1 / 8
    network = convert(Maximum(), timesteps=STEPS, max_pool="spike")
    (layer,) = report_of(network, x).layers
    assert layer.input == "spikes" and layer.per_step == (1.0,) * STEPS


class Elementwise(nn.Module):
    """What is between two kinds of neurons and a static tensor is given."""

    def __init__(self, between):
        super().__init__()
        self.act, self.other, self.last = QCFS(4, 0.5), QCFS(4, 0.7), nn.Linear(4, 2)
        self.scale, self.between = nn.Parameter(torch.rand(3, 4)), between

    def forward(self, x):
        return self.last(self.between(self.act(x), self.other(1.5 * x), x, self.scale))


@pytest.mark.parametrize(
    "between, product, uncounted",
    [
        (lambda a, b, x, c: a * b, "product", {}),
        (lambda a, b, x, c: a * b.mean(1, keepdim=True), "product", {"mean": 12}),
        (lambda a, b, x, c: torch.einsum("bnk,bnk->bnk", a, b), "product", {}),
        (lambda a, b, x, c: a * (x * x), "product", {}),
        (lambda a, b, x, c: a * c, None, {"mul": 12}),
        (lambda a, b, x, c: a * 0.5, None, {"mul": 12}),
        (lambda a, b, x, c: a + x * x, "static", {"add": 12}),
        (lambda a, b, x, c: a + torch.addcmul(c, x, x), "static", {"add": 12}),
    ],
)
def test_products_element_by_element(between, product, uncounted):
    network = convert(Elementwise(between), timesteps=STEPS, example_input=TOKENS)
    report = report_of(network, TOKENS)
    *products, _ = report.layers
    if product is None:
        assert not products
    else:
        assert products[-1].input == product and products[-1].macs == 12
        assert product == "static" or every_step(products[-1])
    ends = ("running_mean", "difference")
    assert {k: n for k, n in report.uncounted.items() if k not in ends} == uncounted


def test_a_sum_with_a_product_counts_its_factors():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.weight = QCFS(4, 0.5), nn.Parameter(torch.randn(1, 4, 5))
            self.bias = nn.Parameter(torch.randn(1, 1, 5))

        def forward(self, x):
            untraced(x)
            return torch.baddbmm(self.bias, self.act(x)[None], self.weight)[0]

    x = TOKENS.flatten(0, 1)
    network = convert(Sums(), timesteps=STEPS, example_input=x)
    (layer,) = report_of(network, x).layers
    assert (layer.input, layer.macs) == ("spikes", 4 * 5)
    spikes = sum(layer.per_step) * len(x) / 5
    statistics = network.statistics([x], progress=False).layers
    assert spikes == pytest.approx(statistics["act"].spikes) and spikes > 0


class Walks(nn.Module):
    """Cannot be traced: a batch decides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.act = nn.Conv2d(4, 4, 1), QCFS(4, 0.5)
        self.gelu, self.second, self.two = nn.GELU(), nn.Conv2d(4, 4, 3), QCFS(4, 0.25)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        untraced(x)
        return self.head(self.two(self.second(self.gelu(self.act(self.conv(x))))).flatten(1))


@pytest.mark.parametrize("settings", ON_AND_OFF, ids=str)
def test_differences_of_a_model_that_is_walked(settings):
    network = convert(Walks().eval(), timesteps=STEPS, example_input=IMAGES, **settings)
    assert isinstance(network.module, Walked)
    report = report_of(network, IMAGES)
    found = layers_of(report)
    assert {site: layer.input for site, layer in found.items()} == {
        "conv": "static",
        "second": "graded",
        "head": "spikes",
    }
    assert every_step(found["second"]) and found["second"].macs == 4 * 9 * 4
    named = ("running_mean", "gelu", "difference")
    assert [report.uncounted[name] for name in named] == [36, 36, 36]
    assert not {"cumsum", "cat", "sub"} & set(report.uncounted)
    rho = settings["rho"]
    assert found["second"].operations == tuple(144.0 * (rho + t) for t in (1, 2, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_batches_add_up_and_outputs_stay_the_same():
    network = convert(Attends(fused).eval(), timesteps=STEPS, rho=2, example_input=TOKENS)
    before = network(TOKENS)
    whole, parts = report_of(network, TOKENS), report_of(network, TOKENS[:2], TOKENS[2:])
    for one, other in zip(whole.layers, parts.layers):
        assert (one.input, one.macs) == (other.input, other.macs)
        assert one.per_step == pytest.approx(other.per_step, rel=1e-12)
    assert torch.equal(network(TOKENS), before)
