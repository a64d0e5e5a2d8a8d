"""Models that torch.fx cannot trace and that are traced by running them: exact against the
quantised model, for batches of any size; and what is refused, with the line. No torch.fx here.
"""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from looking import (
    CONVERTS,
    X,
    build,
    class_token,
    head,
    mask,
    own_calls,
    ranks,
    samples_and_tokens,
)
from quantised import LEVELS, Quantised
from torch import nn

import cos_ext
from cos_ext import QCFS, ConversionError, calibrate_thresholds, convert
from cos_ext._batches import Inputs
from cos_ext.conversion.batch_number import BatchNumber, told
from cos_ext.conversion.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")


def thresholds_of(model, x=X):
    """By call site, in the order of calls."""
    return calibrate_thresholds(model, [x], percentile=90.0, method="percentile", progress=False)


@pytest.mark.parametrize("function", CONVERTS.values(), ids=CONVERTS)
def test_converts_exactly_for_any_batch(function):
    model = build(function)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError, match=r"cannot be traced.*looking.py:\d+.*example_input"):
        convert(model, timesteps=LEVELS)
    thresholds = thresholds_of(model)
    options = {"timesteps": LEVELS, "rho": LEVELS, "iterations": None}
    network = convert(model, thresholds=thresholds, example_input=X[:2], **options)
    assert isinstance(network.module, torch.fx.GraphModule)
    for x in (X, X[:1], torch.cat([X, -X, X.flip(0)])):
        with torch.no_grad(), Quantised(thresholds.values()):
            expected = copy.deepcopy(model)(x)
        torch.testing.assert_close(network.rate(x), expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"must be \[B, 6, 8\]"):
        network(torch.randn(2, 5, 8, dtype=torch.float64))


