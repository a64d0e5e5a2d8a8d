"""Models that torch.fx cannot trace and that are traced by running them: exact against the
quantised model, for batches of any size; and what is refused, with the line. No torch.fx here.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import pytest
import torch
from quantised import LEVELS, Quantised
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext import QCFS, ConversionError, calibrate_thresholds, convert
from cos_ext._batches import Inputs
from cos_ext.conversion.batch_number import BatchNumber, told
from cos_ext.conversion.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@dataclass
class Config:
    depth: int = 2
    pool: str = "mean"
    scale: float | None = 0.5


class Net(nn.Module):
    """Tokens [B, 6, 8] through layers by name, as a function says."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.relu, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), head()
        self.places = nn.Embedding(10, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("ids", torch.arange(10)[None])
        self.config, self.function = Config(), function

    def forward(self, x, **options):
        if x.shape[-1] != 8:  # torch.fx fails here
            raise ValueError(f"8 features, got {x.shape[-1]}")
        return self.function(self, x, **options)


def head():
    return nn.Linear(8, 5)


def is_tensor(m, x):
    assert torch.is_tensor(x)
    assert isinstance(x, torch.Tensor) and hasattr(x, "shape") and not hasattr(x, "tensors")
    return m.fc(m.relu(m.a(x)).mean(1))


def ranks(m, x):
    h = m.relu(m.a(x))
    return m.fc(h.mean(1) if len(h.shape) == 3 and h.ndim == 3 else h)


def keywords(m, x, **options):
    def layer(h, *, scale=1.0, **rest):
        return m.relu(m.a(h)) * options.get("scale", scale)

    return m.fc(layer(x, scale=2.0, other=None).sum(1))


def loop_over_tokens(m, x):
    h = m.relu(m.a(x))
    return m.fc(sum(h[:, i] * (i + 1) for i in range(h.shape[1])))


def rearranged(m, x):
    batch, tokens, features = x.shape  # as einops does it
    heads = m.a(x).reshape(batch, tokens, 2, features // 2).transpose(1, 2)
    h = TF.relu(heads.reshape(batch, 2 * tokens * features // 2))
    return m.fc(h.view(batch, tokens, features).mean(1))


def samples_and_tokens(m, x):
    batch, tokens, features = x.shape
    h = m.relu(m.a(x.reshape(batch * tokens, features)))
    return m.fc(m.relu(m.b(h)).view(batch, -1, features).mean(1))


def config(m, x):
    for _ in range(m.config.depth):
        x = m.relu(m.a(x))
    if m.config.scale is not None:
        x = x * m.config.scale
    return m.fc({"mean": torch.mean, "sum": torch.sum}[m.config.pool](x, 1))


def positions(m, x):
    places = m.places(torch.arange(x.shape[1], device=x.device))
    return m.fc(m.relu(m.a(x + places)).mean(1))


def positions_of_the_batch(m, x):
    ids = m.ids[:, : x.size(1)].expand(x.size(0), -1)
    return m.fc(m.relu(m.a(x + m.places(ids))).mean(1))


def class_token(m, x):
    h = m.relu(m.a(x))
    h = torch.cat([m.cls.expand(x.shape[0], -1, -1), h], 1)
    return m.fc(m.relu(m.b(h))[:, 0] + h[:, 1:].mean(1))


def mask(m, x):
    keep = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    causal = torch.zeros(6, 6, dtype=x.dtype)
    x = x + causal.sum(1, keepdim=True)  # a constant may be written into after it was read
    causal[0, 1:] = 0.5
    causal = causal + torch.eye(6, dtype=x.dtype)
    return m.fc((causal @ m.relu(m.a(x * keep[:, :, None]))).mean(1))


def mask_like_the_input(m, x):
    causal = x.new_zeros((6, 6))  # takes of x its dtype and device, so that it is a constant
    causal[0, 1:] = 0.5
    causal = causal.masked_fill(causal == 0, 0.25)
    x = x + x.new_full((x.shape[0], 1, 8), 0.25) + x.new_ones(x.shape[0], 1, 8)
    return m.fc((causal @ TF.normalize(m.relu(m.a(x)), dim=-1)).mean(1))


def own_calls(m, x):
    h = m.relu(m.a(x))  # one module, called twice, and a function between
    return m.fc(m.relu(m.b(TF.relu(h - 0.1))).mean(1))


def in_place(m, x):
    h = m.a(x)
    h += 0.25
    return m.fc(TF.relu(h, inplace=True).mean(1))


def normalised(m, x):
    return m.fc(m.relu(m.norm(m.a(x).mT).mT).mean(1))


def chunks(m, x):
    first, second = m.relu(m.a(x)).chunk(2, dim=-1)
    top, _ = TF.relu(m.b(x)).split([5, 1], dim=1)
    return m.fc(torch.cat([first, second], -1).mean(1) - 2 * (1 - top.mean(1)))


def reflected(m, x):
    h = m.relu(m.a(2 / (1 + x.abs())))
    return m.fc((1 - h / 2 + 3 * -h).mean(1) - 0.5)


CONVERTS = {f.__name__: f for f in (
    is_tensor, ranks, keywords, loop_over_tokens, rearranged, samples_and_tokens, config,
    positions, positions_of_the_batch, class_token, mask, mask_like_the_input, own_calls, in_place,
    normalised, chunks, reflected,
)}  # fmt: skip


def build(function):
    torch.manual_seed(4)
    model = Net(function).double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
    return model


def thresholds_of(model, x=X):
    """By call site, in the order of calls."""
    return calibrate_thresholds(model, [x], percentile=90.0, method="percentile", progress=False)


@pytest.mark.parametrize("function", CONVERTS.values(), ids=CONVERTS)
def test_converts_exactly_for_any_batch(function):
    model = build(function)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ConversionError, match=r"cannot be traced.*test_running.py:\d+.*example_input"
    ):
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
    assert "test_running.py:" in traced.lines["sub"] and "h - 0.1" in traced.lines["sub"]
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