class Computes(nn.Module):
    """torch.fx traces it, but one size is computed: the rules know no number for it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.a, self.act, self.fc = nn.Linear(8, 8), QCFS(LEVELS, 1.0), head()

    def forward(self, x):
        h = self.act(self.a(x))
        return self.fc(h.mean(1, keepdim=True).reshape(h.shape[::2]))


@torch.no_grad()
def test_what_has_offenders_is_run_where_there_is_an_example(tmp_path):
    model = Computes().double().eval()
    options = {"timesteps": LEVELS, "rho": LEVELS, "iterations": None}
    with pytest.raises(ConversionError, match="to computed sizes|to shape"):
        convert(model, **options)
    network = convert(model, example_input=X, **options)
    assert network.options["ran_on"]
    for x in (X, X[:1], torch.cat([X, -X, X.flip(0)])):
        torch.testing.assert_close(network.rate(x), model(x), rtol=1e-9, atol=1e-9)
    network.save(tmp_path / "snn")
    again = cos_ext.load_network(tmp_path / "snn", Computes().double().eval(), example_input=X)
    assert torch.equal(again(X), network(X))


@torch.no_grad()
def test_how_many_parts_there_are_is_a_shape():
    model = build(lambda m, x: m.fc(sum(m.relu(t) for t in m.a(x).unbind(1))))
    thresholds = thresholds_of(model)
    network = convert(model, timesteps=4, thresholds=thresholds, example_input=X)
    with pytest.raises(ValueError, match=r"must be \[B, 6, 8\]"):
        network(torch.randn(2, 7, 8, dtype=torch.float64))


def test_of_two_attempts_the_first_says_why():
    model = Computes().double().eval()
    model.fc = nn.Sequential(head(), nn.RReLU()).double().eval()  # which both refuse
    with pytest.raises(ConversionError, match=r"to computed sizes|to shape") as caught:
        convert(model, timesteps=4, example_input=X)
    assert "fc.1 (RReLU)" in str(caught.value)


def test_call_sites_and_lines_are_those_of_the_model():
    model = build(own_calls)
    assert list(thresholds_of(model)) == ["relu", "relu_1", "relu_2"]
    traced = trace(model, examples={"x": X})
    assert traced.origin == {
        "relu": "ReLU",
        "relu_1": "relu",
        "relu_2": "ReLU, a further call of relu",
    }
    assert "looking.py:" in traced.lines["sub"] and "h - 0.1" in traced.lines["sub"]
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [
        "a", "relu", "relu_1", "b", "relu_2", "fc",
    ]  # fmt: skip


def test_the_size_of_the_batch_stays_open():
    graph = trace(build(samples_and_tokens), examples={"x": X}).graph
    views = [n.args[1] for n in graph.nodes if n.target in ("view", "reshape")]
    assert views == [(-1, 8), (-1, 6, 8)]
    graph = trace(build(class_token), examples={"x": X}).graph
    (size,) = (n for n in graph.nodes if n.target == "size")
    assert size.args[0].op == "placeholder" and [u.target for u in size.users] == ["expand"]


def test_what_depends_on_nothing_is_a_constant_of_the_network(tmp_path):
    model = build(mask)
    traced = trace(model, examples={"x": X})
    zeros, held = (n for n in traced.graph.nodes if n.op == "get_attr")
    assert not getattr(traced.module, zeros.target).any()
    value = getattr(traced.module, held.target)
    assert value.shape == (6, 6) and value[0, 1] == 0.5 and value[1, 1] == 1
    assert "zeros" not in {getattr(n.target, "__name__", "") for n in traced.graph.nodes}

    thresholds = thresholds_of(model)
    network = convert(model, timesteps=4, thresholds=thresholds, example_input=X)
    network.save(tmp_path / "snn")
    again = cos_ext.load_network(tmp_path / "snn", build(mask), example_input=X)
    assert torch.equal(again(X), network(X))


def test_the_ann_beside_the_network_is_traced_alike():
    model = build(own_calls)
    options = {"thresholds": thresholds_of(model), "example_input": X}
    network = convert(model, timesteps=4, rho=4, iterations=None, **options)
    report = cos_ext.offset_spike_report(model, network, [X], progress=False)
    assert [layer.site for layer in report.layers] == ["relu", "relu_1", "relu_2"]


def test_thresholds_need_one_shape():
    with pytest.raises(ValueError, match=r"shape of the first, \[B, 6, 8\], got \(4, 5, 8\)"):
        calibrate_thresholds(build(ranks), [X, X[:, :5]], progress=False)


# What is refused, and why. Nothing of it can be walked module by module either: of each module
# there is a second call.


def of_values(m, x):
    return m.fc(m.relu(m.a(x if x.sum() > 0 else -x)).mean(1))


def of_numbers(m, x):
    return m.fc(m.relu(m.a(x)).mean(1) * x.abs().max().item())


def of_indices(m, x):
    return m.fc(m.relu(m.a(x)).mean(1)[x[:, 0, 0] > 0])


def of_many_samples(m, x):
    return m.fc(m.relu(m.a(x)).mean(1) * (2 if x.shape[0] > 100 else 1))


def of_even_batches(m, x):
    return m.fc(m.relu(m.a(x)).mean(1) * (x.size(0) % 2 + 1))


def over_the_batch(m, x):
    return torch.stack([m.fc(m.relu(m.a(x[i])).mean(0)) for i in range(x.shape[0])])


def half_the_batch(m, x):
    return m.fc(m.relu(m.a(x)).mean(1))[: (x.shape[0] + 1) // 2]


def unseen(m, x):
    return m.fc(m.relu(m.a(torch.vmap(lambda sample: 2 * sample)(x))).mean(1))


def written(m, x):
    h = torch.zeros(6, 8, dtype=x.dtype)
    h[:, :4] = x[0, :, :4]
    return m.fc(m.relu(m.a(x + h)).mean(1))


def counted(m, x):
    m.ids += 1
    return m.fc(m.relu(m.a(x)).mean(1) * m.ids.sum())


def by_chance(m, x):
    return m.fc(m.relu(m.a(x + torch.rand(8, dtype=x.dtype))).mean(1))


REFUSED = {
    of_values: "values of tensors",
    of_numbers: "values of tensors",
    of_indices: "values of tensors",
    of_many_samples: "size of the batch",
    of_even_batches: "size of the batch",
    over_the_batch: "size of the batch, here what is called",
    half_the_batch: "size of the batch, here 2 for 3 samples, 3 for 5",
    unseen: "no torch function",
    written: "writes what depends on the input",
    counted: "writes into the buffer ids, and reads it",
    by_chance: "unless chance makes it",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_run_is_refused_with_its_line(function):
    model = build(function)
    model.extra = nn.GELU()  # which the walk refuses, so that both reasons are shown
    traced = trace(model, examples={"x": X})
    assert traced.graph is None
    assert REFUSED[function] in traced.why_not
    assert "test_running.py:" in traced.why_not
    with pytest.raises(ConversionError, match=f"cannot be traced: .*{REFUSED[function]}"):
        convert(model, timesteps=4, thresholds={"relu": 1.0}, example_input=X)


def test_a_batch_of_one_is_checked_on_the_example():
    def doubled_alone(m, x):
        h = m.relu(m.a(x)).mean(1)
        return m.fc(h * (2 if x.shape[0] == 1 else 1))

    with pytest.raises(ConversionError, match="batch of one that is treated apart"):
        convert(build(doubled_alone), timesteps=4, thresholds={"relu": 1.0}, example_input=X)


def test_hooks_are_refused_as_ever():
    model = build(ranks)
    model.a.register_forward_hook(lambda m, args, y: y + 1)
    with pytest.raises(ConversionError, match=r"a \(Linear\): has forward hooks"):
        model.relu(model.b(X))
        convert(model, timesteps=4, thresholds={"relu": 1.0}, example_input=X)


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.lstm = nn.Linear(8, 8), QCFS(4, 1.0), nn.LSTM(8, 8)

    def forward(self, x, wanted=None, flag=True):
        assert len(x.shape) == 3
        y, (h, _) = self.lstm(x)
        return {"y": self.act(self.a(y)), "rest": (h, None)}


def test_the_output_keeps_its_structure():
    model = Structured().double().eval()
    traced = trace(model, Inputs.of(model), {"x": X})
    found, expected = traced.outputs.full(traced.module(X[:3])), model(X[:3])
    assert found.keys() == {"y", "rest"} and found["rest"][1] is None
    assert torch.equal(found["y"], expected["y"])
    assert torch.equal(found["rest"][0], expected["rest"][0])


def test_numbers_of_the_batch():
    shape = told(torch.Size([7, 4, 4]), 7, torch.Size([3, 4, 2]), torch.Size([5, 4, 3]))
    assert list(map(type, shape)) == [BatchNumber, int, int]  # 2, 3, 4 of 3, 5, 7 is no multiple
    b, double = shape[0], told(14, 7, 6, 10)
    assert int(double) == 14 and double == 2 * b and double // 2 == b and b + b == double
    assert b > 0 and b != 0 and bool(b) and 2 * b >= b
    questions = (
        lambda: b == 7,
        lambda: b > 100,
        lambda: b % 2 == 0,
        lambda: bool(b - 3),
        lambda: 8 - b < 0,
        lambda: operator.eq(torch.Size([b, 2]), torch.Size([7, 2])),
    )
    for question in questions:
        with pytest.raises(torch.fx.proxy.TraceError, match="size of the batch"):
            question()
